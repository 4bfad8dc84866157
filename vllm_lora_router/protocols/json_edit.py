"""Read and edit members of a JSON object while all other members keep the client's bytes.

A raw value is a `msgspec.Raw`, which is a view into the request's body, or bytes. An image of tens of megabytes is
therefore neither parsed nor copied until the edited body is joined.
"""

import codecs
import json
from collections.abc import Sequence
from typing import Any

import msgspec
from pydantic import TypeAdapter

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(list[msgspec.Raw])
# vLLM validates booleans with Pydantic.
_bool = TypeAdapter(bool)
_encode = msgspec.json.Encoder().encode


class NotAnObjectError(ValueError):
    """The bytes are not a JSON object. The request is passed on, because vLLM returns the better error."""


class RawPieces(list[Any]):
    """Raw JSON in pieces. They are joined together with the whole body, so that large values are copied only once."""


def runs_in_background(members: dict[str, Any]) -> bool:
    """Return whether the request continues after its response has ended: a Responses request in the background."""
    if "background" not in members:
        return False
    try:
        return _bool.validate_python(decode(members["background"]))
    except ValueError:
        return False  # vLLM will refuse it


def decode(raw: Any) -> Any:
    """Return the value of raw JSON."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return json.loads(bytes(raw))  # NaN and lone surrogates, which vLLM accepts too


def object_members(raw: Any) -> dict[str, Any]:
    """Return the raw members of a raw JSON object. Of two equal keys the last counts, as in vLLM.

    Raises:
        NotAnObjectError: the JSON is invalid or not an object.
    """
    try:
        return dict(_fields.decode(raw))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        value = json.loads(bytes(raw))  # UTF-16, a byte-order mark, NaN, lone surrogates
    except (ValueError, RecursionError) as error:
        raise NotAnObjectError(str(error)) from None
    if not isinstance(value, dict):
        raise NotAnObjectError(f"a {type(value).__name__}")
    return {key: _dump(member) for key, member in value.items()}


def body_members(content: bytes) -> dict[str, Any]:
    """Return the raw members of a body, like `object_members`, and validate its encoding, which msgspec does not.

    Raises:
        NotAnObjectError: the body is not a JSON object, or contains bytes that are invalid in its encoding.
    """
    result = object_members(content)
    if not content.isascii():
        decoder = codecs.getincrementaldecoder(json.detect_encoding(content))("surrogatepass")
        try:
            for start in range(0, len(content), 65536):
                decoder.decode(content[start : start + 65536])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise NotAnObjectError(str(error)) from None
    return result


def optional_members(raw: Any) -> dict[str, Any]:
    """Return the raw members of a raw JSON object, like `object_members`; none if it is missing or null."""
    return object_members(raw) if has_value(raw) else {}


def list_items(raw: Any) -> list[Any] | None:
    """Return the raw items of a raw JSON list; None if it is not a list."""
    try:
        return list(_items.decode(raw))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        value = json.loads(bytes(raw))
    except (ValueError, RecursionError):
        return None
    return [_dump(item) for item in value] if isinstance(value, list) else None


def encode(value: Any) -> bytes:
    """Return a value as JSON."""
    try:
        return _encode(value)
    except (UnicodeEncodeError, msgspec.MsgspecError):
        return json.dumps(value).encode()  # the client sent a lone surrogate


def join_members(members: dict[str, Any]) -> bytes:
    """Return a JSON object of raw members as bytes."""
    return b"".join(join_object(members))


def join_object(members: dict[str, Any]) -> RawPieces:
    """Return a JSON object of raw members in pieces."""
    parts = RawPieces()
    for key, raw in members.items():
        parts += (b"," if parts else b"{", encode(key), b":")
        if isinstance(raw, RawPieces):
            parts += raw
        else:
            parts.append(raw)
    parts.append(b"}" if parts else b"{}")
    return parts


def join_list(raws: Sequence[Any]) -> RawPieces:
    """Return a JSON list of raw items in pieces."""
    if not raws:
        return RawPieces([b"[]"])
    parts = RawPieces([b","] * (2 * len(raws) + 1))
    parts[0], parts[1::2], parts[-1] = b"[", raws, b"]"
    if RawPieces in map(type, raws):
        parts = RawPieces(piece for part in parts for piece in (part if isinstance(part, RawPieces) else (part,)))
    return parts


def prepend_item(raw: Any, item: bytes) -> RawPieces | None:
    """Return a raw list with an item added at its beginning, without parsing it; None if it is not a list."""
    view = memoryview(raw)
    if bytes(view[:1]) != b"[":
        return None
    rest = bytes(view[1:64]).lstrip() or bytes(view[1:]).lstrip()
    return RawPieces([b"[", item, b"" if rest.startswith(b"]") else b",", view[1:]])


def has_value(raw: Any) -> bool:
    """Return whether a raw member is present and not null."""
    return raw is not None and bytes(memoryview(raw)[:5]) != b"null"


def string_value(raw: Any) -> str | None:
    """Return the value of a raw string; None if it is missing, not a string or not valid UTF-8."""
    if raw is None or bytes(memoryview(raw)[:1]) != b'"':
        return None
    try:
        return decode(raw)
    except ValueError:
        return None


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()
