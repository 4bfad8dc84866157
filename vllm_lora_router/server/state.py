"""State that the middleware and the API routes share: the active router, the adapters and the recorder."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from vllm_lora_router.observability.recorder import Recorder
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.admin_key import AdminKeys
from vllm_lora_router.server.drain import Drain
from vllm_lora_router.server.guard import ApiKeys
from vllm_lora_router.server.reload import ConfigReloader
from vllm_lora_router.server.tenants import TenantKeys


class Lease(Protocol):
    """A lease on one adapter version, which stays unchanged until the lease is released."""

    model: str  # the `model` value that makes the engine use this version

    @property
    def version(self) -> "Version": ...

    async def acquire_slot(self) -> None:
        """Wait until the version has a slot."""
        ...

    def release(self) -> None:
        """End the lease."""
        ...

    def pin(self) -> None:
        """Keep the version until the server stops, because the request may use it after its response has ended."""
        ...


class Version(Protocol):
    """One version of an adapter's content."""

    @property
    def engine_name(self) -> str:
        """The name of the version in vLLM, which is also the `model` of its answers."""
        ...

    @property
    def digest(self) -> str:
        """The digest of the content."""
        ...


class Adapters(Protocol):
    """The adapters of this server under their public names."""

    def lease_now(
        self, name: str, tenant: str | None, *, by_client: bool = False, require_loaded: bool = True
    ) -> Lease | None:
        """Return a lease on an adapter that can serve without waiting, or None.

        Args:
            name: the adapter's public name.
            tenant: the tenant of the request.
            by_client: whether the client named the adapter itself, which `client_may_name` can forbid.
            require_loaded: whether the adapter must be in the engine's memory. False: it is enough that it is known.
        """
        ...

    async def lease(self, name: str, tenant: str | None, *, by_client: bool = False) -> Lease:
        """Return a lease on an adapter. Find, validate, copy and load the adapter first where necessary.

        Raises:
            OtherTenantsAdapterError: the adapter belongs to another tenant. Not raised when `by_client` is set.
            AdapterUnavailableError: the adapter cannot serve now: a resource of the server has run out, or a file
                system does not answer.
            LeaseRefusedError: the adapter does not exist or cannot be served.
        """
        ...

    async def can_serve(self, name: str, tenant: str | None) -> bool:
        """Return whether `lease` would probably succeed, without loading the adapter."""
        ...

    async def belongs_to_other_tenant(self, name: str, tenant: str | None) -> bool:
        """Return whether the adapter exists and only another tenant can use it."""
        ...

    async def names(self, tenant: str | None) -> Sequence[str]:
        """Return the names of the adapters that clients of this tenant can use."""
        ...

    def owns(self, engine_name: str) -> bool:
        """Return whether the router has registered this name in vLLM."""
        ...

    def health(self) -> dict[str, Any]:
        """Return how many adapters cannot be loaded now, and why, for `GET /v1/router/health`."""
        ...

    async def report(self) -> dict[str, Any]:
        """Return the state of every adapter for `GET /v1/router/adapters`."""
        ...

    def track_unknown_use(self) -> AbstractContextManager[None]:
        """Mark that a request with unknown adapters is running, so that no version is retired."""
        ...


class Serving:
    """The state of one API-server process. It is created with the app and filled when the engine is up.

    vLLM accepts requests only after that.
    """

    def __init__(self) -> None:
        self.router: Router | None = None
        self.adapters: Adapters | None = None  # None: the server runs without LoRA
        self.served_names: Sequence[str] = ()  # of the base model; the first is the `model` of its answers
        self.reloader: ConfigReloader[Any] | None = None
        self.api_keys: ApiKeys | None = None  # None: the server has no API key
        self.tenant_keys: TenantKeys | None = None  # None: the configuration has no `router.tenants`
        self.recorder = Recorder()
        self.admin_keys = AdminKeys()
        self.drain = Drain()

    def start(self, router: Router, served_names: Sequence[str], adapters: Adapters | None) -> None:
        """Put the router in effect."""
        self.served_names, self.adapters = served_names, adapters
        self.router = router
