"""Accept the API key of Anthropic's clients, which send `x-api-key`, where vLLM asks for `Authorization: Bearer`."""

from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_lora_router.server import asgi

PATHS = frozenset({"/v1/messages", "/v1/messages/count_tokens"})


class AnthropicKeyMiddleware:
    """Copies `x-api-key` into a missing `Authorization` header. vLLM then checks the key as it checks any other."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and asgi.path_of(scope) in PATHS:
            key = asgi.header(scope, b"x-api-key")
            if key and asgi.header(scope, b"authorization") is None:
                scope = {**scope, "headers": [*scope["headers"], (b"authorization", b"Bearer " + key)]}
        await self.app(scope, receive, send)


# vLLM adds the middleware that its option --middleware names outside its own check of the API key.
IMPORT_PATH = f"{AnthropicKeyMiddleware.__module__}.{AnthropicKeyMiddleware.__qualname__}"
