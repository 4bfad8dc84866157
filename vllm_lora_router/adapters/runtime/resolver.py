"""Resolve adapter names to files under one configuration, and decide which adapters a client may request by name."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from vllm_lora_router.adapters.files.sources import Source, check_folder_name, folder_name_problem, has_files
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
    source: Path | None = None  # the root of its source; None for declared adapters
    has_files: bool = field(default=True, compare=False)  # at least one of the adapter's files exists

    @property
    def root(self) -> Path:
        """The folder whose file system holds the files."""
        return self.source or self.folder.parent


@dataclass(frozen=True)
class Resolver:
    """Resolves names: declared adapters first, then the sources in their order.

    It reads no file itself: a source may be on a file system that does not answer.
    """

    declared: Mapping[str, DeclaredFolder]
    sources: tuple[Source, ...] = ()
    snapshot: bool = True
    watch: bool = True
    client_may_name: ClientMayName = "all"
    # Names that no adapter may have: the auto names and the served names of the base model.
    reserved: Collection[str] = ()

    @property
    def declared_folders(self) -> list[Path]:
        """The folders of the declared adapters."""
        return [declared.folder for declared in self.declared.values()]

    @property
    def by_tenant(self) -> bool:
        """Whether tenants have adapters of their own."""
        return any(source.by_tenant for source in self.sources)

    @classmethod
    def from_config(
        cls,
        loaded: LoadedConfig,
        declared: Mapping[str, DeclaredFolder],
        *,
        served_names: Collection[str] = (),
        one_node: bool = True,
    ) -> "Resolver":
        """Create the resolver of a configuration.

        Args:
            declared: all adapters of this base model that the configuration or the command line declares.
            served_names: the served names of the base model.
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
        reserved = frozenset((*loaded.config.auto_names, *served_names))
        return cls(declared, tuple(sources), is_copied, one_node, settings.client_may_name, reserved)

    def declared_location(self, key: AdapterKey) -> Location | None:
        """Return the location of a declared adapter; None if it is not declared."""
        if key.tenant is not None or (declared := self.declared.get(key.name)) is None:
            return None
        return Location(declared.folder, True, self.snapshot, self.watch, declared.is_3d)

    def searches(self, key: AdapterKey) -> Iterator[tuple[Path, Callable[[], Location | None]]]:
        """Yield the root of each source that may have the adapter, and a function that searches it for the files.

        The function reads the disk, and raises `NotAllowedError` or `OSError` like `Source.find`.

        Raises:
            NotAllowedError: no source can have an adapter of this name.
        """
        for source in self.sources:
            if source.by_tenant == (key.tenant is not None):
                check_folder_name(key.name)
                yield source.root, partial(self._search, source, key)

    def _search(self, source: Source, key: AdapterKey) -> Location | None:
        folder = source.find(key.name, key.tenant)
        if folder is None:
            return None
        is_mutable = not source.immutable
        return Location(
            folder,
            False,
            self.snapshot and is_mutable,
            self.watch and is_mutable,
            boundary=source.boundary(key.name, key.tenant),
            source=source.root,
            has_files=has_files(folder),
        )

    def keys(self, name: str, tenant: str | None) -> Iterator[AdapterKey]:
        """Yield the adapters that `name` may mean for a tenant: its own adapter first, then the shared one."""
        # A tenant's own adapter is a folder name. A name with a slash, such as "acme/medical", can only be shared.
        # A tenant that cannot have a folder has no adapters of its own.
        if tenant is not None and "/" not in name and self.by_tenant and folder_name_problem(tenant) is None:
            yield AdapterKey(name, tenant)
        yield AdapterKey(name)

    def sources_of(self, tenant: str | None) -> list[Source]:
        """Return the sources with adapters that requests of this tenant may use."""
        return [source for source in self.sources if not source.by_tenant or tenant is not None]

    @property
    def tenant_sources(self) -> list[Source]:
        """The sources in which tenants have adapters of their own."""
        return [source for source in self.sources if source.by_tenant]

    def client_may_request(self, key: AdapterKey) -> bool:
        """Return whether a client may request this adapter by name.

        A tenant's own adapter is not checked against the tenant: `keys` yields it to that tenant only.
        """
        return self.client_may_name == "all" or (self.client_may_name == "own" and key.tenant is not None)
