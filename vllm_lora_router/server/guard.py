"""Guard the paths that vLLM leaves open although the server has an API key.

vLLM checks its API key under a few prefixes only. Some paths outside them, such as `/tokenize` and `/invocations`, are
routed, or run adapters.
"""

from collections.abc import Collection
from typing import Literal, Protocol

from starlette.responses import JSONResponse
from starlette.types import Scope

from vllm_lora_router.protocols.routes import is_behind_api_key

Access = Literal[
    "full",  # the path is behind vLLM's API key, or the request has the key
    "no_loads",  # an open path of a server without an API key: no adapter is loaded, and no tool is called
    "no_key",  # an open path, and no valid key: besides, no tenant, no system prompt and no decision headers
]


class ApiKeys(Protocol):
    """The API keys of the server."""

    @property
    def digests(self) -> Collection[bytes]:
        """The SHA-256 digests of the keys."""
        ...

    def accept(self, scope: Scope) -> bool:
        """Return whether a request has one of the keys."""
        ...


def access_of(api_keys: ApiKeys | None, scope: Scope, path: str) -> Access:
    """Return what a request may use.

    Args:
        api_keys: None if the server has no API key.
        path: the path without the prefix of a proxy.
    """
    if is_behind_api_key(path):
        return "full"
    if api_keys is None:
        return "no_loads"
    return "full" if api_keys.accept(scope) else "no_key"


def unauthorized_response() -> JSONResponse:
    """Return the 401 that vLLM answers on the paths that it guards."""
    return JSONResponse({"error": "Unauthorized"}, 401)
