"""The folder of the audit record, and the key of the text hashes in it."""

import os
import secrets
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.config.schema import AuditSettings
from vllm_lora_router.observability.audit_files import check_folder
from vllm_lora_router.observability.audit_schema import TextRetention, keep_full_text, keep_hmac, keep_no_text

KEY_FILE = "hmac.key"
KEY_BYTES = 32
MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 4096
WRITE_TIMEOUT_S = 2.0  # for another process to write the key after it has created the file


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
    except ValueError as error:
        raise AuditDestinationError(f"{place}: {error}") from None
    except OSError as error:
        raise AuditDestinationError(f"{place}: {folder / KEY_FILE}: {error.strerror or error}") from None
    return AuditDestination(settings, folder, keep_no_text if settings.text == "none" else retention)


def hmac_key(folder: Path) -> bytes:
    """Return the key of a record's text hashes from its file `hmac.key`.

    The first process that needs the key creates it.

    Raises:
        OSError: the file cannot be read or created.
        ValueError: the key is too short to be secret, or others can read or change it.
    """
    file = folder / KEY_FILE
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Not a temporary file and a hard link, which some file systems lack.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_key(file)
    try:
        key = secrets.token_bytes(KEY_BYTES)
        if os.write(descriptor, key) < KEY_BYTES:
            raise OSError("the key was only partly written; free some space on the disk")
    except OSError:
        file.unlink()
        raise
    finally:
        os.close(descriptor)
    return key


def _read_key(file: Path) -> bytes:
    give_up_s = time.monotonic() + WRITE_TIMEOUT_S
    while True:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for the writer of a named pipe
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{file} is not a regular file; delete it, and a new key is created")
            if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
                raise ValueError(
                    f"{file} can be read or changed by other users (mode {stat.S_IMODE(status.st_mode):04o}); run: "
                    f"chmod 600 {file}"
                )
            key = os.read(descriptor, MAX_KEY_BYTES)
        finally:
            os.close(descriptor)
        if key or time.monotonic() > give_up_s:
            break
        time.sleep(0.01)  # another process has just created the file
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(
            f"{file} has {len(key)} bytes, but a key needs at least {MIN_KEY_BYTES}; restore it, or delete it "
            "to get a new key (earlier hashes then cannot be compared)"
        )
    return key
