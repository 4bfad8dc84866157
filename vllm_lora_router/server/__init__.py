"""The router inside vLLM's API server: middleware and routes over ASGI, the plugin and the engine over vLLM."""
