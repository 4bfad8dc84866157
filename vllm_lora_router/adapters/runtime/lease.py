"""What a request holds while it is served."""

from typing import Protocol

from vllm_lora_router.adapters.runtime.slot_scheduler import Slots
from vllm_lora_router.adapters.runtime.version_log import Version


class NotLeased(Exception):
    """An adapter that cannot serve a request; the message says why."""


class UnknownAdapter(NotLeased):
    """No adapter has this name."""


class AnothersAdapter(NotLeased):
    """The adapter is another tenant's, and neither this one's nor everybody's."""


class Shelf(Protocol):
    """Where versions come from and go back to."""

    def let_go(self, version: Version) -> None: ...


class Lease:
    """A version that stays until the lease is released."""

    def __init__(self, version: Version, model: str, shelf: Shelf, slots: Slots) -> None:
        self.version = version
        self.model = model  # what the request's `model` must be for vLLM to answer it by this version
        self._shelf: Shelf | None = shelf
        self._slots = slots
        self._entered = False
        self._kept = False

    async def enter(self) -> None:
        """Returns when the version has a slot."""
        if self._shelf is not None and not self._entered:
            await self._slots.enter(self.version.id)
            self._entered = True

    def release(self) -> None:
        shelf, self._shelf = self._shelf, None
        if shelf is not None:
            try:
                if self._entered:
                    self._slots.leave(self.version.id)
            finally:
                if not self._kept:
                    shelf.let_go(self.version)

    def keep(self) -> None:
        """The version stays for as long as the server runs: it is used for longer than anybody can see."""
        self._kept = True
