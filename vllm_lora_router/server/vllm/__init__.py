"""The integration with vLLM. Only this package and `serve.py` import vLLM."""

# The constant is here, not in plugin.py: `vllm-lora-router doctor` needs it even when the plugin cannot be imported.
TESTED_RELEASES = ("0.32.0",)
"""The vLLM releases that the tests of this package ran on."""
