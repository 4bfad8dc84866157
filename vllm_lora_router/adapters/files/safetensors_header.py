"""Read the header of a safetensors file, which describes its tensors, without loading weights.

This uses plain reads, not the format's own library. The library maps the file into memory: if another program truncates
a mapped file, as any writer that overwrites it does, the next access raises SIGBUS, which ends the whole process.
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

LENGTH_BYTES = 8  # the length of the header, little endian, precedes it
HEADER_LIMIT_BYTES = 100_000_000  # the format's own library refuses longer headers
COUNT_LIMIT = 2**64  # the library counts in 64 bits

# Size of an element by the format's dtype. Dtypes below 8 bits are packed.
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

    dtype: str  # the format's name: F32, BF16, I32, ...
    shape: tuple[int, ...]


class HeaderError(ValueError):
    """The file is not a complete safetensors file; the message gives the reason without the file's name."""


def read_header(file: Path) -> dict[str, Tensor]:
    """Return the tensors of `file` by name, in the order of their data.

    Raises:
        HeaderError: the file cannot be read, is not a safetensors file, or is shorter or longer than its header says.
    """
    try:
        with open_regular(file) as opened:
            try:
                return _tensors(*_read(opened))
            except (ValueError, RecursionError) as error:
                opened.seek(0)
                if opened.read(64).startswith(b"version https://git-lfs"):
                    problem = "is a Git LFS pointer, not the weights; run 'git lfs pull' in its repository"
                else:
                    problem = f"is damaged or incomplete ({error}); copy or download it again"
                raise HeaderError(problem) from error
    except OSError as error:
        raise HeaderError(f"cannot be read ({error})") from error


def open_regular(file: Path) -> BinaryIO:
    """Open `file`, or the file that it links to, for reading.

    Raises:
        OSError: the file cannot be opened or is not a regular file.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer, possibly for ever.
    opened = open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise OSError(errno.EINVAL, "not a regular file", str(file))
    return opened


def _read(opened: BinaryIO) -> tuple[dict[str, Any], int]:
    # Returns the header and the number of data bytes after it.
    size_bytes = os.fstat(opened.fileno()).st_size
    length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
    data_bytes = size_bytes - LENGTH_BYTES - length
    if data_bytes < 0:
        raise ValueError(f"its {size_bytes} bytes are fewer than its header needs")
    if length > HEADER_LIMIT_BYTES:
        raise ValueError(f"its header has {length} bytes, but the format allows at most {HEADER_LIMIT_BYTES}")
    text = opened.read(length).decode("utf-8")
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
        tensor = Tensor(header[name]["dtype"], tuple(header[name]["shape"]))
        if start != position or (end - start) * 8 != _bits(tensor):
            raise ValueError(f"the data of {name!r} is not where its header says")
        tensors[name] = tensor
        position = end
    if position != data_bytes:
        raise ValueError(f"its header describes {position} bytes of data, but {data_bytes} follow it")
    return tensors


def _offsets(name: str, entry: object) -> tuple[int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            # In Python, a bool is an int.
            if dtype in BITS and all(type(number) is int for number in (*shape, start, end)):
                return start, end
    raise ValueError(f"its header has no valid dtype, shape and data_offsets for {name!r}")


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


def _object(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    # Readers differ in which of two equal keys they use, so equal keys are refused.
    members = dict(pairs)
    if len(members) != len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"its header has {key!r} twice")
    return members


def _check_text(strings: Iterable[str]) -> None:
    # JSON can encode a lone surrogate, which is not valid text: the format's library refuses it.
    "".join(strings).encode("utf-8")


def _count(text: str) -> int:
    number = int(text)
    if text.startswith("-") or number >= COUNT_LIMIT:
        raise ValueError(f"its header has the number {text[:32]}")
    return number


def _no_number(text: str) -> float:
    raise ValueError(f"its header has the number {text[:32]}")
