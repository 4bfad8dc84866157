"""Windows of a long text: parts that fit the model, always including the head and the tail."""

from collections.abc import Sequence
from typing import Any

# A text is shortened before it is tokenized, because tokenizing megabytes takes longer than the model does. No
# tokenizer in use has more characters per token on average.
_CHARACTERS_PER_TOKEN = 16


def windows(text: str, tokenizer: Any, max_tokens: int, count: int) -> list[str]:
    """Return at most `count` parts of a text, each with at most `max_tokens` tokens including special tokens.

    Args:
        text: A text of any length. A text that fits is returned unchanged.
        tokenizer: A fast tokenizer from transformers.
    """
    if len(text) <= max_tokens - 4 and len(text.encode("utf-8", "replace")) <= max_tokens - 4:
        return [text]  # apart from special tokens, no tokenizer produces more tokens than bytes
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
