"""The releases of vLLM that the tests of this package ran on."""

TESTED = ("0.27.1", "0.30.0", "0.32.0")
