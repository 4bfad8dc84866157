"""Random prompts: what the demo's models must answer alike, from a word to a long talk, in any script."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from vllm_lora_router.demo.tokenizer import SPECIALS

_WORDS = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "you",
    "that",
    "how",
    "what",
    "why",
    "can",
    "do",
    "my",
    "we",
    "for",
    "with",
    "on",
    "as",
    "are",
    "this",
    "an",
    "if",
    "or",
    "not",
    "please",
    "explain",
    "write",
    "code",
    "function",
    "error",
    "patient",
    "doctor",
    "court",
    "contract",
    "value",
    "name",
    "time",
    "people",
    "water",
    "model",
    "answer",
    "question",
    "adapter",
    "base",
    "technical",
    "medical",
    "legal",
    "law",
    "health",
    "server",
    "async",
    "await",
    "pressure",
    "blood",
    "tenant",
    "rent",
    "deposit",
    "python",
    "javascript",
    "number",
]
# First and last code point of the scripts that appear: Latin-1, Greek and Cyrillic, Hebrew and Arabic, Devanagari, CJK, emoji.
_SCRIPTS = ((0xA1, 0x17F), (0x391, 0x44F), (0x5D0, 0x64A), (0x905, 0x939), (0x4E00, 0x9FA0), (0x1F300, 0x1F64F))


@dataclass(frozen=True)
class Prompt:
    """One request: a chat, or without messages a plain completion prompt."""

    messages: tuple[dict[str, str], ...] = ()
    text: str = ""
    template_arguments: dict[str, Any] = field(default_factory=dict)

    def ids(self, tokenizer: Any) -> list[int]:
        """The tokens that a server would make of it."""
        if not self.messages:
            return tokenizer(self.text).input_ids
        rendered = tokenizer.apply_chat_template(
            list(self.messages), tokenize=False, add_generation_prompt=True, **self.template_arguments
        )
        return tokenizer(rendered, add_special_tokens=False).input_ids


def random_prompt(draw: random.Random, longest: int, spoken: tuple[str, ...]) -> Prompt:
    """A prompt of at most about `longest` bytes.

    Args:
        draw: The source of chance.
        longest: Bytes of text, over all turns.
        spoken: What earlier assistant turns may have said, beside random text.
    """
    kind = draw.random()
    if kind < 0.25:
        return Prompt(text=_text(draw, longest))
    turns = 1 if kind < 0.7 else draw.randint(2, 6)
    share = max(1, longest // (turns + 1))
    messages = []
    if draw.random() < 0.5:
        messages.append({"role": draw.choice(("system", "developer")), "content": _text(draw, share)})
    for turn in range(turns):
        if turn:
            said = draw.choice(spoken) if draw.random() < 0.6 else _text(draw, min(share, 120))
            messages.append({"role": "assistant", "content": said})
        messages.append({"role": "tool" if turn and draw.random() < 0.1 else "user", "content": _text(draw, share)})
    arguments: dict[str, Any] = {}
    if draw.random() < 0.3:
        arguments["enable_thinking"] = draw.random() < 0.5
    if draw.random() < 0.2:
        arguments["reasoning_effort"] = draw.choice(("none", "low", "medium", "high"))
    return Prompt(messages=tuple(messages), template_arguments=arguments)


def _text(draw: random.Random, longest: int) -> str:
    # Short prompts are the usual ones, and a uniform draw would hardly ever give one.
    length = max(1, round(longest ** draw.random()))
    kind = draw.random()
    if kind < 0.5:
        words = [draw.choice(_WORDS) for _ in range(length // 4 + 1)]
        text = draw.choice((" ", " ", "\n", ", ")).join(words)
        text = (text.capitalize() if draw.random() < 0.7 else text) + draw.choice(("?", ".", "!", ""))
    elif kind < 0.75:
        text = "".join(chr(draw.randint(32, 126)) for _ in range(length))
    elif kind < 0.9:
        first, last = draw.choice(_SCRIPTS)
        text = "".join(chr(draw.randint(first, last)) for _ in range(length))
    elif kind < 0.97:
        text = draw.choice(("a", " ", "\n", "0", "[", "ab", "lora ", "[x] ")) * length
    else:
        text = draw.choice(SPECIALS[1:]).join(draw.choice(_WORDS) for _ in range(length // 8 + 2))
    # A long text may exceed `longest` by its last character only; bytes that make no character are dropped.
    return text.encode()[:longest].decode(errors="ignore") or "?"
