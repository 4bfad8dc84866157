"""The API keys of vLLM's server, checked by vLLM's own middleware."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

if TYPE_CHECKING:
    from fastapi import FastAPI


class VllmApiKeys:
    """Checks keys as vLLM's `AuthenticationMiddleware` does, which compares them in constant time."""

    def __init__(self, authentication: Any) -> None:
        self._authentication = authentication

    @property
    def digests(self) -> Collection[bytes]:
        """The SHA-256 digests of the keys."""
        return self._authentication.api_tokens

    def accept(self, scope: Scope) -> bool:
        """Return whether a request has one of the keys."""
        return self._authentication.verify_token(Headers(scope=scope))


def api_keys_of(app: "FastAPI") -> VllmApiKeys | None:
    """Return the API keys of vLLM's complete app; None if it has none."""
    for middleware in app.user_middleware:
        # vLLM moves the class between releases, so it is found by its name and its argument.
        if getattr(middleware.cls, "__name__", "") == "AuthenticationMiddleware" and "tokens" in middleware.kwargs:
            authentication: Any = middleware.cls
            return VllmApiKeys(authentication(app, **middleware.kwargs))
    return None
