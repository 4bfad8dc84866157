"""The folder of the audit record, and the key of the text hashes in it."""

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.config.schema import AuditSettings
from vllm_lora_router.observability.audit_files import check_folder
from vllm_lora_router.observability.audit_schema import TextRetention, keep_full_text, keep_hmac, keep_no_text

KEY_FILE = "hmac.key"
KEY_BYTES = 32


class AuditDestinationError(ValueError):
    """The audit record cannot be written. The message gives the reason."""


@dataclass(frozen=True)
class AuditDestination:
    """The destination that `router.audit` configures, ready for writing."""

    settings: AuditSettings = field(default_factory=AuditSettings)
    folder: Path | None = None  # None: no audit record
    retention: TextRetention = keep_no_text


def prepare_destination(loaded: LoadedConfig) -> AuditDestination:
    """Return the destination of a configuration's audit record. Create its folder and its HMAC key. Blocks on disk.

    Raises:
        AuditDestinationError: the folder or the key cannot be created or written.
    """
    settings = loaded.config.router.audit
    if settings.path is None:
        return AuditDestination()
    folder = loaded.locate(settings.path) or loaded.file.parent / Path(settings.path).expanduser()
    place = f"{loaded.file}: router.audit.path"
    if problem := check_folder(folder):
        raise AuditDestinationError(f"{place}: {problem}")
    try:
        retention = keep_hmac(hmac_key(folder)) if settings.text == "hmac" else keep_full_text
    except OSError as error:
        raise AuditDestinationError(f"{place}: {folder / KEY_FILE}: {error.strerror or error}") from None
    return AuditDestination(settings, folder, keep_no_text if settings.text == "none" else retention)


def hmac_key(folder: Path) -> bytes:
    """Return the key of a record's text hashes from its file `hmac.key`.

    The first process that needs the key creates it.

    Raises:
        OSError: the file cannot be read or created.
    """
    file = folder / KEY_FILE
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, secrets.token_bytes(KEY_BYTES))
        finally:
            os.close(descriptor)
        # Creating a hard link is atomic and never replaces the key of another process.
        with suppress(FileExistsError):
            os.link(temporary, file)
        temporary.unlink()
    return file.read_bytes()
