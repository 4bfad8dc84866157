"""What a safetensors file contains, read from its header alone: no weight is loaded."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file."""

    dtype: str  # the format's own word: F32, BF16, I32, ...
    shape: tuple[int, ...]


class HeaderError(ValueError):
    """A file that is no whole safetensors file; the message says what it is, without its name."""


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of `file` by name.

    Raises HeaderError when it cannot be opened, is something else, or is shorter or longer than its header says.
    """
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = ((key, opened.get_slice(key)) for key in opened.keys())  # noqa: SIM118
            return {key: Tensor(part.get_dtype(), tuple(part.get_shape())) for key, part in slices}
    except OSError as error:
        raise HeaderError(f"cannot be read ({error})") from error
    except SafetensorError as error:
        if _is_lfs_pointer(file):
            raise HeaderError("is a Git LFS pointer, not the weights; run 'git lfs pull' where it came from") from error
        raise HeaderError(f"is damaged or not complete ({error}); copy or download it again") from error


def _is_lfs_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(64).startswith(b"version https://git-lfs")
