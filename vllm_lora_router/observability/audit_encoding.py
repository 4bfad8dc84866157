"""Lines as they are written: numbered JSON, and what was lost between them."""

import json
import time
from collections import deque
from typing import Any

import msgspec

from vllm_lora_router.observability.audit_schema import rfc3339

_ENCODER = msgspec.json.Encoder(order=None)


class Encoded:
    """Lines on their way to the disk, each with its number."""

    def __init__(self, run: str) -> None:
        self.data = bytearray()
        self.written = 0
        self.gap = 0  # lines that were lost since the last one here
        self._run = run
        self._seq = 0  # of the last line here
        self._on_disk = 0  # the number of the last line there
        self._gaps: deque[int] = deque()  # the numbers of lines here that tell of a gap

    @property
    def lines(self) -> int:
        return self._seq - self._on_disk - len(self._gaps)

    def add(self, line: dict[str, Any]) -> None:
        """Raises what encoding raises; then nothing was added."""
        seq = self._seq + (2 if self.gap else 1)
        numbered = {"run": self._run, "seq": seq}
        encoded = _encode({**numbered, **line, **numbered})
        if self.gap:
            self.tell_gap()
        self.data += encoded
        self._seq = seq

    def tell_gap(self) -> None:
        lost, self.gap = self.gap, 0
        self.add({"type": "lost", "at": rfc3339(time.time()), "lines": lost})
        self._gaps.append(self._seq)

    def taken(self, size: int) -> None:
        """The first `size` bytes are on the disk."""
        lines = self.data.count(b"\n", 0, size)
        del self.data[:size]
        self._on_disk += lines
        while self._gaps and self._gaps[0] <= self._on_disk:
            self._gaps.popleft()
            lines -= 1
        self.written += lines


def _encode(line: dict[str, Any]) -> bytes:
    try:
        return _ENCODER.encode(line) + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which a client can send
        text = json.dumps(msgspec.to_builtins(line, str_keys=True))
        # As msgspec writes what JSON has no number for: null.
        return json.dumps(json.loads(text, parse_constant=lambda _: None)).encode() + b"\n"
