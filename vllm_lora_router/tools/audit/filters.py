"""Which decisions of a record are looked at."""

import argparse
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vllm_lora_router.observability.audit_destination import KEY_FILE
from vllm_lora_router.observability.audit_schema import hmac_of, rfc3339
from vllm_lora_router.tools.audit.reader import Line

NONE = "-"  # stands for what a decision does not have, here and in tables
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class Filter:
    """What a decision must be like; None asks for nothing, and "-" for one that has none."""

    since: str | None = None  # as the record writes it
    until: str | None = None  # the first moment that is too late
    category: str | None = None
    adapter: str | None = None  # that served, by its name; the base by its own
    method: str | None = None
    reason: str | None = None  # of a decision that was only observed, the one it would have had, too
    tenant: str | None = None
    client: str | None = None  # the fingerprint of an API key
    path: str | None = None
    id: str | None = None

    def takes(self, decision: Line) -> bool:
        """Whether a decision's line is like that."""
        plan, served, reason = decision["plan"], decision["served"], decision.get("reason")
        if (self.since is not None and decision["at"] < self.since) or (
            self.until is not None and decision["at"] >= self.until
        ):
            return False
        return all(
            asked is None or asked in [NONE if one is None else one for one in found]
            for asked, found in (
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
class Said:
    """A text, to be found in a record that may hold but a keyed hash of it."""

    text: str
    hmac: str | None  # None: there is no key

    @classmethod
    def of(cls, text: str, folder: Path) -> "Said":
        """`folder` is the record's, where the key of its texts lies."""
        key = folder / KEY_FILE
        return cls(text, hmac_of(text, key.read_bytes()) if key.is_file() else None)

    def by(self, decision: Line) -> bool:
        """Whether it is what was classified, or one of the prompts that were."""
        return _among(self.text, decision.get("text")) or (
            self.hmac is not None and _among(self.hmac, decision.get("text_hmac"))
        )


def moment(text: str) -> str:
    """A moment as the record writes it, of RFC 3339, of a date, or of how long ago it was: 90s, 15m, 2h, 7d, 1w.

    Raises:
        ArgumentTypeError: it is none of these; it is the type of an option.
    """
    if (ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)) is not None:
        then = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
    else:
        try:
            then = datetime.fromisoformat(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no moment: write 2026-01-31T12:00:00Z, 2026-01-31, or 2h or 7d for how long ago"
            ) from None
        then = then if then.tzinfo is not None else then.replace(tzinfo=UTC)
    return rfc3339(then.timestamp())


def _among(one: str, found: object) -> bool:
    return one in found if isinstance(found, list) else one == found
