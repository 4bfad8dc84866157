"""An adapter folder that changes while a server uses it: files are swapped, overwritten, truncated and deleted."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from vllm_lora_router.tools.demo.many import ManyAdapters

from .traffic import ChatResult


@dataclass(frozen=True)
class Change:
    """A change of the folder. `number` is the adapter that it contains from then on, None if it has no valid one."""

    number: int | None
    at: float
    kind: str
    keeps_previous: bool  # broken files are rejected, so the previous version is still served


class ChangingAdapter:
    """The folder of one adapter under a source. Every change puts another adapter into it."""

    def __init__(self, folder: Path, many: ManyAdapters, numbers: Iterator[int]) -> None:
        self.folder, self._many, self._numbers = folder, many, numbers
        self._contents = folder.parent / f".contents-{folder.name}"
        self._kinds = cycle(("link", "overwrite", "truncate", "rename", "recreate", "link", "link", "overwrite"))
        self.changes: list[Change] = []
        self.swaps = 0
        self._link()

    def swap(self) -> None:
        """Change the content in the next of several ways."""
        self.swaps += 1
        getattr(self, f"_{next(self._kinds)}")()

    @property
    def latest(self) -> int:
        """The number of the last valid adapter in the folder."""
        return next(change.number for change in reversed(self.changes) if change.number is not None)

    def is_valid(self, result: ChatResult, numbers: dict[str, int], base_answer: str, lag_s: float) -> bool:
        """Return whether a response has the answer of an adapter that was in the folder during the request.

        Args:
            numbers: answer -> number of its adapter.
            base_answer: the answer where there is no adapter.
            lag_s: for how long after a change the adapter before it may answer.
        """
        effective = [change for change in self.changes if not change.keeps_previous]
        ends = [*(change.at for change in effective[1:]), float("inf")]
        for change, end in zip(effective, ends, strict=True):
            if change.at <= result.ended and result.began <= end + lag_s:
                if change.number is None and result.text == base_answer:
                    return True
                if change.number is not None and numbers.get(result.text) == change.number:
                    return True
        return False

    def _write(self) -> tuple[int, Path]:
        number = next(self._numbers)
        content = self._contents / str(number)
        self._many.write(number, content)
        return number, content

    def _link(self) -> None:
        """Replace a symbolic link, as Kubernetes does for a ConfigMap and git-sync for a checkout."""
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
        self._note(None, "truncate", keeps_previous=True)
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

    def _note(self, number: int | None, kind: str, *, keeps_previous: bool = False) -> None:
        self.changes.append(Change(number, time.monotonic(), kind, keeps_previous))
