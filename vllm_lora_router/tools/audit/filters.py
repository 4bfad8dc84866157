"""Filters that select decisions of an audit record."""

import argparse
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vllm_lora_router.observability.audit_destination import KEY_FILE
from vllm_lora_router.observability.audit_schema import AuditLine, rfc3339, text_hmac

NO_VALUE = "-"  # stands for a missing value, in filters and in tables
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class DecisionFilter:
    """Conditions on a decision. None sets no condition, and "-" selects decisions without a value."""

    since: str | None = None  # first time, as the record writes it
    until: str | None = None  # first time that is too late
    category: str | None = None
    adapter: str | None = None  # the name of the adapter or base model that served the request
    method: str | None = None
    reason: str | None = None  # in observe mode also the reason that routing would have had
    tenant: str | None = None
    client: str | None = None  # the fingerprint of an API key
    path: str | None = None
    id: str | None = None

    def matches(self, decision: AuditLine) -> bool:
        """Return whether a decision's line meets all conditions."""
        plan, served, reason = decision["plan"], decision["served"], decision.get("reason")
        if (self.since is not None and decision["at"] < self.since) or (
            self.until is not None and decision["at"] >= self.until
        ):
            return False
        return all(
            expected is None or expected in [NO_VALUE if value is None else value for value in values]
            for expected, values in (
                (self.category, [plan.get("category")]),
                (self.adapter, [served.get("adapter"), served.get("model")]),
                (self.method, [plan.get("method")]),
                (self.reason, [reason, plan.get("reason")] if reason == "observe" else [reason]),
                (self.tenant, [decision.get("tenant")]),
                (self.client, [decision.get("client")]),
                (self.path, [decision.get("path")]),
                (self.id, [decision["id"]]),
            )
        )


@dataclass(frozen=True, slots=True)
class TextMatch:
    """A text to find in a record, which may contain only a keyed hash of it."""

    text: str
    hmac: str | None  # None: the record has no key

    @classmethod
    def in_record(cls, text: str, folder: Path) -> "TextMatch":
        """Return a match for a text in the record of `folder`, with the key in that folder."""
        key = folder / KEY_FILE
        return cls(text, text_hmac(text, key.read_bytes()) if key.is_file() else None)

    def matches(self, decision: AuditLine) -> bool:
        """Return whether the text is the classified text, or the text of one of several prompts."""
        return _is_among(self.text, decision.get("text")) or (
            self.hmac is not None and _is_among(self.hmac, decision.get("text_hmac"))
        )


def parse_time(text: str) -> str:
    """Parse an RFC 3339 time, a date, or an age such as 90s, 15m, 2h, 7d or 1w. Return it as the record writes times.

    Raises:
        ArgumentTypeError: the text has another form. The function is the `type` of command-line options.
    """
    if (age := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)) is not None:
        time = datetime.now(UTC) - timedelta(**{_UNITS[age[2]]: float(age[1])})
    else:
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a time: use a time such as 2026-01-31T12:00:00Z, a date such as 2026-01-31, or an "
                "age such as 2h or 7d"
            ) from None
        time = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return rfc3339(time.timestamp())


def _is_among(text: str, recorded: object) -> bool:
    return text in recorded if isinstance(recorded, list) else text == recorded
