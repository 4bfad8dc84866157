"""The releases of vLLM that the tests of this package ran on."""

TESTED = ("0.32.0",)
