"""The response headers that describe a decision to the client."""

import re
from urllib.parse import quote

from vllm_lora_router.types import Decision

# Characters that a header value can contain unchanged: printable ASCII except the percent sign.
_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")

# In the order of the values in `decision_headers`.
HEADER_NAMES = (
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


def decision_headers(decision: Decision) -> list[tuple[bytes, bytes]]:
    """Return the headers of a decision as ASGI expects them. Configured names are percent-encoded."""
    plan, applied = decision.plan, decision.applied
    # In observe mode the headers name the model that routing would have used.
    candidate = plan.candidates[0] if decision.reason == "observe" else decision.candidate
    values = (
        plan.category or "",
        candidate.model,
        "on" if applied.reasoning else "off",
        "" if plan.confidence is None else f"{plan.confidence:.4f}",
        "true" if applied.system_prompt else "false",
        plan.method or "",
        decision.reason,
        f"{decision.overhead_ms:.3f}",
        # The arm is last, because the header is left out where the category has no A/B test.
        *((candidate.arm,) if candidate.arm is not None else ()),
    )
    return [(name.encode(), encode_value(value).encode()) for name, value in zip(HEADER_NAMES, values, strict=False)]


def encode_value(text: str) -> str:
    """Percent-encode text for a header value. `urllib.parse.unquote` decodes it."""
    if text.isascii() and text.isprintable() and "%" not in text and text == text.strip():
        return text
    # Spaces at the ends are not part of a header value: some servers drop them, others refuse the whole response.
    return re.sub("^ +| +$", lambda spaces: "%20" * len(spaces[0]), quote(text, safe=_SAFE, errors="replace"))
