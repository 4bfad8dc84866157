"""`router.tenant_cache: isolated`: what one tenant sends is no faster because another sent it before."""

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from vllm_lora_router.protocols import cache_salt
from vllm_lora_router.routing.ab_assignment import digest
from vllm_lora_router.server import asgi
from vllm_lora_router.server.incoming import Incoming


def salt_for(tenant: str | None, own: str | None) -> str:
    """The `cache_salt` of a tenant's requests, the same in every process and replica.

    No client reaches another tenant's: whatever it sends as its own goes into the digest beside its tenant.
    """
    # A name may be anything but nothing at all, which is what nobody is called.
    return digest("cache_salt", *("" if value is None else f"={value}" for value in (tenant, own)))


def tenant_of(scope: Scope, header: bytes | None) -> str | None:
    """The tenant as `text_header` has it; bytes that are no text tell tenants apart, too."""
    value = asgi.header(scope, header) if header else None
    return value.decode("utf-8", "surrogateescape").strip() or None if value else None


def salt_members(incoming: Incoming, header: bytes | None) -> bool:
    """Writes the salt into a request's members, and says whether it did."""
    tenant = tenant_of(incoming.scope, header)
    return incoming.members is not None and cache_salt.write(incoming.members, lambda own: salt_for(tenant, own))


def refusal(scope: Scope, path: str) -> JSONResponse | None:
    """Says why a request that runs a prompt cannot be kept apart; None where it can."""
    if path not in cache_salt.SALTED:
        return _refused(f"requests to {path!r} have no cache_salt that would keep them apart: ask another path")
    if not asgi.is_json(scope):
        return _refused("only a body of application/json without a content-encoding can be kept apart: send such a one")
    return None


async def refuse_socket(scope: Scope, receive: Receive, send: Send) -> None:
    """A WebSocket's prompts come in messages, without a salt: it is not opened."""
    socket = WebSocket(scope, receive, send)
    if "websocket.http.response" in scope.get("extensions", {}):
        await socket.send_denial_response(_refused("a WebSocket's prompts cannot be kept apart: ask another path"))
    else:
        await socket.close(1008)


def _refused(why: str) -> JSONResponse:
    said = f"router.tenant_cache is isolated, which keeps tenants apart in the prefix cache, and {why}"
    error = {"message": f"{said}, or set `router.tenant_cache: shared`", "type": "BadRequestError", "code": 400}
    return JSONResponse({"error": {**error, "param": None}}, 400)
