"""Read the header of a safetensors file, which describes its tensors, without loading weights.

The file may be damaged or made to harm: time and memory are bounded by the length of its header and the limits.

This uses plain reads, not the format's own library. The library maps the file into memory: if another program truncates
a mapped file, as any writer that overwrites it does, the next access raises SIGBUS, which ends the whole process.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vllm_lora_router.adapters.files.untrusted_file import check_json_size, open_regular, short_repr

LENGTH_BYTES = 8  # the length of the header, little endian, precedes it
HEADER_LIMIT_BYTES = 100_000_000  # the format's own library refuses longer headers
COUNT_LIMIT = 2**64  # the library counts in 64 bits
SPARE_VALUES = 100_000  # for the metadata and for tensors of more dimensions

# Size of an element by the format's dtype. Dtypes below 8 bits are packed.
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


class Tensor(NamedTuple):
    """One tensor of a file."""

    dtype: str  # the format's name: F32, BF16, I32, ...
    shape: tuple[int, ...]


class _Entry(NamedTuple):
    """A tensor and the position of its data."""

    start: int
    end: int
    tensor: Tensor


class HeaderError(ValueError):
    """The file is not a complete safetensors file; the message gives the reason without the file's name."""


@dataclass(frozen=True)
class HeaderLimits:
    """Limits that keep the time and the memory of reading a header small."""

    max_bytes: int = HEADER_LIMIT_BYTES
    max_tensors: int | None = None  # about as many; None: as many as fit


def read_header(file: Path, limits: HeaderLimits = HeaderLimits(), boundary: Path | None = None) -> dict[str, Tensor]:
    """Return the tensors of `file` by name, in the order of their data.

    Args:
        limits: the limits of the header.
        boundary: the folder that the real file must be in; None allows all.

    Raises:
        HeaderError: the file cannot be read, is not a safetensors file, is shorter or longer than its header says, or
            its header exceeds the limits.
    """
    try:
        with open_regular(file, boundary) as opened:
            try:
                return _tensors(*_read(opened, limits))
            except (ValueError, RecursionError) as error:
                opened.seek(0)
                if opened.read(64).startswith(b"version https://git-lfs"):
                    problem = "is a Git LFS pointer, not the weights; run 'git lfs pull' in its repository"
                else:
                    problem = f"is damaged or incomplete ({error}); copy or download it again"
                raise HeaderError(problem) from error
    except OSError as error:
        raise HeaderError(f"cannot be read ({error})") from error


def _read(opened: BinaryIO, limits: HeaderLimits) -> tuple[dict[str, Any], int]:
    # Returns the header and the number of data bytes after it.
    size_bytes = os.fstat(opened.fileno()).st_size
    length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
    data_bytes = size_bytes - LENGTH_BYTES - length
    if data_bytes < 0:
        raise ValueError(f"its {size_bytes} bytes are fewer than its header needs")
    if length > limits.max_bytes:
        raise ValueError(f"its header has {length} bytes, more than {limits.max_bytes}")
    encoded = opened.read(length)
    if (tensors := limits.max_tensors) is not None:
        # A tensor is an object of two lists; a matrix has six members and items, separated by commas.
        check_json_size(encoded, 3 * tensors + SPARE_VALUES, 6 * tensors + SPARE_VALUES)
    text = encoded.decode("utf-8")
    del encoded
    header = json.loads(
        text, object_pairs_hook=_object, parse_int=_count, parse_float=_no_number, parse_constant=_no_number
    )
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, data_bytes


def _tensors(header: dict[str, Any], data_bytes: int) -> dict[str, Tensor]:
    _check_metadata(header.pop("__metadata__", None))
    _check_text(header)
    entries = sorted((*_offsets(name, entry), name) for name, entry in header.items())
    tensors: dict[str, Tensor] = {}
    position = 0
    for start, end, name in entries:
        tensor = header.pop(name).tensor
        if start != position or (end - start) * 8 != _bits(tensor):
            raise ValueError(f"the data of {short_repr(name)} is not where its header says")
        tensors[name] = tensor
        position = end
    if position != data_bytes:
        raise ValueError(f"its header describes {position} bytes of data, but {data_bytes} follow it")
    return tensors


def _offsets(name: str, entry: object) -> tuple[int, int]:
    if isinstance(entry, _Entry):
        return entry.start, entry.end
    raise ValueError(f"its header has no valid dtype, shape and data_offsets for {short_repr(name)}")


def _bits(tensor: Tensor) -> int:
    bits = 1
    for factor in (*tensor.shape, BITS[tensor.dtype]):
        bits *= factor
        if bits >= COUNT_LIMIT:
            # No file is this large. Stopping here also bounds the time: the product of a long list would take too long.
            raise ValueError(f"a tensor of {len(tensor.shape)} dimensions is too large for any file")
    return bits


def _check_metadata(metadata: object) -> None:
    match metadata:
        case None:
            return
        case dict() if all(isinstance(value, str) for value in metadata.values()):
            _check_text((*metadata.keys(), *metadata.values()))
        case _:
            raise ValueError("its __metadata__ is not an object of strings")


def _object(pairs: list[tuple[str, Any]]) -> "dict[str, Any] | _Entry":
    # Readers differ in which of two equal keys they use, so equal keys are refused.
    members = dict(pairs)
    if len(members) != len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"its header has {short_repr(key)} twice")
    # Each entry is converted at once: the members of all entries together would take several times the memory.
    dtype, shape, offsets = members.get("dtype"), members.get("shape"), members.get("data_offsets")
    if (
        isinstance(dtype, str)
        and isinstance(shape, list)
        and isinstance(offsets, list)
        and dtype in BITS
        and (len(members), len(offsets)) == (3, 2)  # readers differ in what they accept in other members
        and {*map(type, shape), *map(type, offsets)} == {int}  # not isinstance: in Python, a bool is an int
    ):
        start, end = offsets
        return _Entry(start, end, Tensor(sys.intern(dtype), tuple(shape)))
    return members


def _check_text(strings: Iterable[str]) -> None:
    # JSON can encode a lone surrogate, which is not valid text: the format's library refuses it.
    for text in strings:
        text.encode("utf-8")


def _count(text: str) -> int:
    number = int(text)
    if text.startswith("-") or number >= COUNT_LIMIT:
        raise ValueError(f"its header has the number {text[:32]}")
    return number


def _no_number(text: str) -> float:
    raise ValueError(f"its header has the number {text[:32]}")
