"""From labelled prompts to a sequence classifier that has learnt them, stage by stage."""

from collections.abc import Callable, Sequence

import numpy as np

from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.fit.finetune.kernel_init import start
from vllm_lora_router.tools.fit.finetune.model import SequenceModel, load
from vllm_lora_router.tools.fit.finetune.stages import (
    Lesson,
    classify,
    classify_steps,
    contrast,
    contrast_steps,
    recipe,
)

_TOGETHER = 64  # texts of a forward pass


def learn(
    examples: Sequence[Example],
    categories: Sequence[str],
    model: str,
    *,
    seed: int,
    epochs: float | None = None,
    told: Callable[[], None] = lambda: None,
) -> SequenceModel:
    """A classifier of the categories.

    Args:
        model: a folder or a hub id of an encoder.
        epochs: passes over the examples when the categories are taught; None: what suits their number.
        told: called once a step, `steps_of` times.

    Raises:
        ClassifierError: a package is not installed, or the model cannot be loaded.
    """
    import torch

    torch.manual_seed(seed)
    made = load(model, categories)
    lesson, how = lesson_of(examples, categories), recipe(len(examples), epochs, layered=made.layered)
    if made.layered:
        contrast(made, lesson, how, seed, told)
        states = torch.from_numpy(_forward(made, lesson.texts)[1]).to(made.network.device)
        centred = (lesson.targets - 1 / len(categories)).to(states.device)
        start(made, states, centred, torch.Generator().manual_seed(seed))
    classify(made, lesson, how, seed, told)
    return made


def steps_of(examples: Sequence[Example], *, layered: bool, epochs: float | None = None) -> int:
    """How many steps `learn` takes."""
    how = recipe(len(examples), epochs, layered=layered)
    inside = sum(example.category is not None for example in examples)
    return classify_steps(len(examples), how) + (contrast_steps(inside, how) if layered else 0)


def logits_of(model: SequenceModel, texts: Sequence[str]) -> np.ndarray:
    """float32 [texts, labels]."""
    return _forward(model, texts)[0]


def lesson_of(examples: Sequence[Example], categories: Sequence[str]) -> Lesson:
    """Examples as the stages read them."""
    import torch

    places = {category: place for place, category in enumerate(categories)}
    labels = torch.tensor([-1 if one.category is None else places[one.category] for one in examples])
    pairs = dict.fromkeys((one.category, one.intent) for one in examples if one.category and one.intent)
    finer: dict[tuple[str | None, str | None], int] = {pair: place for place, pair in enumerate(pairs)}
    intents = torch.tensor([finer.get((one.category, one.intent), -1) for one in examples])
    targets = torch.nn.functional.one_hot(labels.clamp(min=0), len(categories)).float()
    targets[labels < 0] = 1 / len(categories)
    return Lesson([one.text for one in examples], labels, intents, targets)


def _forward(model: SequenceModel, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    import torch

    config = model.network.config
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    logits = np.zeros((len(texts), config.num_labels), np.float32)
    states = np.zeros((len(texts), config.hidden_size), np.float32)
    model.network.eval()
    with torch.inference_mode():
        for begin in range(0, len(order), _TOGETHER):
            some = order[begin : begin + _TOGETHER]
            found = model([texts[place] for place in some])
            logits[some], states[some] = (one.float().cpu().numpy() for one in found)
    return logits, states
