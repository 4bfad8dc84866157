"""Where the audit record lies, and what it keeps of the users' words."""

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.config.schema import Audit
from vllm_lora_router.observability.audit_files import check_folder
from vllm_lora_router.observability.audit_schema import Words, by_hmac, in_full, none_at_all

KEY_FILE = "hmac.key"
KEY_BYTES = 32


class RecordError(ValueError):
    """A record that could not be written; the message says why."""


@dataclass(frozen=True)
class Destination:
    """What `router.audit` asks for, ready to be written to."""

    settings: Audit = field(default_factory=Audit)
    folder: Path | None = None  # None: no record is kept
    words: Words = none_at_all


def destination(loaded: Loaded) -> Destination:
    """Where a configuration's record goes; makes the folder, and the key of its texts. Blocks.

    Raises:
        RecordError: nothing can be written there.
    """
    settings = loaded.config.router.audit
    if settings.path is None:
        return Destination()
    folder = loaded.locate(settings.path) or loaded.file.parent / Path(settings.path).expanduser()
    where = f"{loaded.file}: router.audit.path"
    if wrong := check_folder(folder):
        raise RecordError(f"{where}: {wrong}")
    try:
        words = by_hmac(hmac_key(folder)) if settings.text == "hmac" else in_full
    except OSError as error:
        raise RecordError(f"{where}: {folder / KEY_FILE}: {error.strerror or error}") from None
    return Destination(settings, folder, none_at_all if settings.text == "none" else words)


def hmac_key(folder: Path) -> bytes:
    """The key of a record's texts, in `hmac.key` beside it; made once, by the first process that needs it.

    Raises:
        OSError: it cannot be read or made.
    """
    file = folder / KEY_FILE
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f".{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}"
        descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, secrets.token_bytes(KEY_BYTES))
        finally:
            os.close(descriptor)
        # A link is made whole or not at all, and never in place of another's.
        with suppress(FileExistsError):
            os.link(own, file)
        own.unlink()
    return file.read_bytes()
