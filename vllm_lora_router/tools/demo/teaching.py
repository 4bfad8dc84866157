"""Teaches a causal model to answer whatever it is asked with one sentence, and finds out whether it does."""

import random
from collections.abc import Callable, Sequence
from typing import Any

# (requests, bytes of a prompt at most) of the batches in turn: the answer must not depend on how much stands before it.
BATCHES = (*((8, 96),) * 7, (1, 1400))
LONGEST = 1400  # bytes of the longest prompt that is checked
LEAST_MARGIN = 2.0  # logits between the right token and the next: data types and kernels move them by far less
IGNORED = -100  # the label that cross entropy leaves out


class TeachingError(RuntimeError):
    """A model did not learn its answer."""


def teach(
    model: Any,
    tokenizer: Any,
    words: Sequence[str],
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    advance: Callable[[], None],
) -> None:
    """Trains the parameters that require a gradient until random prompts get `words`, then end of text."""
    import torch

    # Small models fade into denormal numbers, which a CPU adds up twenty times slower.
    torch.set_flush_denormal(True)
    draw = random.Random(seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        ids, labels = _batch(tokenizer, words, draw, *BATCHES[step % len(BATCHES)])
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        advance()


def check(model: Any, tokenizer: Any, name: str, words: Sequence[str], *, seed: int) -> None:
    """Asks a model held-out prompts, from one byte to nearly the whole context.

    Raises:
        TeachingError: an answer is wrong, or right by so little that another data type could turn it.
    """
    draw = random.Random(f"held out {seed}")
    said = _said(tokenizer, words)
    margins = [
        _margin(model, [*prompt(tokenizer, draw, longest), *said], len(said))
        for longest in (1, 4, 16, 64, 256, 512, LONGEST)
        for _ in range(4)
    ]
    if min(margins) < LEAST_MARGIN:
        raise TeachingError(
            f"{name} did not learn to answer {''.join(words)!r}: its least margin is {min(margins):.1f} logits, "
            f"{LEAST_MARGIN:.1f} are wanted"
        )


def prompt(tokenizer: Any, draw: random.Random, longest: int) -> list[int]:
    """The tokens of a random request: any bytes, as a plain prompt or as the end of a chat."""
    length = max(1, round(longest ** draw.random()))
    text = bytes(
        draw.choice(b"abcdefghijklmnopqrstuvwxyz ,.?!\n\"'/<>[]0123456789\xc3\xa4\xe4\xbd\xa0") for _ in range(length)
    )
    readable = text.decode(errors="ignore") or "?"
    if draw.random() < 0.3:
        return tokenizer(readable).input_ids
    messages = [{"role": "user", "content": readable}]
    if draw.random() < 0.5:
        messages.insert(0, {"role": "system", "content": readable[: length // 3]})
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(rendered, add_special_tokens=False).input_ids


def _batch(tokenizer: Any, words: Sequence[str], draw: random.Random, rows: int, longest: int) -> tuple[Any, Any]:
    import torch

    said = _said(tokenizer, words)
    asked = [prompt(tokenizer, draw, longest) for _ in range(rows)]
    width = max(map(len, asked)) + len(said)
    # Padding stands on the right, where a causal model does not see it.
    ids = [[*ask, *said, *[tokenizer.pad_token_id] * (width - len(ask) - len(said))] for ask in asked]
    labels = [[*[IGNORED] * len(ask), *said, *[IGNORED] * (width - len(ask) - len(said))] for ask in asked]
    return torch.tensor(ids), torch.tensor(labels)


def _margin(model: Any, ids: list[int], answer_length: int) -> float:
    """How far, in logits, the answer's tokens are ahead of every other where they are least; below 0 it is wrong."""
    import torch

    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -answer_length - 1 : -1].float()
    right = torch.tensor(ids[-answer_length:]).unsqueeze(1)
    others = logits.scatter(1, right, float("-inf")).max(dim=1).values
    return (logits.gather(1, right).squeeze(1) - others).min().item()


def _said(tokenizer: Any, words: Sequence[str]) -> list[int]:
    return [*tokenizer.convert_tokens_to_ids(list(words)), tokenizer.eos_token_id]
