"""Resolve adapter names to files under one configuration, and decide which adapters a client may request by name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from vllm_lora_router.adapters.files.sources import Source
from vllm_lora_router.adapters.runtime.version_log import AdapterKey
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.config.yaml_document import ConfigError, Problem

ClientMayName = Literal["all", "own", "none"]


@dataclass(frozen=True, slots=True)
class DeclaredFolder:
    """An adapter that the configuration or the command line declares."""

    folder: Path
    is_3d: bool = False  # vLLM's `is_3d_lora_weight`


@dataclass(frozen=True, slots=True)
class Location:
    """The location of one adapter's files, and how they are read."""

    folder: Path
    is_declared: bool  # by name; otherwise it was found in a source, and ceases to exist with its folder
    is_copied: bool  # the engine reads a snapshot; otherwise it reads this folder
    is_watched: bool  # its files may change
    is_3d: bool = False
    boundary: Path | None = None  # the folder that its real files must be in; None for declared adapters


@dataclass(frozen=True)
class Resolver:
    """Resolves names: declared adapters first, then the sources in their order."""

    declared: Mapping[str, DeclaredFolder]
    sources: tuple[Source, ...] = ()
    snapshot: bool = True
    watch: bool = True
    client_may_name: ClientMayName = "all"

    @property
    def by_tenant(self) -> bool:
        """Whether tenants have adapters of their own."""
        return any(source.by_tenant for source in self.sources)

    @classmethod
    def from_config(
        cls, loaded: LoadedConfig, declared: Mapping[str, DeclaredFolder], *, one_node: bool = True
    ) -> "Resolver":
        """Create the resolver of a configuration.

        Args:
            declared: all adapters of this base model that the configuration or the command line declares.
            one_node: all engines run on this process's node. Otherwise each reads its own disk, where snapshots and
                adapters that arrive later do not exist.

        Raises:
            ConfigError: a source is neither a folder nor a template, or cannot be used on several nodes.
        """
        settings = loaded.config.router.adapters
        sources: list[Source] = []
        problems: list[Problem] = []
        for index, source in enumerate(settings.sources):
            path = ("router", "adapters", "sources", index)
            try:
                sources.append(Source.parse(source.path, source.immutable, base=loaded.file.parent))
            except ValueError as error:
                problems.append(loaded.document.problem(path, str(error)))
        if sources and not one_node:
            text = (
                "adapters cannot be added at run time when the engine runs on several nodes, because the other nodes "
                "do not have their files; declare them under model_config.<base>.loras with a path that exists on "
                "every node"
            )
            problems.append(loaded.document.problem(("router", "adapters", "sources"), text))
        if problems:
            raise ConfigError(problems)
        is_copied = settings.snapshot == "auto" and one_node
        return cls(declared, tuple(sources), is_copied, one_node, settings.client_may_name)

    def locate(self, key: AdapterKey) -> Location | None:
        """Return the location of the adapter's files; None if there are none. Reads the disk.

        Raises:
            NotAllowedError: the name is not allowed, or its files are outside of the source.
        """
        if key.tenant is None and (declared := self.declared.get(key.name)) is not None:
            return Location(declared.folder, True, self.snapshot, self.watch, declared.is_3d)
        for source in self.sources:
            if source.by_tenant == (key.tenant is not None) and (folder := source.find(key.name, key.tenant)):
                is_mutable = not source.immutable
                return Location(
                    folder,
                    False,
                    self.snapshot and is_mutable,
                    self.watch and is_mutable,
                    boundary=source.boundary(key.name, key.tenant),
                )
        return None

    def keys(self, name: str, tenant: str | None) -> Iterator[AdapterKey]:
        """Yield the adapters that `name` may mean for a tenant: its own adapter first, then the shared one."""
        # A tenant's own adapter is a folder name. A name with a slash, such as "acme/medical", can only be shared.
        if tenant is not None and "/" not in name + tenant and self.by_tenant:
            yield AdapterKey(name, tenant)
        yield AdapterKey(name)

    def tenants_with(self, name: str) -> frozenset[str]:
        """Return tenants that have an adapter of this name. Searches the folders of all tenants.

        At most two tenants of each source are returned: enough to tell whether another tenant has one.
        """
        return frozenset(chain.from_iterable(islice(source.tenants(name), 2) for source in self.sources))

    def tenant_of(self, full_name: str) -> str | None:
        """Return the tenant that owns an adapter's full name, such as acme for "acme/medical". Reads the disk."""
        tenant, _, name = full_name.partition("/")
        return tenant if any(source.by_tenant and source.contains(name, tenant) for source in self.sources) else None

    def client_may_request(self, key: AdapterKey) -> bool:
        """Return whether a client may request this adapter by name.

        A tenant's own adapter is not checked against the tenant: `keys` yields it to that tenant only.
        """
        return self.client_may_name == "all" or (self.client_may_name == "own" and key.tenant is not None)

    def adapters(self, tenant: str | None, *, everything: bool = False) -> list[AdapterKey]:
        """Return all adapters that exist now and that this tenant may request by name. Reads the disk.

        Args:
            everything: include the adapters that requests may only be routed to.
        """
        keys = dict.fromkeys(map(AdapterKey, self.declared))
        for source in self.sources:
            owner = tenant if source.by_tenant else None
            keys |= dict.fromkeys(AdapterKey(name, owner) for name in source.names(owner))
        return [key for key in keys if everything or self.client_may_request(key)]
