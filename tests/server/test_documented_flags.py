"""The flags of vLLM that the documentation names."""

from vllm_lora_router.server.vllm.command import VllmCommand

from ..unit.test_documentation import VLLM_OPTIONS


def test_every_flag_of_vllm_in_the_documentation_exists() -> None:
    flags = {flag for action in VllmCommand()._serve._actions for flag in action.option_strings}
    assert VLLM_OPTIONS - flags == set()
