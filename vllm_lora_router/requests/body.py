"""A JSON object whose values stay the client's bytes until one is read or written.

A raw value is a `msgspec.Raw`, a view into the request's body, or bytes of our own: an image of tens of megabytes is
neither parsed nor copied until the edited body is joined.
"""

import json
from collections.abc import Iterable
from typing import Any

import msgspec

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(list[msgspec.Raw])
_encode = msgspec.json.Encoder().encode


class NotAnObject(ValueError):
    """The bytes are not a JSON object; vLLM says so better than we could."""


class _Model(msgspec.Struct):
    # Only this field is looked at; msgspec skips the others without making objects of them.
    model: msgspec.Raw | None = None


_model = msgspec.json.Decoder(_Model)


def model_of(content: bytes) -> str | None:
    """The `model` of a JSON object, without parsing the rest; None when it has none or is no such object."""
    try:
        raw = _model.decode(content).model
        return _text(None if raw is None else read(raw))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    try:
        return _text(json.loads(content).get("model"))
    except (ValueError, AttributeError, RecursionError):
        return None


def runs_on(content: bytes) -> bool:
    """Whether the request goes on after its response ended: a Responses request in the background."""
    return b'"background"' in content and read(fields(content).get("background", b"false")) is True


def read(raw: Any) -> Any:
    """The value of raw JSON."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return json.loads(bytes(raw))  # NaN and lone surrogates, which vLLM takes as well


def fields(raw: Any) -> dict[str, Any]:
    """The members of a raw JSON object, each still raw; the last of two equal keys counts, as it does for vLLM.

    Raises:
        NotAnObject: it is not one.
    """
    try:
        return dict(_fields.decode(raw))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        value = json.loads(bytes(raw))  # UTF-16, a byte-order mark, NaN, lone surrogates
    except (ValueError, RecursionError) as error:
        raise NotAnObject(str(error)) from None
    if not isinstance(value, dict):
        raise NotAnObject(f"a {type(value).__name__}")
    return {key: _dump(member) for key, member in value.items()}


def items(raw: Any) -> list[Any] | None:
    """The items of a raw JSON list, each still raw; None when it is no list."""
    try:
        return list(_items.decode(raw))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        value = json.loads(bytes(raw))
    except (ValueError, RecursionError):
        return None
    return [_dump(item) for item in value] if isinstance(value, list) else None


def dump(value: Any) -> bytes:
    """JSON of a value of ours."""
    return _encode(value)


def join_object(members: dict[str, Any]) -> bytes:
    """A JSON object of raw members, in their order."""
    parts: list[Any] = []
    for key, raw in members.items():
        parts += (b"," if parts else b"{", _key(key), b":", raw)
    return b"".join([*parts, b"}"]) if parts else b"{}"


def join_list(raws: Iterable[Any]) -> bytes:
    """A JSON list of raw items."""
    parts: list[Any] = []
    for raw in raws:
        parts += (b"," if parts else b"[", raw)
    return b"".join([*parts, b"]"]) if parts else b"[]"


def _key(key: str) -> bytes:
    try:
        return _encode(key)
    except (UnicodeEncodeError, msgspec.MsgspecError):
        return json.dumps(key).encode()  # a key with a lone surrogate


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
