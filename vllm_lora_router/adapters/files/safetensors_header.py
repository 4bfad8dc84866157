"""What a safetensors file contains, read from its header alone: no weight is loaded.

By plain reads, not by the format's own library: that maps the file into memory, and when somebody truncates a mapped
file, as any writer that overwrites it does, the next look at it is a SIGBUS, which ends the whole process.
"""

import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

LENGTH_BYTES = 8  # in front of the header: its length, little endian
HEADER_LIMIT_BYTES = 100_000_000  # the format's own library refuses longer ones
COUNT_LIMIT = 2**64  # it counts in 64 bits

# By the format's own words. Types that do not fill bytes are packed.
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file."""

    dtype: str  # the format's own word: F32, BF16, I32, ...
    shape: tuple[int, ...]


class HeaderError(ValueError):
    """A file that is no whole safetensors file; the message says what it is, without its name."""


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of `file` by name, in the order of their data.

    Raises HeaderError when it cannot be opened, is something else, or is shorter or longer than its header says.
    """
    try:
        with open_regular(file) as opened:
            try:
                return _tensors(*_read(opened))
            except (ValueError, RecursionError) as error:
                opened.seek(0)
                if opened.read(64).startswith(b"version https://git-lfs"):
                    found = "is a Git LFS pointer, not the weights; run 'git lfs pull' where it came from"
                else:
                    found = f"is damaged or not complete ({error}); copy or download it again"
                raise HeaderError(found) from error
    except OSError as error:
        raise HeaderError(f"cannot be read ({error})") from error


def open_regular(file: Path) -> BinaryIO:
    """`file`, or what it links to, opened for reading. Raises OSError, also for what is no regular file."""
    # Without O_NONBLOCK, opening a FIFO waits for a writer that may never come.
    opened = open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise OSError(errno.EINVAL, "not a regular file", str(file))
    return opened


def _read(opened: BinaryIO) -> tuple[dict[str, Any], int]:
    # The header, and how many bytes of data follow it.
    size_bytes = os.fstat(opened.fileno()).st_size
    length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
    data_bytes = size_bytes - LENGTH_BYTES - length
    if data_bytes < 0:
        raise ValueError(f"its {size_bytes} bytes are too few for its header")
    if length > HEADER_LIMIT_BYTES:
        raise ValueError(f"its header has {length} bytes, the format allows {HEADER_LIMIT_BYTES}")
    text = opened.read(length).decode("utf-8")
    header = json.loads(
        text, object_pairs_hook=_object, parse_int=_count, parse_float=_no_number, parse_constant=_no_number
    )
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header, data_bytes


def _tensors(header: dict[str, Any], data_bytes: int) -> dict[str, Tensor]:
    _check_metadata(header.pop("__metadata__", None))
    _check_text(header)
    entries = sorted((*_offsets(name, entry), name) for name, entry in header.items())
    tensors: dict[str, Tensor] = {}
    reached = 0
    for start, end, name in entries:
        tensor = Tensor(header[name]["dtype"], tuple(header[name]["shape"]))
        if start != reached or (end - start) * 8 != _bits(tensor):
            raise ValueError(f"the data of {name!r} is not where its header says")
        tensors[name] = tensor
        reached = end
    if reached != data_bytes:
        raise ValueError(f"its header tells of {reached} bytes of data, {data_bytes} follow it")
    return tensors


def _offsets(name: str, entry: object) -> tuple[int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            # A bool is an int to Python.
            if dtype in BITS and all(type(number) is int for number in (*shape, start, end)):
                return start, end
    raise ValueError(f"its header has no type, shape and place that make sense for {name!r}")


def _bits(tensor: Tensor) -> int:
    bits = 1
    for factor in (*tensor.shape, BITS[tensor.dtype]):
        bits *= factor
        if bits >= COUNT_LIMIT:
            # Not only since no file is as large: the product of a long enough list would take for ever.
            raise ValueError(f"it has a tensor of {len(tensor.shape)} dimensions that is too large for any file")
    return bits


def _check_metadata(metadata: object) -> None:
    match metadata:
        case None:
            return
        case dict() if all(isinstance(value, str) for value in metadata.values()):
            _check_text((*metadata.keys(), *metadata.values()))
        case _:
            raise ValueError("its __metadata__ is no object of strings")


def _object(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    # Of two equal keys, readers take the first, the last, or none.
    found = dict(pairs)
    if len(found) != len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"its header has {key!r} twice")
    return found


def _check_text(strings: Iterable[str]) -> None:
    # JSON can write half a surrogate pair, which is no text: the format's library refuses it.
    "".join(strings).encode("utf-8")


def _count(text: str) -> int:
    number = int(text)
    if text.startswith("-") or number >= COUNT_LIMIT:
        raise ValueError(f"its header has the number {text[:32]}")
    return number


def _no_number(text: str) -> float:
    raise ValueError(f"its header has the number {text[:32]}")
