"""Where adapters may come from, under one configuration, and who may name them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from vllm_lora_router.adapters.files.sources import Source
from vllm_lora_router.adapters.runtime.version_log import Key
from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.config.yaml_document import ConfigError, Problem

ClientMayName = Literal["all", "own", "none"]


@dataclass(frozen=True, slots=True)
class Declared:
    """An adapter that the configuration or the command line names."""

    folder: Path
    is_3d: bool = False  # vLLM's `is_3d_lora_weight`


@dataclass(frozen=True, slots=True)
class Place:
    """Where one adapter's files are."""

    folder: Path
    declared: bool  # by name; else it lies in a source's folder, and goes when its folder goes
    copied: bool  # the engine reads a copy; else the folder itself
    watched: bool  # its files may change
    is_3d: bool = False
    within: Path | None = None  # where its files must be, wherever links lead; None: where they are declared


@dataclass(frozen=True)
class Catalogue:
    """Declared adapters first, then the sources in their order."""

    declared: Mapping[str, Declared]
    sources: tuple[Source, ...] = ()
    snapshot: bool = True
    watch: bool = True
    client_may_name: ClientMayName = "all"

    @property
    def by_tenant(self) -> bool:
        """Whether tenants have adapters of their own."""
        return any(source.by_tenant for source in self.sources)

    @classmethod
    def of(cls, loaded: Loaded, declared: Mapping[str, Declared], *, one_node: bool = True) -> "Catalogue":
        """What a configuration says.

        Args:
            declared: every adapter of this base that the configuration or the command line names.
            one_node: the engines run where this process runs; else they read from their own disks, and what is copied
                or comes later here is not there.

        Raises:
            ConfigError: a source is no folder and no template, or cannot be used on several nodes.
        """
        settings = loaded.config.router.adapters
        sources: list[Source] = []
        problems: list[Problem] = []
        for place, source in enumerate(settings.sources):
            path = ("router", "adapters", "sources", place)
            try:
                sources.append(Source.parse(source.path, source.immutable, base=loaded.file.parent))
            except ValueError as error:
                problems.append(loaded.document.problem(path, str(error)))
        if sources and not one_node:
            text = (
                "adapters cannot come at run time when the engine runs on several nodes: the others would not find "
                "their files; declare them under model_config.<base>.loras with a path that every node has"
            )
            problems.append(loaded.document.problem(("router", "adapters", "sources"), text))
        if problems:
            raise ConfigError(problems)
        copies = settings.snapshot == "auto" and one_node
        return cls(declared, tuple(sources), copies, one_node, settings.client_may_name)

    def place(self, key: Key) -> Place | None:
        """Where the adapter is, if it is anywhere. Reads the disk.

        Raises:
            NotAllowed: the name, or what lies under it, leads out of its source.
        """
        if key.tenant is None and (declared := self.declared.get(key.name)) is not None:
            return Place(declared.folder, True, self.snapshot, self.watch, declared.is_3d)
        for source in self.sources:
            if source.by_tenant == (key.tenant is not None) and (folder := source.find(key.name, key.tenant)):
                changes = not source.immutable
                return Place(
                    folder,
                    False,
                    self.snapshot and changes,
                    self.watch and changes,
                    within=source.limit(key.name, key.tenant),
                )
        return None

    def keys(self, name: str, tenant: str | None) -> Iterator[Key]:
        """What `name` may mean to a tenant: its own adapter before everybody's."""
        # What is no file name, such as everybody's "acme/medical", is no tenant's own.
        if tenant is not None and "/" not in name + tenant and self.by_tenant:
            yield Key(name, tenant)
        yield Key(name)

    def owners(self, name: str) -> frozenset[str]:
        """Tenants that have an adapter of their own of this name: all of them, or two of a source, so that there is
        another than the one who asks. Looks into every tenant's folder.
        """
        return frozenset(chain.from_iterable(islice(source.tenants(name), 2) for source in self.sources))

    def owner(self, full_name: str) -> str | None:
        """The tenant whose own adapter's full name this is, such as acme's "acme/medical". Reads the disk."""
        tenant, _, name = full_name.partition("/")
        return tenant if any(source.by_tenant and source.has(name, tenant) for source in self.sources) else None

    def may_name(self, key: Key) -> bool:
        """Whether a client may ask for this adapter by name; a tenant's own key is only made for that tenant."""
        return self.client_may_name == "all" or (self.client_may_name == "own" and key.tenant is not None)

    def names(self, tenant: str | None, *, everything: bool = False) -> list[Key]:
        """Every adapter there is now that this tenant may name, or may be routed to. Reads the disk."""
        keys = dict.fromkeys(map(Key, self.declared))
        for source in self.sources:
            owner = tenant if source.by_tenant else None
            keys |= dict.fromkeys(Key(name, owner) for name in source.names(owner))
        return [key for key in keys if everything or self.may_name(key)]
