"""What middleware and routes share: the router in force, the engine and its adapters, and the counts."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from vllm_lora_router.observability.recorder import Recorder
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.reload import Reloading


class Lease(Protocol):
    """An adapter's version that stays as it is until the lease is released."""

    model: str  # what the request's `model` must be for the engine to answer it by this version

    @property
    def version(self) -> "Version": ...

    async def enter(self) -> None:
        """Returns when the version has a slot."""
        ...

    def release(self) -> None: ...

    def keep(self) -> None:
        """The version is used for longer than the response takes: it stays for as long as the server runs."""
        ...


class Version(Protocol):
    """One content of one adapter."""

    @property
    def engine_name(self) -> str:
        """The `model` of its answers."""
        ...

    @property
    def digest(self) -> str:
        """Of the content."""
        ...


class Adapters(Protocol):
    """The adapters of this server, as requests see them. Names are those that users know."""

    def lease_now(self, name: str, tenant: str | None, *, by_client: bool = False, loaded: bool = True) -> Lease | None:
        """A lease on an adapter that can serve at once.

        Args:
            by_client: the client itself named it, which `client_may_name` may forbid.
            loaded: its weights must be in the engine's memory; else it is enough that it is known.
        """
        ...

    async def lease(self, name: str, tenant: str | None, *, by_client: bool = False) -> Lease:
        """A lease on an adapter, which may have to be found, checked, copied and loaded first.

        Raises:
            AnothersAdapter: it is another tenant's; never where the client named it.
            NotLeased: it cannot be served, or does not exist.
        """
        ...

    async def can_serve(self, name: str, tenant: str | None) -> bool:
        """Whether `lease` would give one, as far as that can be told without loading it."""
        ...

    async def is_anothers(self, name: str, tenant: str | None) -> bool:
        """Whether there is one, and it is another tenant's alone."""
        ...

    async def names(self, tenant: str | None) -> Sequence[str]:
        """The adapters that this tenant may name."""
        ...

    def owns(self, engine_name: str) -> bool:
        """Whether vLLM has this name in its registry because of us."""
        ...

    async def report(self) -> dict[str, Any]:
        """Every adapter, where it is and what it takes, for JSON."""
        ...

    def unread(self) -> AbstractContextManager[None]:
        """While a request runs that was not looked into: no version that it may use goes away."""
        ...


class Serving:
    """Made when the app is built, filled when the engine is up; no request comes before that."""

    def __init__(self) -> None:
        self.router: Router | None = None
        self.adapters: Adapters | None = None  # None: the server has no LoRA
        self.served_names: Sequence[str] = ()  # of the base; the first is the one that answers carry
        self.reloading: Reloading[Any] | None = None
        self.record = Recorder()

    def start(self, router: Router, served_names: Sequence[str], adapters: Adapters | None) -> None:
        self.served_names, self.adapters = served_names, adapters
        self.router = router
