"""A JSON object whose values stay the client's bytes until one is read or written.

A raw value is a `msgspec.Raw`, a view into the request's body, or bytes of our own: an image of tens of megabytes is
neither parsed nor copied until the edited body is joined.
"""

import codecs
import json
from collections.abc import Sequence
from typing import Any

import msgspec
from pydantic import TypeAdapter

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(list[msgspec.Raw])
# What vLLM takes for true is what pydantic does.
_bool = TypeAdapter(bool)
_encode = msgspec.json.Encoder().encode


class NotAnObject(ValueError):
    """The bytes are not a JSON object; vLLM says so better than we could."""


class Pieces(list[Any]):
    """Raw JSON in pieces that are not joined yet: of tens of megabytes there is no copy until the whole body is."""


def runs_on(members: dict[str, Any]) -> bool:
    """Whether the request goes on after its response ended: a Responses request in the background."""
    if "background" not in members:
        return False
    try:
        return _bool.validate_python(read(members["background"]))
    except ValueError:
        return False  # vLLM will refuse it


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


def whole(content: bytes) -> dict[str, Any]:
    """Like `fields`, for a whole body, which msgspec does not look at for bytes that are no UTF-8.

    Raises:
        NotAnObject: it is none, or holds such bytes.
    """
    found = fields(content)
    if not content.isascii():
        decoder = codecs.getincrementaldecoder(json.detect_encoding(content))("surrogatepass")
        try:
            for at in range(0, len(content), 65536):
                decoder.decode(content[at : at + 65536])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise NotAnObject(str(error)) from None
    return found


def members(raw: Any) -> dict[str, Any]:
    """Like `fields`, for what may be absent or null: then it has none."""
    return fields(raw) if says_something(raw) else {}


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
    """JSON of a value."""
    try:
        return _encode(value)
    except (UnicodeEncodeError, msgspec.MsgspecError):
        return json.dumps(value).encode()  # a lone surrogate, which a client sent


def join(members: dict[str, Any]) -> bytes:
    """A JSON object of raw members, in their order, as bytes."""
    return b"".join(join_object(members))


def join_object(members: dict[str, Any]) -> Pieces:
    """A JSON object of raw members, in their order."""
    parts = Pieces()
    for key, raw in members.items():
        parts += (b"," if parts else b"{", dump(key), b":")
        if isinstance(raw, Pieces):
            parts += raw
        else:
            parts.append(raw)
    parts.append(b"}" if parts else b"{}")
    return parts


def join_list(raws: Sequence[Any]) -> Pieces:
    """A JSON list of raw items."""
    if not raws:
        return Pieces([b"[]"])
    parts = Pieces([b","] * (2 * len(raws) + 1))
    parts[0], parts[1::2], parts[-1] = b"[", raws, b"]"
    if Pieces in map(type, raws):
        parts = Pieces(piece for part in parts for piece in (part if isinstance(part, Pieces) else (part,)))
    return parts


def with_first(raw: Any, item: bytes) -> Pieces | None:
    """A raw list with one more item at its beginning, whose own items are not looked at; None when it is no list."""
    view = memoryview(raw)
    if bytes(view[:1]) != b"[":
        return None
    rest = bytes(view[1:64]).lstrip() or bytes(view[1:]).lstrip()
    return Pieces([b"[", item, b"" if rest.startswith(b"]") else b",", view[1:]])


def says_something(raw: Any) -> bool:
    """Whether a raw member is there and not null."""
    return raw is not None and bytes(memoryview(raw)[:5]) != b"null"


def text(raw: Any) -> str | None:
    """The value of a raw member that is a string; None for any other, and for one that is no UTF-8."""
    if raw is None or bytes(memoryview(raw)[:1]) != b'"':
        return None
    try:
        return read(raw)
    except ValueError:
        return None


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()
