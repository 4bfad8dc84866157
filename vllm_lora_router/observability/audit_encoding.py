"""Encoding of audit lines: numbered JSON, with a line in place of the lines that were lost."""

import json
import time
from collections import deque
from typing import Any

import msgspec

from vllm_lora_router.observability.audit_schema import SCHEMA_VERSION, lost_line

_ENCODER = msgspec.json.Encoder(order=None)


class LineBuffer:
    """Encoded lines that are not yet on disk. Each has its number and the schema version."""

    def __init__(self, run: str) -> None:
        self.data = bytearray()
        self.written = 0  # lines on disk, without the `lost` lines
        self.gap = 0  # lines lost since the last line that was added
        self._run = run
        self._seq = 0  # number of the last line that was added
        self._written_seq = 0  # number of the last line on disk
        self._gap_seqs: deque[int] = deque()  # numbers of the `lost` lines in the buffer

    @property
    def lines(self) -> int:
        """The number of lines in the buffer, without the `lost` lines."""
        return self._seq - self._written_seq - len(self._gap_seqs)

    def add(self, line: dict[str, Any]) -> None:
        """Encode a line and append it. If encoding raises, nothing is appended."""
        seq = self._seq + (2 if self.gap else 1)
        numbered = {"schema": SCHEMA_VERSION, "run": self._run, "seq": seq}
        encoded = _encode({**numbered, **line, **numbered})
        if self.gap:
            self.add_gap()
        self.data += encoded
        self._seq = seq

    def add_gap(self) -> None:
        """Append a `lost` line for the lines that were lost, and reset their count."""
        lost, self.gap = self.gap, 0
        self.add(lost_line(lost, time.time()))
        self._gap_seqs.append(self._seq)

    def discard(self, size: int) -> None:
        """Remove the first `size` bytes, which are now on disk, and count their lines as written."""
        lines = self.data.count(b"\n", 0, size)
        del self.data[:size]
        self._written_seq += lines
        while self._gap_seqs and self._gap_seqs[0] <= self._written_seq:
            self._gap_seqs.popleft()
            lines -= 1
        self.written += lines


def _encode(line: dict[str, Any]) -> bytes:
    try:
        return _ENCODER.encode(line) + b"\n"
    except UnicodeEncodeError:  # an unpaired surrogate, which a client can send
        text = json.dumps(msgspec.to_builtins(line, str_keys=True))
        # Write NaN and infinity as null, as msgspec does.
        return json.dumps(json.loads(text, parse_constant=lambda _: None)).encode() + b"\n"
