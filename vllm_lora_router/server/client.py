"""Who asks: what a request says of it in its headers and its body."""

from collections.abc import Mapping
from functools import lru_cache

from starlette.types import Scope

from vllm_lora_router.config.schema import USER_PLACES
from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import Members
from vllm_lora_router.routing.ab_assignment import digest
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server import asgi
from vllm_lora_router.types import ANONYMOUS, Client

Headers = Mapping[bytes, bytes]


def client_of(router: Router, scope: Scope, members: Members) -> Client:
    """The caller as `router.tenant` and `router.ab.key` look for it."""
    headers: Headers = dict(reversed(scope["headers"]))  # of two of a name the first counts
    shown = headers.get(b"authorization") or headers.get(b"x-api-key")
    tenant = asgi.as_text(headers.get(router.tenant_header)) if router.tenant_header else None
    said: dict[str, str] = {}
    for place in router.places:
        if (value := _said(place, headers, members)) is not None:
            said[place] = value
    if not (shown or tenant or said or router.asks_tool):
        return ANONYMOUS
    return Client(
        tenant=tenant,
        api_key_fingerprint=_fingerprint(router.salt, shown) if shown else None,
        ab_keys=said,
        user=_user(headers, members) if router.asks_tool else None,
        headers={
            name: value for name, key in router.forwarded if (value := asgi.as_text(headers.get(key))) is not None
        },
    )


def _user(headers: Headers, members: Members) -> str | None:
    return next((value for place in USER_PLACES if (value := _said(place, headers, members)) is not None), None)


def _said(place: str, headers: Headers, members: Members) -> str | None:
    if place.startswith("header:"):
        return asgi.as_text(headers.get(_name(place)))
    if place == "metadata.user_id":
        if (metadata := members.get("metadata")) is None:
            return None
        try:
            return json_edit.text(json_edit.members(metadata).get("user_id")) or None
        except json_edit.NotAnObject:
            return None  # vLLM will refuse it
    raw = members.get(place)
    return None if raw is None else json_edit.text(raw) or None


@lru_cache(maxsize=64)
def _name(place: str) -> bytes:
    return place.removeprefix("header:").lower().encode()


@lru_cache(maxsize=4096)
def _fingerprint(salt: str, shown: bytes) -> str:
    return digest(salt, "client", shown.removeprefix(b"Bearer ").decode("latin-1"))[:12]
