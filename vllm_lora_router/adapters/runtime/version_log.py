"""Which content an adapter's name stands for, and under which id and name the engine knows it: one file a server."""

import os
import threading
from collections import deque

import msgspec

from vllm_lora_router.coordination.run_directory import RunDirectory

# vLLM numbers the adapters of its own command line from 1; ids must fit 32 bits.
FIRST_ID = 2**20

LOCK = "ledger"


class Key(msgspec.Struct, frozen=True):
    """An adapter as its users name it."""

    name: str
    tenant: str | None = None  # None: everybody's

    def __str__(self) -> str:
        return self.name if self.tenant is None else f"{self.tenant}/{self.name}"


class Content(msgspec.Struct, frozen=True):
    """What was found in an adapter's folder."""

    digest: str  # of the copied files; of what they look like from outside where they are read in place
    folder: str  # where the engine reads it: a snapshot, or the folder itself
    source: str  # the signature of the files it was copied from
    rank: int
    size_bytes: int
    cpu_bytes: int | None = None  # in the engine's memory; None when unknown
    is_3d: bool = False  # vLLM's `is_3d_lora_weight`
    private: bool = True  # `folder` is ours


class Version(msgspec.Struct, frozen=True):
    """One content under one name: one id, one name for the engine and one folder, in every process."""

    id: int
    name: str
    tenant: str | None
    engine_name: str
    content: Content

    @property
    def key(self) -> Key:
        return Key(self.name, self.tenant)

    @property
    def digest(self) -> str:
        return self.content.digest


class _Line(msgspec.Struct, omit_defaults=True):
    """One change. A name is served by a version, or by none; a version that nobody uses is retired."""

    made: Version | None = None
    name: str | None = None
    tenant: str | None = None
    serves: int | None = None
    retired: int | None = None


class Ledger:
    """Appended to under a lock, read by all; what it says is the same in each process that has read as far."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._file = run.folder / "ledger.jsonl"
        self._read_bytes = 0
        self._encoder, self._decoder = msgspec.json.Encoder(), msgspec.json.Decoder(_Line)
        self.sequence = 0  # lines read
        self.versions: dict[int, Version] = {}
        self.serving: dict[Key, int | None] = {}
        self.superseded: dict[int, int] = {}  # id -> the line since which no name is served by it, until it is retired
        self.retired: set[int] = set()
        self._lock = threading.RLock()  # of this process's threads
        self._changed: dict[Key, None] = {}
        self._newly_retired: deque[int] = deque()
        self._by_content: dict[tuple[Key, str], int] = {}
        self._engine_names: set[str] = set()

    def read(self) -> None:
        """Reads what was appended since the last time."""
        with self._lock:
            self._read()

    def changes(self) -> tuple[list[Key], int]:
        """Reads on; the names whose version changed since this was asked last, and up to which line that is."""
        with self._lock:
            self._read()
            changed, self._changed = list(self._changed), {}
            return changed, self.sequence

    def _read(self) -> None:
        try:
            if self._file.stat().st_size == self._read_bytes:
                return
            with self._file.open("rb") as file:
                file.seek(self._read_bytes)
                added = file.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]  # what comes after was cut off, or is being written
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            if (key := self._apply(self._decoder.decode(line))) is not None:
                self._changed[key] = None

    def take_retired(self) -> list[int]:
        """The versions that were retired since this was asked last; waits for no lock."""
        return [self._newly_retired.popleft() for _ in range(len(self._newly_retired))]

    def serve(self, key: Key, content: Content, *, instead_of: int | None = None) -> Version:
        """Says that `key` stands for `content` from now on; what it stood for before is the same version again.

        Where `instead_of` is given and it stands for another version by now, or for none, that stays so.
        """
        with self._lock, self._run.locked(LOCK):
            self.read()
            if instead_of is not None and (now := self.serving.get(key)) != instead_of:
                return self.versions[instead_of if now is None else now]
            known = self._by_content.get((key, content.digest))
            lines = []
            if known is None or self.versions[known].content != content:
                version = self._make(key, content, known)
                lines.append(_Line(made=version))
            else:
                version = self.versions[known]
            if self.serving.get(key) != version.id:
                lines.append(_Line(name=key.name, tenant=key.tenant, serves=version.id))
            self._append(lines)
            return version

    def rest(self, key: Key) -> None:
        """Says that `key` stands for nothing until its source is looked at again."""
        with self._lock, self._run.locked(LOCK):
            self.read()
            if self.serving.get(key) is not None:
                self._append([_Line(name=key.name, tenant=key.tenant)])

    def retire(self, identifier: int, line: int) -> bool:
        """Says that nobody uses a version any more which serves no name since `line`; False when it has since."""
        with self._lock, self._run.locked(LOCK):
            self.read()
            if self.superseded.get(identifier) != line:
                return False
            self._append([_Line(retired=identifier)])
            return True

    def serving_version(self, key: Key) -> Version | None:
        identifier = self.serving.get(key)
        return None if identifier is None else self.versions[identifier]

    def is_engine_name(self, name: str) -> bool:
        """Whether the engine knows a version by this name, or did."""
        return name in self._engine_names

    def _make(self, key: Key, content: Content, known: int | None) -> Version:
        if known is not None:
            # The same weights from another place, as when a store was declared immutable: the name stays.
            old = self.versions[known]
            return Version(old.id, key.name, key.tenant, old.engine_name, content)
        identifier = FIRST_ID + len(self.versions)
        plain = str(key)
        first = all(version.key != key for version in self.versions.values())
        names = (plain, f"{plain}@{content.digest[:8]}", f"{plain}@{content.digest[:16]}", f"{plain}@{identifier}")
        engine_name = next(name for name in names[0 if first else 1 :] if name not in self._engine_names)
        return Version(identifier, key.name, key.tenant, engine_name, content)

    def _append(self, lines: list[_Line]) -> None:
        if not lines:
            return
        content = b"".join(self._encoder.encode(line) + b"\n" for line in lines)
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            # A process that was killed may have left half a line.
            os.ftruncate(descriptor, self._read_bytes)
            if os.write(descriptor, content) < len(content):
                raise OSError(f"{self._file}: the disk is full")
        finally:
            os.close(descriptor)
        self.read()

    def _apply(self, line: _Line) -> Key | None:
        self.sequence += 1
        if (version := line.made) is not None:
            if version.id not in self.versions:
                self.superseded[version.id] = self.sequence  # for good if its maker was killed before it served it
            self.versions[version.id] = version
            self._by_content[version.key, version.content.digest] = version.id
            self._engine_names.add(version.engine_name)
        if line.retired is not None:
            self.superseded.pop(line.retired, None)
            self.retired.add(line.retired)
            self._newly_retired.append(line.retired)
        if line.name is None:
            return None
        key = Key(line.name, line.tenant)
        if (before := self.serving.get(key)) is not None:
            self.superseded[before] = self.sequence
        self.serving[key] = line.serves
        if line.serves is not None:
            self.superseded.pop(line.serves, None)
            self.retired.discard(line.serves)
        return key
