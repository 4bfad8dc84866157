"""Leases: a request holds one on the adapter version that serves it."""

from collections.abc import Callable

from vllm_lora_router.adapters.runtime.slot_scheduler import SlotScheduler
from vllm_lora_router.adapters.runtime.version_log import Version


class LeaseRefusedError(Exception):
    """The adapter cannot serve a request; the message says why."""


class AdapterUnavailableError(LeaseRefusedError):
    """The adapter cannot serve now: a resource of the server has run out, or its files are being written.

    The reason is not in the adapter's files, so a later request may succeed.
    """


class SourceNotAnsweringError(AdapterUnavailableError):
    """The file system of the adapter's files does not answer."""


class MayNotExistError(SourceNotAnsweringError):
    """It is not known whether the adapter exists, because a source does not answer."""


class UnknownAdapterError(LeaseRefusedError):
    """No adapter has this name."""


class OtherTenantsAdapterError(LeaseRefusedError):
    """The adapter belongs to another tenant, and neither this tenant nor all tenants have one of this name."""


class Lease:
    """A lease on one adapter version. The version is not retired until the lease is released."""

    def __init__(
        self, version: Version, model: str, release_version: Callable[[Version], None], slot_scheduler: SlotScheduler
    ) -> None:
        """
        Args:
            model: the value of the request's `model` with which vLLM answers it by this version.
            release_version: called once when the lease is released.
        """
        self.version = version
        self.model = model
        self._release_version: Callable[[Version], None] | None = release_version
        self._slot_scheduler = slot_scheduler
        self._has_slot = False
        self._is_pinned = False

    async def acquire_slot(self) -> None:
        """Wait until the version has a slot."""
        if self._release_version is not None and not self._has_slot:
            await self._slot_scheduler.acquire(self.version.id)
            self._has_slot = True

    def release(self) -> None:
        """Release the slot and the version. Calling it again has no effect."""
        release_version, self._release_version = self._release_version, None
        if release_version is not None:
            try:
                if self._has_slot:
                    self._slot_scheduler.release(self.version.id)
            finally:
                if not self._is_pinned:
                    release_version(self.version)

    def pin(self) -> None:
        """Keep the version for as long as the server runs: it is used for an unknown time after the response."""
        self._is_pinned = True
