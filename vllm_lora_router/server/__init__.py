"""The router inside vLLM's API server: middleware, API routes, startup, reload and preflight checks."""
