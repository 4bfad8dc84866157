"""What an encoder is taught: first which examples are alike, then which category each is of."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from vllm_lora_router.tools.evaluate.perturbations import typos
from vllm_lora_router.tools.fit.finetune.model import SequenceModel

MANY = 1000  # examples; by fewer, the lower layers could only be spoilt
ALIKE = 0.1  # the temperature of how alike two examples are
TOGETHER = 128  # examples that are compared with each other
_FORWARD = 32  # of them, in the order of their lengths, that pass through the encoder at once
# Batches whose texts are sorted by length. A text of CLINC150 has 11 tokens, and is filled up to 20 in a batch of any
# texts, to 14 in one of like lengths.
_SORTED = 32
_WARM_UP = 0.1  # share of the steps
_DECAY = 0.9  # of the rate, from a layer to the one below
_HEAD_RATE = 1e-3
_NEVER = -1e4  # infinity has no gradient
_OPENINGS = ("", "please ", "hi, ", "hello! ", "can you help me? ", "i have a question: ", "one more thing: ")
_CLOSINGS = ("", "", " thanks!", " please", " thank you")


@dataclass(frozen=True)
class Recipe:
    """How examples are learnt. A pass sees each of them once."""

    frozen: float  # share of the layers, from the lowest, that stay as they are
    contrast: float  # passes that make examples of a category alike
    passes: float  # passes that teach the categories
    rate: float  # of the uppermost layer
    batch: int = 32
    changed: float = 0.3  # share of the texts that are put as somebody else might put them
    mistyped: float = 0.0  # share of the texts with a typo or more, as `evaluate` makes them


@dataclass(frozen=True, eq=False)
class Lesson:
    """Examples as the stages read them."""

    texts: Sequence[str]
    labels: Any  # int64 [examples]: a category; -1: out of scope
    intents: Any  # int64 [examples]; -1: none
    targets: Any  # float32 [examples, categories]: 1 for its category; flat where it is out of scope


def recipe(examples: int, passes: float | None = None, *, layered: bool = True) -> Recipe:
    """What suits so many examples.

    The contrast's passes and `ALIKE` are the best of a few that were tried with all-MiniLM-L6-v2 on CLINC150's
    validation split. After a contrast few examples are taught no more: four passes made it half a point to two points
    less accurate there. All else is a first guess, what is done with many examples included.

    Args:
        passes: that teach the categories, in place of what suits.
        layered: whether the model can be given a start by contrast; see `sequence.load`.
    """
    if examples < MANY:
        suits = 0 if layered else 4
        return Recipe(frozen=0.6, contrast=16, passes=suits if passes is None else passes, rate=1e-4)
    return Recipe(frozen=0, contrast=0, passes=5 if passes is None else passes, rate=1e-4, mistyped=0.4)


def contrast_steps(examples: int, how: Recipe) -> int:
    return math.ceil(math.ceil(examples / TOGETHER) * how.contrast)


def classify_steps(examples: int, how: Recipe) -> int:
    return math.ceil(math.ceil(examples / how.batch) * how.passes)


def freeze(model: SequenceModel, how: Recipe) -> None:
    """Tokens' embeddings never change, for few of them occur in examples; nor do the lower layers by few examples."""
    network = model.network
    network.requires_grad_(True)
    network.get_input_embeddings().requires_grad_(False)
    if hasattr(network.base_model, "embeddings"):
        network.base_model.embeddings.requires_grad_(False)
    layers = model.layers()
    for layer in layers[: round(how.frozen * (len(layers) - model.layered))]:
        layer.requires_grad_(False)


def contrast(model: SequenceModel, lesson: Lesson, how: Recipe, seed: int, told: Callable[[], None]) -> None:
    """Draws each example to those of its category that are near it already.

    The loss is that of neighbourhood components analysis (Goldberger et al. 2004), by cosine. It asks for some near
    neighbours of the same category, where the supervised contrastive loss (Khosla et al. 2020) asks for all of a
    category to be alike, which questions about its several subjects are not.
    """
    import torch

    freeze(model, how)
    added = model.layers()[-1]
    for part in (added.attention.output.LayerNorm, added.intermediate, added.output):
        part.requires_grad_(False)  # until `kernel_start.start` has made something of it
    inside = torch.nonzero(lesson.labels >= 0).flatten()

    def loss_of(places: Any, chance: Random) -> Any:
        own = inside[places]
        states = _states(model, [_said(lesson.texts[place], how, chance) for place in map(int, own.tolist())])
        unit = torch.nn.functional.normalize(states, dim=1)
        alike = unit @ unit.T / ALIKE
        itself = torch.eye(len(own), dtype=torch.bool, device=alike.device)
        labels = lesson.labels[own].to(alike.device)
        same = (labels[:, None] == labels) & ~itself
        some = same.any(dim=1)
        among = alike.masked_fill(itself, _NEVER).logsumexp(dim=1)
        return (among - alike.masked_fill(~same, _NEVER).logsumexp(dim=1))[some].sum() / max(int(some.sum()), 1)

    steps = contrast_steps(len(inside), how)
    batches = _any(len(inside), TOGETHER, torch.Generator().manual_seed(seed))
    _descend(model, _groups(model, how.rate), batches, steps, loss_of, seed, told)


def classify(model: SequenceModel, lesson: Lesson, how: Recipe, seed: int, told: Callable[[], None]) -> None:
    """Teaches the categories by cross-entropy; where there are intents, another head learns them and is thrown away.

    What is out of scope is taught to be all categories alike: outlier exposure, Hendrycks et al. 2019, "Deep Anomaly
    Detection with Outlier Exposure".
    """
    import torch
    from torch.nn.functional import cross_entropy

    freeze(model, how)
    device = model.network.device
    intents = torch.nn.Linear(model.network.config.hidden_size, int(lesson.intents.max()) + 1 or 1).to(device)

    def loss_of(places: Any, chance: Random) -> Any:
        logits, states = model([_said(lesson.texts[place], how, chance) for place in map(int, places.tolist())])
        loss = cross_entropy(logits, lesson.targets[places].to(device))
        finer = lesson.intents[places]
        if (finer >= 0).any():
            loss = loss + cross_entropy(intents(states), finer.to(device), ignore_index=-1)
        return loss

    groups = [*_groups(model, how.rate), {"params": list(intents.parameters()), "lr": _HEAD_RATE}]
    steps = classify_steps(len(lesson.texts), how)
    generator = torch.Generator().manual_seed(seed)
    batches = _alike([len(text) for text in lesson.texts], how.batch, generator)
    _descend(model, groups, batches, steps, loss_of, seed, told)


def _states(model: SequenceModel, texts: Sequence[str]) -> Any:
    """What the last layer makes of each text's first token [texts, width]; none is filled up to a much longer one."""
    import torch

    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    parts = [order[start : start + _FORWARD] for start in range(0, len(order), _FORWARD)]
    states = torch.cat([model([texts[place] for place in part])[1] for part in parts])
    return states[torch.tensor(order).argsort().to(states.device)]


def _groups(model: SequenceModel, rate: float) -> list[dict[str, Any]]:
    layers = model.layers()
    groups: list[dict[str, Any]] = []
    taken: set[int] = set()
    for below, layer in enumerate(reversed(layers)):
        own = [one for one in layer.parameters() if one.requires_grad]
        taken.update(map(id, own))
        groups.append({"params": own, "lr": rate * _DECAY**below})
    rest = [one for one in model.network.parameters() if one.requires_grad and id(one) not in taken]
    groups.append({"params": rest, "lr": _HEAD_RATE if not model.layered else rate})
    return [group for group in groups if group["params"]]


def _descend(
    model: SequenceModel,
    groups: list[dict[str, Any]],
    batches: Iterator[Any],
    steps: int,
    loss_of: Callable[[Any, Random], Any],
    seed: int,
    told: Callable[[], None],
) -> None:
    import torch

    parameters = [one for group in groups for one in group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    warm_up = max(round(steps * _WARM_UP), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / max(steps - warm_up, 1))
    )
    chance = Random(seed)
    model.network.train()
    for places in islice(batches, steps):
        loss_of(places, chance).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        told()
    model.network.eval()


def _any(count: int, size: int, generator: Any) -> Iterator[Any]:
    """Batches of places in random order, each place once a pass, without end."""
    import torch

    while True:
        yield from torch.randperm(count, generator=generator).split(size)


def _alike(lengths: Sequence[int], size: int, generator: Any) -> Iterator[Any]:
    """The same of places of like lengths, out of some batches at a time and those in random order."""
    import torch

    sized = torch.tensor(lengths)
    for places in _any(len(lengths), size * _SORTED, generator):
        batches = places[sized[places].argsort()].split(size)
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[batch]


def _said(text: str, how: Recipe, chance: Random) -> str:
    """The text, or as somebody else might put it; without these, politeness is taken for small talk."""
    if chance.random() < how.mistyped:
        text = typos(text, chance)
    if chance.random() >= how.changed:
        return text
    text = text.lower() if chance.random() < 0.3 else text
    text = text.rstrip(" ?.!") if chance.random() < 0.5 else text
    return chance.choice(_OPENINGS) + text + chance.choice(_CLOSINGS)
