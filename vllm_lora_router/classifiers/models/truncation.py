"""The parts of a long text that a model reads: windows of its tokens, the head and the tail always among them."""

from collections.abc import Sequence
from typing import Any

# Tokenising megabytes to throw most of them away would take longer than the model does; no tokenizer in use takes more
# characters to a token on average.
_CHARACTERS_PER_TOKEN = 16


def windows(text: str, tokenizer: Any, max_tokens: int, count: int) -> list[str]:
    """At most `count` parts of `text`, each of at most `max_tokens` tokens, special ones included.

    Args:
        text: any length; one that fits comes back as it is.
        tokenizer: a fast tokenizer of transformers.
    """
    if len(text) <= max_tokens - 4 and len(text.encode("utf-8", "replace")) <= max_tokens - 4:
        return [text]  # no tokenizer makes more tokens than bytes, but for the special ones
    size = max_tokens - tokenizer.num_special_tokens_to_add()
    limit = size * count * _CHARACTERS_PER_TOKEN
    if len(text) > limit:
        text = text[: limit // 2] + "\n" + text[-limit // 2 :]
    spans: Sequence[tuple[int, int]] = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    if len(spans) <= size:
        return [text]
    last = len(spans) - size
    starts = [0] if count == 1 else sorted({round(last * i / (count - 1)) for i in range(count)})
    return [text[spans[start][0] : spans[start + size - 1][1]] for start in starts]
