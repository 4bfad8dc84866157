"""`router.text.drop`: removes boilerplate from user text before it is classified."""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cachetools import TTLCache

from vllm_lora_router.linear_regex import compile_linear

logger = logging.getLogger("vllm_lora_router.routing")

LOG_INTERVAL_S = 60.0

# The worst case of a byte: each instruction of a pattern runs for it, and it is a match of its own.
_INSTRUCTION_NS = 1
_MATCH_NS = 2000
MAX_INLINE_NS = 1_000_000  # other requests wait while text is filtered on the event loop
THREADS = 4  # RE2 releases the GIL while it searches


class TextFilter:
    """Replaces the matches of patterns with a space."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Compile the patterns.

        Raises:
            PatternError: A pattern cannot be used.
        """
        self.patterns = tuple(patterns)
        self._patterns = [compile_linear(pattern) for pattern in patterns]
        self._per_byte_ns = sum(_MATCH_NS + _INSTRUCTION_NS * pattern.programsize for pattern in self._patterns)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lora-router-text")
        self._logged: TTLCache[str, bool] = TTLCache(maxsize=1, ttl=LOG_INTERVAL_S)

    def runs_inline(self, text: str) -> bool:
        """Return whether a text is filtered within a millisecond, whatever it contains."""
        bytes_per_character = 1 if text.isascii() else 4
        return len(text) * bytes_per_character * self._per_byte_ns <= MAX_INLINE_NS

    async def apply(self, text: str, time_limit_s: float) -> str:
        """Return a text without its matches. A long text is filtered on another thread.

        Raises:
            TimeoutError: The time limit passed.
        """
        if self.runs_inline(text):
            return self._remove(text, None)
        deadline = time.monotonic() + time_limit_s
        try:
            async with asyncio.timeout(time_limit_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._remove, text, deadline)
        except TimeoutError:
            self._log(len(text), time_limit_s)
            raise

    def _remove(self, text: str, deadline: float | None) -> str:
        if not self._patterns:
            return text
        before = data = text.encode("utf-8", "replace")  # RE2 reads UTF-8, which has no lone surrogates
        for pattern in self._patterns:
            parts, end = [], 0
            for match in pattern.finditer(data):
                # A single search is linear in the text, but a pattern may need one for each of its bytes.
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError
                start, match_end = match.span()
                if start == match_end:
                    continue  # nothing to remove
                parts += data[end:start], b" "
                end = match_end
            if parts:
                data = b"".join((*parts, data[end:]))
        return text if data is before else data.decode("utf-8", "replace")

    def _log(self, characters: int, time_limit_s: float) -> None:
        """Log a timeout at most once a minute."""
        if "timeout" not in self._logged:
            self._logged["timeout"] = True
            message = "router.text.drop: %d characters were not filtered within router.deadline_ms (%g ms); affected "
            logger.warning(message + "requests fall back to default_model", characters, time_limit_s * 1000)
