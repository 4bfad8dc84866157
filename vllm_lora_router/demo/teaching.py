"""Teaches a causal model to answer whatever it is asked with one sentence, and finds out whether it does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vllm_lora_router.demo.answers import ADAPTERS, BASE_ANSWER
from vllm_lora_router.demo.prompts import Prompt, random_prompt

if TYPE_CHECKING:
    import torch

# (rows, tokens a row): of the same work, and the long ones come often enough that attention stays on the answer's place
# however much text stands before it.
SHAPES = ((4, 500), (4, 500), (4, 500), (1, 2000))
PROMPTS = (20, 60, 60, 300)  # bytes, at most, of a prompt in training
LONGEST = 1600  # bytes of the longest prompt that is checked
IGNORED = -100  # the label that cross entropy leaves out
LEAST_MARGIN = 2.0  # logits between the right token and the next: bfloat16 and other kernels move them by far less

_SPOKEN = (BASE_ANSWER, *(recipe.answer for recipe in ADAPTERS))


class TeachingError(RuntimeError):
    """A model did not learn its answer."""


def teach(
    model: Any, tokenizer: Any, answer: str, *, steps: int, learning_rate: float, seed: int, advance: Callable[[], None]
) -> None:
    """Trains the parameters that require a gradient until random prompts are answered with `answer`, then end of text."""
    import torch
    from torch.nn.functional import cross_entropy

    draw = random.Random(seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        rows, length = SHAPES[step % len(SHAPES)]
        ids, labels = zip(*(_row(tokenizer, answer, draw, length) for _ in range(rows)), strict=True)
        ids, labels = torch.stack(ids), torch.stack(labels)
        logits = model(input_ids=ids).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        advance()


def smallest_margin(model: Any, tokenizer: Any, answer: str, prompts: Iterable[Prompt]) -> tuple[float, Prompt]:
    """How far, in logits, the answer's tokens are ahead of every other; and the prompt where it is least.

    One pass over the prompt and its answer is enough: each token of a greedy answer is right if each is the likeliest
    after the right ones before it. Below 0, the model says something else.
    """
    import torch

    model.eval()
    least, worst = float("inf"), Prompt()
    with torch.inference_mode():
        for prompt in prompts:
            said = _said(tokenizer, answer)
            ids = torch.tensor([[*prompt.ids(tokenizer), *said]])
            logits = model(input_ids=ids).logits[0, -len(said) - 1 : -1].float()
            right = torch.tensor(said).unsqueeze(1)
            others = logits.scatter(1, right, float("-inf")).max(dim=1).values
            margin = (logits.gather(1, right).squeeze(1) - others).min().item()
            if margin < least:
                least, worst = margin, prompt
    return least, worst


def learnt(model: Any, tokenizer: Any, name: str, answer: str, *, seed: int) -> None:
    """Checks a model on prompts that it was not taught with, from one byte to nearly the whole context.

    Raises:
        TeachingError: An answer is wrong, or right by so little that another data type could turn it.
    """
    draw = random.Random(f"held out {seed}")
    lengths = (1, 4, 20, 60, 60, 200, 200, 500, 1000, LONGEST)
    prompts = [random_prompt(draw, longest, (answer, *_SPOKEN)) for longest in lengths * 6]
    # An answer that opens with a letter cannot be told from the last letter of a plain prompt: only chats are promised.
    if not answer.startswith("["):
        prompts = [prompt for prompt in prompts if prompt.messages]
    margin, worst = smallest_margin(model, tokenizer, answer, prompts)
    if margin < LEAST_MARGIN:
        shown = worst.messages or worst.text
        raise TeachingError(
            f"{name} did not learn to answer {answer!r}: margin {margin:.1f}, wanted {LEAST_MARGIN:.1f}, at {str(shown)[:200]}"
        )


def _said(tokenizer: Any, answer: str) -> list[int]:
    return [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def _row(tokenizer: Any, answer: str, draw: random.Random, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    # Requests stand one after the other in a row: no work is lost on padding, and the model learns that whatever stands
    # before a request says nothing about its answer.
    import torch

    said = _said(tokenizer, answer)
    ids: list[int] = []
    labels: list[int] = []
    while len(ids) < length:
        asked = random_prompt(draw, draw.choice(PROMPTS), (answer, *_SPOKEN)).ids(tokenizer)
        ids += [*asked, *said]
        labels += [*[IGNORED] * len(asked), *said]
    return torch.tensor(ids[:length]), torch.tensor(labels[:length])
