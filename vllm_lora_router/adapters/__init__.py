"""Adapters: whether a declared LoRA folder really fits the base, known before vLLM's engine starts."""
