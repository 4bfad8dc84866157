"""Train a causal model to answer every prompt with one sentence, and check the result."""

import random
from collections.abc import Callable, Sequence
from typing import Any

# (requests, maximum bytes of a prompt) for consecutive batches: the answer must not depend on the prompt's length.
BATCHES = (*((8, 96),) * 7, (1, 1400))
LONGEST_PROMPT_BYTES = 1400  # longest prompt in the check
MIN_MARGIN = 2.0  # logits between the correct token and the next; far more than data types and kernels change
IGNORED = -100  # the label that cross entropy ignores


class AnswerTrainingError(RuntimeError):
    """A model does not give its answer after training."""


def train_answer(
    model: Any,
    tokenizer: Any,
    words: Sequence[str],
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    advance: Callable[[], None],
) -> None:
    """Train the parameters that require a gradient to answer random prompts with `words` and end of text."""
    import torch

    # Small models produce denormal numbers, which a CPU adds twenty times more slowly.
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


def check_answer(model: Any, tokenizer: Any, name: str, words: Sequence[str], *, seed: int) -> None:
    """Check a model with held-out prompts, from one byte to nearly the whole context.

    Raises:
        TeachingError: an answer is wrong, or its margin is so small that another data type could change it.
    """
    draw = random.Random(f"held out {seed}")
    answer = _answer_tokens(tokenizer, words)
    margins = [
        _margin(model, [*random_prompt(tokenizer, draw, longest), *answer], len(answer))
        for longest in (1, 4, 16, 64, 256, 512, LONGEST_PROMPT_BYTES)
        for _ in range(4)
    ]
    if min(margins) < MIN_MARGIN:
        raise AnswerTrainingError(
            f"{name} did not learn to answer {''.join(words)!r}: its smallest margin is {min(margins):.1f} logits, "
            f"and at least {MIN_MARGIN:.1f} are needed"
        )


def random_prompt(tokenizer: Any, draw: random.Random, longest: int) -> list[int]:
    """Return the tokens of a random request: a plain prompt or a chat with random bytes."""
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


def _batch(tokenizer: Any, words: Sequence[str], draw: random.Random, size: int, longest: int) -> tuple[Any, Any]:
    import torch

    answer = _answer_tokens(tokenizer, words)
    prompts = [random_prompt(tokenizer, draw, longest) for _ in range(size)]
    width = max(map(len, prompts)) + len(answer)
    # Padding is on the right, where it does not affect a causal model.
    rows = [[*ids, *answer, *[tokenizer.pad_token_id] * (width - len(ids) - len(answer))] for ids in prompts]
    labels = [[*[IGNORED] * len(ids), *answer, *[IGNORED] * (width - len(ids) - len(answer))] for ids in prompts]
    return torch.tensor(rows), torch.tensor(labels)


def _margin(model: Any, ids: list[int], answer_length: int) -> float:
    """Return the smallest margin, in logits, of an answer token over all others; below 0 the answer is wrong."""
    import torch

    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -answer_length - 1 : -1].float()
    right = torch.tensor(ids[-answer_length:]).unsqueeze(1)
    others = logits.scatter(1, right, float("-inf")).max(dim=1).values
    return (logits.gather(1, right).squeeze(1) - others).min().item()


def _answer_tokens(tokenizer: Any, words: Sequence[str]) -> list[int]:
    return [*tokenizer.convert_tokens_to_ids(list(words)), tokenizer.eos_token_id]
