"""A folder whose adapter is swapped, overwritten, truncated and deleted, and what may be answered meanwhile."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from vllm_lora_router.tools.demo.many import ManyAdapters

from .traffic import Asked

# From a change of files to answers by what lies there now, in every process: quiet for half a second, looked at each
# second, told to the others each fifth of one, and loaded in turn.
LAG_S = 4.0


@dataclass(frozen=True)
class Placed:
    """A content that lay in the folder from a moment on; None is nothing, or nothing whole."""

    number: int | None
    at: float
    how: str
    keeps: bool  # what was there before goes on serving: files that are broken are not taken


class SwappedAdapter:
    """One adapter's folder under a source, with another content each time."""

    def __init__(self, folder: Path, many: ManyAdapters, numbers: Iterator[int]) -> None:
        self.folder, self._many, self._numbers = folder, many, numbers
        self._contents = folder.parent / f".contents-{folder.name}"
        self._ways = cycle(("link", "overwrite", "truncate", "rename", "recreate", "link", "link", "overwrite"))
        self.placed: list[Placed] = []
        self.swaps = 0
        self._link()

    def swap(self) -> None:
        """Changes the content in the next of several ways."""
        self.swaps += 1
        getattr(self, f"_{next(self._ways)}")()

    def delete(self) -> None:
        self._note(None, "delete", keeps=False)
        self._remove()

    def create(self) -> None:
        self._link()

    @property
    def now(self) -> int:
        """What lies there, or lay there before files were broken."""
        return next(one.number for one in reversed(self.placed) if one.number is not None)

    def is_right(self, asked: Asked, answers: dict[str, int], without: str) -> bool:
        """Whether an answer is that of a content which lay there while it was asked for, or shortly before.

        `without` is what is answered where there is no adapter.
        """
        for place, one in enumerate(self.placed):
            if one.keeps:
                continue
            later = [other for other in self.placed[place + 1 :] if not other.keeps]
            gone = later[0].at if later else float("inf")
            if one.at <= asked.ended and asked.began <= gone + LAG_S:
                wanted = without if one.number is None else None
                if asked.text == wanted or (one.number is not None and answers.get(asked.text) == one.number):
                    return True
        return False

    def _write(self) -> tuple[int, Path]:
        number = next(self._numbers)
        content = self._contents / str(number)
        self._many.write(number, content)
        return number, content

    def _link(self) -> None:
        """As Kubernetes swaps what a ConfigMap or a git-sync holds."""
        number, content = self._write()
        if self.folder.is_dir() and not self.folder.is_symlink():
            self._remove()
        draft = self.folder.with_name(f".{self.folder.name}.new")
        draft.symlink_to(content.relative_to(self.folder.parent))
        self._note(number, "link")
        draft.replace(self.folder)

    def _rename(self) -> None:
        number, content = self._write()
        self._note(number, "rename")
        self._remove()
        content.rename(self.folder)

    def _overwrite(self) -> None:
        number, content = self._write()
        self._note(number, "overwrite")
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            with (self.folder / name).open("r+b") as file:
                file.truncate(0)
                file.write((content / name).read_bytes())

    def _truncate(self) -> None:
        self._note(None, "truncate", keeps=True)
        with (self.folder / "adapter_model.safetensors").open("r+b") as file:
            file.truncate(1000)

    def _recreate(self) -> None:
        number, content = self._write()
        self._note(number, "recreate")
        self._remove()
        shutil.copytree(content, self.folder)

    def _remove(self) -> None:
        if self.folder.is_symlink():
            self.folder.unlink()
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _note(self, number: int | None, how: str, *, keeps: bool = False) -> None:
        self.placed.append(Placed(number, time.monotonic(), how, keeps))
