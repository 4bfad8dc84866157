"""adapter_config.json files that are invalid or use features that vLLM does not serve are refused with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.validation import AdapterError, validate_adapter

if TYPE_CHECKING:
    from .conftest import Files

BASE = BaseModel("acme/tiny")


def refusal(files: Files, without: str = "", **settings: Any) -> AdapterError:
    with pytest.raises(AdapterError) as refused:
        validate_adapter("medical-lora", files.adapter(None, without, **settings), BASE)
    return refused.value


def test_message_names_adapter_folder_file_and_remedy(files: Files) -> None:
    message = str(refusal(files, bias="all"))
    assert message == (
        f"adapter 'medical-lora' ({files.root / 'medical'}): adapter_config.json: bias is 'all': vLLM does not "
        "serve biases of adapters; train with bias='none'"
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("alora_invocation_tokens", [1, 2]),
        ("layer_replication", [[0, 1], [0, 1]]),
        ("use_bdlora", {"nblocks": 2}),
        ("use_qalora", True),
        ("modules_to_save", ["score", "lm_head"]),
        ("modules_to_save", "lm_head"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("bias", "lora_only"),
        ("bias", None),
    ],
)
def test_feature_that_vllm_does_not_serve_is_refused(files: Files, setting: str, value: Any) -> None:
    problems = refusal(files, **{setting: value}).problems
    assert len(problems) == 1
    assert setting in problems[0]
    assert repr(value) in problems[0] or isinstance(value, str)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_dora", False),
        ("modules_to_save", []),
        ("modules_to_save", ["classifier", "score"]),
        ("init_lora_weights", "gaussian"),
        ("init_lora_weights", "EVA"),
        ("init_lora_weights", False),
        ("target_modules", "all-linear"),
        ("target_modules", r".*\.(q|k)_proj"),
        ("rank_pattern", None),
        ("use_rslora", True),
    ],
)
def test_setting_that_vllm_serves_is_accepted(files: Files, setting: str, value: Any) -> None:
    validate_adapter("medical-lora", files.adapter(None, "", **{setting: value}), BASE)


@pytest.mark.parametrize("setting", ["peft_type", "bias", "modules_to_save", "init_lora_weights", "rank_pattern"])
def test_setting_with_a_default_in_vllm_is_optional(files: Files, setting: str) -> None:
    validate_adapter("medical-lora", files.adapter(without=setting), BASE)


@pytest.mark.parametrize("setting", ["r", "lora_alpha", "target_modules"])
def test_missing_required_setting_is_refused(files: Files, setting: str) -> None:
    (problem,) = refusal(files, without=setting).problems
    assert setting in problem
    assert "missing" in problem


@pytest.mark.parametrize("rank", [0, -8, 4.0, "4", True, None])
def test_rank_that_is_not_a_positive_integer_is_refused(files: Files, rank: object) -> None:
    assert f"r, the rank, is {rank!r}, not a positive integer" in str(refusal(files, r=rank))


@pytest.mark.parametrize("pattern", [{"q_proj": 0}, {"q_proj": "8"}, {"q_(": 8}, ["q_proj"]])
def test_unusable_rank_pattern_is_refused(files: Files, pattern: object) -> None:
    assert "rank_pattern" in str(refusal(files, rank_pattern=pattern))


def test_other_adapter_type_is_refused(files: Files) -> None:
    assert refusal(files, peft_type="IA3").problems == (
        "adapter_config.json: peft_type is 'IA3', but vLLM serves only LORA adapters; train a LoRA",
    )


def test_all_problems_are_reported_at_once(files: Files) -> None:
    error = refusal(files, r=0, bias="all", use_dora=True)
    assert len(error.problems) == 3
    assert str(error).count("\n  - ") == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "is not a JSON object"), ("\xff\xfe", "is not JSON")],
)
def test_configuration_that_is_not_a_json_object_is_refused(files: Files, text: str, message: str) -> None:
    folder = files.adapter()
    (folder / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(AdapterError, match=f"adapter_config.json {message}"):
        validate_adapter("medical-lora", folder, BASE)


def test_missing_configuration_is_reported(files: Files) -> None:
    folder = files.adapter()
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"adapter_config.json is missing; copy all files"):
        validate_adapter("medical-lora", folder, BASE)


def test_unreadable_configuration_is_reported(files: Files) -> None:
    folder = files.adapter()
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").mkdir()
    with pytest.raises(AdapterError, match=r"adapter_config.json cannot be read"):
        validate_adapter("medical-lora", folder, BASE)
