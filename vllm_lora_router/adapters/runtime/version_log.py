"""The log of adapter versions that all processes of one server share: the content, id and name of each version."""

import errno
import os
import threading
from collections import deque

import msgspec

from vllm_lora_router.coordination.run_directory import RunDirectory

# vLLM numbers the adapters of its own command line from 1; ids must fit 32 bits.
FIRST_ID = 2**20

LOCK = "versions"
FILE = "versions.jsonl"


class AdapterKey(msgspec.Struct, frozen=True):
    """An adapter's name and the tenant that owns it."""

    name: str
    tenant: str | None = None  # None: shared by all tenants

    def __str__(self) -> str:
        return self.name if self.tenant is None else f"{self.tenant}/{self.name}"


class AdapterContent(msgspec.Struct, frozen=True):
    """The content of an adapter's folder."""

    digest: str  # of the copied files; of their signature if they are read in place
    folder: str  # the folder that the engine reads: a snapshot, or the source itself
    source_signature: str  # of the files that it was imported from
    rank: int
    size_bytes: int
    cpu_bytes: int | None = None  # in the engine's host memory; None if unknown
    is_3d: bool = False  # vLLM's `is_3d_lora_weight`
    is_snapshot: bool = True  # `folder` is a snapshot


class Version(msgspec.Struct, frozen=True):
    """One content under one name: it has one id, one engine name and one folder in every process."""

    id: int
    name: str
    tenant: str | None
    engine_name: str
    content: AdapterContent

    @property
    def key(self) -> AdapterKey:
        """The adapter that this is a version of."""
        return AdapterKey(self.name, self.tenant)

    @property
    def digest(self) -> str:
        """The digest of the content, in hex."""
        return self.content.digest


class _Line(msgspec.Struct, omit_defaults=True):
    """One change: a version is created, a name serves another version or none, or an unused version is retired."""

    created: Version | None = None
    name: str | None = None
    tenant: str | None = None
    serves: int | None = None
    retired: int | None = None


class VersionLog:
    """The log, and the state that its lines add up to.

    Processes append under a lock. All processes that have read the same lines have the same state.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._file = run.folder / FILE
        self._read_bytes = 0
        self._encoder, self._decoder = msgspec.json.Encoder(), msgspec.json.Decoder(_Line)
        self.sequence = 0  # number of lines read
        self.versions: dict[int, Version] = {}
        self.serving: dict[AdapterKey, int | None] = {}
        self.superseded: dict[int, int] = {}  # by id of a version that serves no name: the line that superseded it
        self.retired: set[int] = set()
        self._lock = threading.RLock()  # for the threads of this process
        self._changed: dict[AdapterKey, None] = {}
        self._newly_retired: deque[int] = deque()
        self._by_content: dict[tuple[AdapterKey, str], int] = {}
        self._engine_names: set[str] = set()

    def read(self) -> None:
        """Read the lines that were appended since the last read."""
        with self._lock:
            self._read()

    def changes(self) -> tuple[list[AdapterKey], int]:
        """Read the log. Return the names whose version changed since the last call, and the number of lines read."""
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
        complete = added[: added.rfind(b"\n") + 1]  # the rest is a truncated line, or one that is being written
        self._read_bytes += len(complete)
        for line in complete.splitlines():
            if (key := self._apply(self._decoder.decode(line))) is not None:
                self._changed[key] = None

    def pop_retired(self) -> list[int]:
        """Return the versions that were retired since the last call; never waits for a lock."""
        return [self._newly_retired.popleft() for _ in range(len(self._newly_retired))]

    def serve(self, key: AdapterKey, content: AdapterContent, *, replacing: int | None = None) -> Version:
        """Make `key` serve `content`. A content that it served before is the same version again.

        Args:
            replacing: change nothing unless `key` serves the version with this id now.

        Returns:
            The version that `key` serves now. If nothing was changed because it serves none, the version `replacing`.
        """
        with self._lock, self._run.locked(LOCK):
            self.read()
            if replacing is not None and (current := self.serving.get(key)) != replacing:
                return self.versions[replacing if current is None else current]
            known = self._by_content.get((key, content.digest))
            lines = []
            if known is None or self.versions[known].content != content:
                version = self._create(key, content, known)
                lines.append(_Line(created=version))
            else:
                version = self.versions[known]
            if self.serving.get(key) != version.id:
                lines.append(_Line(name=key.name, tenant=key.tenant, serves=version.id))
            self._append(lines)
            return version

    def deactivate(self, key: AdapterKey) -> None:
        """Make `key` serve no version until its source is imported again."""
        with self._lock, self._run.locked(LOCK):
            self.read()
            if self.serving.get(key) is not None:
                self._append([_Line(name=key.name, tenant=key.tenant)])

    def retire(self, identifier: int, line: int) -> bool:
        """Retire a version that was superseded by `line`. Return False if it has served a name since then."""
        with self._lock, self._run.locked(LOCK):
            self.read()
            if self.superseded.get(identifier) != line:
                return False
            self._append([_Line(retired=identifier)])
            return True

    def serving_version(self, key: AdapterKey) -> Version | None:
        """Return the version that `key` serves; None if it serves none."""
        identifier = self.serving.get(key)
        return None if identifier is None else self.versions[identifier]

    def is_engine_name(self, name: str) -> bool:
        """Return whether this is the engine name of a version, current or past."""
        return name in self._engine_names

    def _create(self, key: AdapterKey, content: AdapterContent, known: int | None) -> Version:
        if known is not None:
            # The same weights from another place, for example after a source was declared immutable: the name stays.
            old = self.versions[known]
            return Version(old.id, key.name, key.tenant, old.engine_name, content)
        identifier = FIRST_ID + len(self.versions)
        plain = str(key)
        is_first = all(version.key != key for version in self.versions.values())
        names = (plain, f"{plain}@{content.digest[:8]}", f"{plain}@{content.digest[:16]}", f"{plain}@{identifier}")
        engine_name = next(name for name in names[0 if is_first else 1 :] if name not in self._engine_names)
        return Version(identifier, key.name, key.tenant, engine_name, content)

    def _append(self, lines: list[_Line]) -> None:
        if not lines:
            return
        content = b"".join(self._encoder.encode(line) + b"\n" for line in lines)
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            # A process that was killed may have left a partial line.
            os.ftruncate(descriptor, self._read_bytes)
            written = os.write(descriptor, content)
            if written < len(content):
                # Other processes may have read the complete lines already, so only the partial line is removed.
                os.ftruncate(descriptor, self._read_bytes + content.rfind(b"\n", 0, written) + 1)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._file)) from None
        finally:
            os.close(descriptor)
        self.read()

    def _apply(self, line: _Line) -> AdapterKey | None:
        self.sequence += 1
        if (version := line.created) is not None:
            if version.id not in self.versions:
                self.superseded[version.id] = self.sequence  # stays so if its process is killed before it serves it
            self.versions[version.id] = version
            self._by_content[version.key, version.content.digest] = version.id
            self._engine_names.add(version.engine_name)
        if line.retired is not None:
            self.superseded.pop(line.retired, None)
            self.retired.add(line.retired)
            self._newly_retired.append(line.retired)
        if line.name is None:
            return None
        key = AdapterKey(line.name, line.tenant)
        if (previous := self.serving.get(key)) is not None:
            self.superseded[previous] = self.sequence
        self.serving[key] = line.serves
        if line.serves is not None:
            self.superseded.pop(line.serves, None)
            self.retired.discard(line.serves)
        return key
