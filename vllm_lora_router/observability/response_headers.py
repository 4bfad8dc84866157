"""The response headers that tell a client what was decided."""

import re
from urllib.parse import quote

from vllm_lora_router.types import Decision

# What stays as it is in a header's value: printable ASCII but for the percent sign itself.
_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")

NAMES = (
    "x-vsr-selected-category",
    "x-vsr-selected-model",
    "x-vsr-selected-reasoning",
    "x-vsr-selected-confidence",
    "x-vsr-injected-system-prompt",
    "x-lora-router-method",
    "x-lora-router-reason",
    "x-lora-router-overhead-ms",
    "x-lora-router-arm",
)


def headers(decision: Decision) -> list[tuple[bytes, bytes]]:
    """The headers of a decision, in ASGI's form; names of the user's are percent-encoded."""
    plan, written = decision.plan, decision.applied
    # Who only observes wants to know what would have served.
    candidate = plan.candidates[0] if decision.reason == "observe" else decision.candidate
    values = (
        plan.category or "",
        candidate.model,
        "on" if written.reasoning else "off",
        "" if plan.confidence is None else f"{plan.confidence:.4f}",
        "true" if written.system_prompt else "false",
        plan.method or "",
        decision.reason,
        f"{decision.overhead_ms:.3f}",
        # Last, for nothing is said of it where nothing was drawn.
        *((candidate.arm,) if candidate.arm is not None else ()),
    )
    return [(name.encode(), encoded(value).encode()) for name, value in zip(NAMES, values, strict=False)]


def encoded(text: str) -> str:
    """Text as a header's value can carry it: `urllib.parse.unquote` gives it back."""
    if text.isascii() and text.isprintable() and "%" not in text and text == text.strip():
        return text
    # Blanks at the ends are no part of a header's value: some servers drop them, others refuse the whole response.
    return re.sub("^ +| +$", lambda blanks: "%20" * len(blanks[0]), quote(text, safe=_SAFE, errors="replace"))
