"""The two stages of training: contrastive training of the embeddings, then classification."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from vllm_lora_router.tools.evaluate.perturbations import typos
from vllm_lora_router.tools.fit.finetune.model import SequenceModel

MANY_EXAMPLES = 1000  # with fewer, training the lower layers lowers the accuracy
TEMPERATURE = 0.1  # of the similarity of two examples
CONTRAST_BATCH_SIZE = 128  # examples that are compared with each other
_FORWARD_BATCH_SIZE = 32  # of them, sorted by length, in one forward pass
# Batches whose texts are sorted by length. A text of CLINC150 has 11 tokens on average; it is padded to 20 in a batch
# of random texts, and to 14 in a batch of texts of similar length.
_SORTED_BATCHES = 32
_WARM_UP = 0.1  # share of the steps
_LAYER_DECAY = 0.9  # of the learning rate, from a layer to the one below
_HEAD_RATE = 1e-3
_MASKED = -1e4  # infinity has no gradient
_OPENINGS = ("", "please ", "hi, ", "hello! ", "can you help me? ", "i have a question: ", "one more thing: ")
_CLOSINGS = ("", "", " thanks!", " please", " thank you")


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of training."""

    frozen: float  # share of the layers, from the lowest, that are not trained
    contrast_epochs: float
    epochs: float  # of classification
    rate: float  # learning rate of the highest layer
    batch_size: int = 32
    rephrased: float = 0.3  # share of the texts with another case, greeting or closing
    mistyped: float = 0.0  # share of the texts with typos, as in `evaluate`


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Examples as tensors."""

    texts: Sequence[str]
    labels: Any  # category of each example, int64 [examples]; -1: out of scope
    intents: Any  # int64 [examples]; -1: none
    targets: Any  # 1 for the category, uniform if out of scope, float32 [examples, categories]


def choose_recipe(examples: int, epochs: float | None = None, *, has_pooling_layer: bool = True) -> Recipe:
    """Return the hyperparameters for a number of examples.

    The contrastive epochs and `TEMPERATURE` are the best of a few values that were tried with all-MiniLM-L6-v2 on
    CLINC150's validation split. After contrastive training, few examples are not trained further: four epochs of
    classification lowered the accuracy there by half a point to two points. All other values are first guesses,
    including those for many examples.

    Args:
        epochs: Epochs of classification; None: chosen by the number of examples.
        has_pooling_layer: Whether contrastive training is possible; see `load_model`.
    """
    if examples < MANY_EXAMPLES:
        default = 0 if has_pooling_layer else 4
        return Recipe(frozen=0.6, contrast_epochs=16, epochs=default if epochs is None else epochs, rate=1e-4)
    return Recipe(frozen=0, contrast_epochs=0, epochs=5 if epochs is None else epochs, rate=1e-4, mistyped=0.4)


def contrast_steps(examples: int, recipe: Recipe) -> int:
    """Return the number of steps of contrastive training."""
    return math.ceil(math.ceil(examples / CONTRAST_BATCH_SIZE) * recipe.contrast_epochs)


def classification_steps(examples: int, recipe: Recipe) -> int:
    """Return the number of steps of classification."""
    return math.ceil(math.ceil(examples / recipe.batch_size) * recipe.epochs)


def freeze_layers(model: SequenceModel, recipe: Recipe) -> None:
    """Freeze the token embeddings and the lowest layers.

    Examples contain only few of the tokens, and few examples cannot train the lower layers.
    """
    network = model.network
    network.requires_grad_(True)
    network.get_input_embeddings().requires_grad_(False)
    if hasattr(network.base_model, "embeddings"):
        network.base_model.embeddings.requires_grad_(False)
    layers = model.layers()
    for layer in layers[: round(recipe.frozen * (len(layers) - model.has_pooling_layer))]:
        layer.requires_grad_(False)


def train_contrast(
    model: SequenceModel, data: TrainingSet, recipe: Recipe, seed: int, on_step: Callable[[], None]
) -> None:
    """Move each example closer to its nearest neighbours of the same category.

    The loss is that of neighbourhood components analysis (Goldberger et al. 2004) with cosine similarity. It requires
    some near neighbours of the same category. The supervised contrastive loss (Khosla et al. 2020) would require all
    examples of a category to be similar, but a category can contain several topics.
    """
    import torch

    freeze_layers(model, recipe)
    pooling_layer = model.layers()[-1]
    for module in (pooling_layer.attention.output.LayerNorm, pooling_layer.intermediate, pooling_layer.output):
        module.requires_grad_(False)  # until `initialise_from_kernel` has set their weights
    inside = torch.nonzero(data.labels >= 0).flatten()

    def loss_of(batch: Any, random: Random) -> Any:
        indices = inside[batch]
        texts = [_augment(data.texts[index], recipe, random) for index in map(int, indices.tolist())]
        unit = torch.nn.functional.normalize(_first_token_states(model, texts), dim=1)
        similarity = unit @ unit.T / TEMPERATURE
        diagonal = torch.eye(len(indices), dtype=torch.bool, device=similarity.device)
        labels = data.labels[indices].to(similarity.device)
        same_label = (labels[:, None] == labels) & ~diagonal
        has_neighbour = same_label.any(dim=1)
        all_others = similarity.masked_fill(diagonal, _MASKED).logsumexp(dim=1)
        neighbours = similarity.masked_fill(~same_label, _MASKED).logsumexp(dim=1)
        return (all_others - neighbours)[has_neighbour].sum() / max(int(has_neighbour.sum()), 1)

    steps = contrast_steps(len(inside), recipe)
    batches = _random_batches(len(inside), CONTRAST_BATCH_SIZE, torch.Generator().manual_seed(seed))
    _optimise(model, _parameter_groups(model, recipe.rate), batches, steps, loss_of, seed, on_step)


def train_classification(
    model: SequenceModel, data: TrainingSet, recipe: Recipe, seed: int, on_step: Callable[[], None]
) -> None:
    """Train the categories with cross-entropy; intents are trained with another head, which is then discarded.

    The target of out-of-scope examples is uniform: outlier exposure, Hendrycks et al. 2019, "Deep Anomaly Detection
    with Outlier Exposure".
    """
    import torch
    from torch.nn.functional import cross_entropy

    freeze_layers(model, recipe)
    device = model.network.device
    intent_head = torch.nn.Linear(model.network.config.hidden_size, int(data.intents.max()) + 1 or 1).to(device)

    def loss_of(batch: Any, random: Random) -> Any:
        texts = [_augment(data.texts[index], recipe, random) for index in map(int, batch.tolist())]
        logits, states = model(texts)
        loss = cross_entropy(logits, data.targets[batch].to(device))
        intents = data.intents[batch]
        if (intents >= 0).any():
            loss = loss + cross_entropy(intent_head(states), intents.to(device), ignore_index=-1)
        return loss

    groups = [*_parameter_groups(model, recipe.rate), {"params": list(intent_head.parameters()), "lr": _HEAD_RATE}]
    steps = classification_steps(len(data.texts), recipe)
    generator = torch.Generator().manual_seed(seed)
    batches = _batches_by_length([len(text) for text in data.texts], recipe.batch_size, generator)
    _optimise(model, groups, batches, steps, loss_of, seed, on_step)


def _first_token_states(model: SequenceModel, texts: Sequence[str]) -> Any:
    """Return the last layer's output for the first token, [texts, width]; texts of similar length run together."""
    import torch

    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    batches = [order[start : start + _FORWARD_BATCH_SIZE] for start in range(0, len(order), _FORWARD_BATCH_SIZE)]
    states = torch.cat([model([texts[index] for index in batch])[1] for batch in batches])
    return states[torch.tensor(order).argsort().to(states.device)]


def _parameter_groups(model: SequenceModel, rate: float) -> list[dict[str, Any]]:
    """Return the trainable parameters with a learning rate that decays from the highest layer to the lowest."""
    groups: list[dict[str, Any]] = []
    grouped: set[int] = set()
    for depth, layer in enumerate(reversed(model.layers())):
        parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        grouped.update(map(id, parameters))
        groups.append({"params": parameters, "lr": rate * _LAYER_DECAY**depth})
    rest = [
        parameter
        for parameter in model.network.parameters()
        if parameter.requires_grad and id(parameter) not in grouped
    ]
    groups.append({"params": rest, "lr": rate if model.has_pooling_layer else _HEAD_RATE})
    return [group for group in groups if group["params"]]


def _optimise(
    model: SequenceModel,
    groups: list[dict[str, Any]],
    batches: Iterator[Any],
    steps: int,
    loss_of: Callable[[Any, Random], Any],
    seed: int,
    on_step: Callable[[], None],
) -> None:
    """Run AdamW with a linear warm-up and decay of the learning rate."""
    import torch

    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    warm_up = max(round(steps * _WARM_UP), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / max(steps - warm_up, 1))
    )
    random = Random(seed)
    model.network.train()
    for batch in islice(batches, steps):
        loss_of(batch, random).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        on_step()
    model.network.eval()


def _random_batches(count: int, size: int, generator: Any) -> Iterator[Any]:
    """Yield batches of indices in random order without end, each index once per epoch."""
    import torch

    while True:
        yield from torch.randperm(count, generator=generator).split(size)


def _batches_by_length(lengths: Sequence[int], size: int, generator: Any) -> Iterator[Any]:
    """Yield batches of texts of similar length without end, in random order, each index once per epoch."""
    import torch

    all_lengths = torch.tensor(lengths)
    for indices in _random_batches(len(lengths), size * _SORTED_BATCHES, generator):
        batches = indices[all_lengths[indices].argsort()].split(size)
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[number]


def _augment(text: str, recipe: Recipe, random: Random) -> str:
    """Return the text with random typos, case and polite phrases.

    Without polite phrases in training, a model takes polite texts for small talk.
    """
    if random.random() < recipe.mistyped:
        text = typos(text, random)
    if random.random() >= recipe.rephrased:
        return text
    text = text.lower() if random.random() < 0.3 else text
    text = text.rstrip(" ?.!") if random.random() < 0.5 else text
    return random.choice(_OPENINGS) + text + random.choice(_CLOSINGS)
