"""`router.tenant_cache: isolated`: requests of different tenants share nothing in vLLM's prefix cache.

Otherwise a tenant could tell from the response time whether another tenant sent the same prompt before.
"""

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from vllm_lora_router.protocols import cache_salt
from vllm_lora_router.routing.ab_assignment import digest
from vllm_lora_router.server import asgi
from vllm_lora_router.server.exchange import Exchange


def salt_for(tenant: str | None, client_salt: str | None) -> str:
    """Return the `cache_salt` of a tenant's requests, which is the same in every process and replica.

    No client can produce another tenant's salt: the digest covers the tenant as well as the client's own salt.

    Args:
        tenant: None if the request names no tenant.
        client_salt: the `cache_salt` that the client sent, if any.
    """
    # The "=" separates an absent name from every name: a name may be any text that is not empty.
    return digest("cache_salt", *("" if value is None else f"={value}" for value in (tenant, client_salt)))


def tenant_of(scope: Scope, header: bytes | None) -> str | None:
    """Return the tenant like `text_header`; a value that is not UTF-8 is a tenant, too."""
    value = asgi.header(scope, header) if header else None
    return value.decode("utf-8", "surrogateescape").strip() or None if value else None


def add_salt(exchange: Exchange, header: bytes | None) -> bool:
    """Write the tenant's salt into a request's members, and return whether it was written.

    Args:
        header: the header that names the tenant.
    """
    tenant = tenant_of(exchange.scope, header)
    return exchange.is_object and cache_salt.write_salt(
        exchange.members, lambda client_salt: salt_for(tenant, client_salt)
    )


def refusal(scope: Scope, path: str) -> JSONResponse | None:
    """Return a 400 for a request that runs a prompt and cannot be isolated; None if it can be."""
    if path not in cache_salt.SALTED_PATHS:
        return _refused(f"requests to {path!r} have no `cache_salt`; send the request to another path")
    if not asgi.is_json(scope):
        return _refused("the body is not plain application/json; send application/json without a content-encoding")
    return None


async def refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a WebSocket: its prompts arrive in messages, which have no salt."""
    socket = WebSocket(scope, receive, send)
    if "websocket.http.response" in scope.get("extensions", {}):
        await socket.send_denial_response(
            _refused("the prompts of a WebSocket have no `cache_salt`; send the request to another path")
        )
    else:
        await socket.close(1008)


def _refused(why: str) -> JSONResponse:
    message = (
        "the request cannot be isolated from other tenants in the prefix cache (router.tenant_cache: isolated): "
        f"{why}, or set `router.tenant_cache: shared`"
    )
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "code": 400, "param": None}}, 400)
