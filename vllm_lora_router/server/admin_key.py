"""The check of the admin key, which slows down clients that guess it and logs their attempts."""

import logging
import os
import secrets
import time
from collections.abc import Callable

from cachetools import TTLCache

HEADER = "x-lora-router-admin-key"
# After this many wrong keys, an address is refused until it has sent no wrong key for PERIOD_S seconds.
MAX_WRONG_KEYS = 10
PERIOD_S = 60.0
MAX_ADDRESSES = 4096

logger = logging.getLogger("vllm_lora_router.server")


class AdminKeyError(Exception):
    """The admin key is missing, wrong or not configured. The message gives the reason."""


class TooManyWrongKeysError(Exception):
    """The address has sent too many wrong keys. Its keys are not checked for now."""


class AdminKeys:
    """Checks admin keys for one API-server process, and counts the wrong ones."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong_keys: TTLCache[str, int] = TTLCache(MAX_ADDRESSES, PERIOD_S, timer=clock)  # by address
        self._unlogged = 0
        self._logged_s = float("-inf")

    def check(self, variable: str | None, key: str | None, address: str) -> None:
        """Check a key that a client sent.

        Args:
            variable: the environment variable with the admin key; None if the configuration names no variable.
            key: the value of the header, as Starlette decodes it (Latin-1); None if the client sent none.
            address: the address of the client.

        Raises:
            AdminKeyError: the key is missing or wrong, or no admin key is configured.
            TooManyWrongKeysError: the address has sent MAX_WRONG_KEYS wrong keys.
        """
        expected = os.environ.get(variable, "") if variable else ""
        if not expected:
            cause = f"the environment variable {variable} is empty" if variable else "router.admin_key_env is not set"
            raise AdminKeyError(f"this request needs an admin key, and {cause}")
        if not key:
            raise AdminKeyError(f"this route needs the admin key in the header {HEADER}")
        if self._wrong_keys.get(address, 0) >= MAX_WRONG_KEYS:
            raise TooManyWrongKeysError(
                f"{MAX_WRONG_KEYS} wrong admin keys came from this address; try again after {PERIOD_S:g} seconds"
            )
        if not _is_equal(key, expected):
            self._count_wrong_key(address)
            raise AdminKeyError(f"the admin key in the header {HEADER} is wrong; send the value of {variable}")

    def _count_wrong_key(self, address: str) -> None:
        self._wrong_keys[address] = self._wrong_keys.get(address, 0) + 1
        self._unlogged += 1
        now = self._clock()
        if now - self._logged_s >= PERIOD_S:
            logger.warning(
                "admin key: %d wrong key(s) since the last such line, the last from %s", self._unlogged, address
            )
            self._logged_s, self._unlogged = now, 0


def _is_equal(key: str, expected: str) -> bool:
    # Most clients send a header's text as UTF-8, and some as Latin-1.
    sent = key.encode("latin-1", "replace")
    accepted = [os.fsencode(expected), *([expected.encode("latin-1")] if _is_latin_1(expected) else ())]
    return any(secrets.compare_digest(sent, value) for value in accepted)


def _is_latin_1(text: str) -> bool:
    return all(character <= "\xff" for character in text)
