"""Identify the client of a request from its headers and its body.

Clients choose these values, and some of them outlive the request. So their length is bounded where they are read: a
value that only identifies the client becomes a digest, and a text has a maximum length.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache

from starlette.types import Scope

from vllm_lora_router.config.schema import USER_KEY_SOURCES
from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import Members
from vllm_lora_router.routing.ab_assignment import digest
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server import asgi
from vllm_lora_router.types import ANONYMOUS, Client

Headers = Mapping[bytes, bytes]

MAX_MODEL_CHARACTERS = 1024
MAX_TENANT_CHARACTERS = 255
MAX_USER_CHARACTERS = 512
MAX_FORWARDED_BYTES = 8192  # of one header for the MCP tool; longer ones are not forwarded


def bounded(text: str, max_characters: int) -> str:
    """Return a text that is an identifier, or its digest if it is longer than any identifier in use.

    The digest keeps two long identifiers apart.
    """
    if len(text) <= max_characters:
        return text
    return f"sha256-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def client_of(router: Router, scope: Scope, members: Members) -> Client:
    """Return the client as `router.tenant`, `router.ab.key` and `mcp_category_model` identify it.

    Args:
        members: the raw members of the request's JSON object.
    """
    headers = _joined_headers(scope)
    # vLLM reads the first of several headers.
    credentials = asgi.header(scope, b"authorization") or asgi.header(scope, b"x-api-key")
    tenant = asgi.as_text(headers.get(router.tenant_header)) if router.tenant_header else None
    ab_keys: dict[str, str] = {}
    for source in router.ab_key_sources:
        if (value := _value_of(source, headers, members)) is not None:
            # The source is not part of the digest, because each API has its own field for the same user.
            ab_keys[source] = digest(router.ab_salt, value)
    if not (credentials or tenant or ab_keys or router.uses_mcp):
        return ANONYMOUS
    return Client(
        tenant=None if tenant is None else bounded(tenant, MAX_TENANT_CHARACTERS),
        api_key_fingerprint=_fingerprint(router.ab_salt, credentials) if credentials else None,
        ab_keys=ab_keys,
        user=_user(headers, members) if router.uses_mcp else None,
        headers={
            name: value
            for name, key in router.forwarded_headers
            if len(headers.get(key, b"")) <= MAX_FORWARDED_BYTES
            and (value := asgi.as_text(headers.get(key))) is not None
        },
    )


def _joined_headers(scope: Scope) -> Headers:
    """Return the headers; several of the same name are joined, so that a client's own cannot replace a gateway's."""
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        headers[name] = b"%b, %b" % (headers[name], value) if name in headers else value
    return headers


def _user(headers: Headers, members: Members) -> str | None:
    for source in USER_KEY_SOURCES:
        if (value := _value_of(source, headers, members)) is not None:
            return bounded(value, MAX_USER_CHARACTERS)
    return None


def _value_of(source: str, headers: Headers, members: Members) -> str | None:
    if source.startswith("header:"):
        return asgi.as_text(headers.get(_header_name(source)))
    if source == "metadata.user_id":
        if (metadata := members.get("metadata")) is None:
            return None
        try:
            return json_edit.string_value(json_edit.optional_members(metadata).get("user_id")) or None
        except json_edit.NotAnObjectError:
            return None  # vLLM refuses the request
    raw = members.get(source)
    return None if raw is None else json_edit.string_value(raw) or None


@lru_cache(maxsize=64)
def _header_name(source: str) -> bytes:
    return source.removeprefix("header:").lower().encode()


def _fingerprint(salt: str, credentials: bytes) -> str:
    # Not cached: a digest takes 1.5 microseconds, and a cache would keep raw credentials in memory.
    # Every spelling of "Bearer" is accepted with a key, so it must not tell two clients apart.
    scheme, _, key = credentials.partition(b" ")
    return digest(salt, "client", (key if scheme.lower() == b"bearer" else credentials).decode("latin-1"))[:12]
