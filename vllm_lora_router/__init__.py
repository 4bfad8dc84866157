"""Routes each request to the LoRA adapter that fits it, inside vLLM's own OpenAI server."""

__version__ = "0.1.0"
