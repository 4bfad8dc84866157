"""Route each request to the LoRA adapter that fits it, inside vLLM's OpenAI server."""

__version__ = "0.1.0"
