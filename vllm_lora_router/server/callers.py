"""Who asks: what a request says of it in its headers and its body."""

from functools import lru_cache

from starlette.types import Scope

from vllm_lora_router.config.schema import USER_PLACES
from vllm_lora_router.requests import body
from vllm_lora_router.requests.shape import Members
from vllm_lora_router.routing.router import Router
from vllm_lora_router.routing.sticky import digest
from vllm_lora_router.server import wire
from vllm_lora_router.values import Caller


def caller_of(router: Router, scope: Scope, members: Members) -> Caller:
    """The caller as `router.tenant` and `router.ab.key` look for it."""
    shown = wire.header(scope, b"authorization") or wire.header(scope, b"x-api-key")
    said: dict[str, str] = {}
    for place in router.places:
        if (value := _said(place, scope, members)) is not None:
            said[place] = value
    return Caller(
        tenant=wire.text_header(scope, router.tenant_header),
        fingerprint=None if shown is None else _fingerprint(router.salt, shown),
        said=said,
        user=_user(scope, members) if router.asks_tool else None,
        headers={name: value for name, key in router.forwarded if (value := wire.text_header(scope, key)) is not None},
    )


def _user(scope: Scope, members: Members) -> str | None:
    return next((value for place in USER_PLACES if (value := _said(place, scope, members)) is not None), None)


def _said(place: str, scope: Scope, members: Members) -> str | None:
    if place.startswith("header:"):
        return wire.text_header(scope, _name(place))
    if place == "metadata.user_id":
        try:
            return body.text(body.members(members.get("metadata")).get("user_id")) or None
        except body.NotAnObject:
            return None  # vLLM will refuse it
    return body.text(members.get(place)) or None


@lru_cache(maxsize=64)
def _name(place: str) -> bytes:
    return place.removeprefix("header:").lower().encode()


@lru_cache(maxsize=4096)
def _fingerprint(salt: str, shown: bytes) -> str:
    return digest(salt, "client", shown.removeprefix(b"Bearer ").decode("latin-1"))[:12]
