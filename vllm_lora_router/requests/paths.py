"""What a path of vLLM's means for adapters."""

# vLLM's API key guards what lies under these (vllm/entrypoints/openai/server_utils.py, AuthenticationMiddleware).
GUARDED = ("/v1/", "/v2/", "/inference/")

# These render a prompt and run nothing on the engine.
RENDERING = frozenset({"/tokenize", "/detokenize", "/v1/messages/count_tokens"})

# The adapter stands in a header, and the body's `model` means nothing.
BY_HEADER = frozenset({"/invocations"})


def is_guarded(path: str) -> bool:
    """Whether whoever asks has shown the API key, where there is one: nobody else may start a load."""
    return path.startswith(GUARDED)


def only_renders(path: str) -> bool:
    """Whether a request there needs an adapter's name to be known, but not its weights."""
    return path in RENDERING or path.endswith("/render")
