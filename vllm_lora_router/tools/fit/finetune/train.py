"""Training of a sequence classifier on labelled prompts, stage by stage."""

from collections.abc import Callable, Sequence

import numpy as np

from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.fit.finetune.kernel_init import initialise_from_kernel
from vllm_lora_router.tools.fit.finetune.model import SequenceModel, load_model
from vllm_lora_router.tools.fit.finetune.stages import (
    TrainingSet,
    choose_recipe,
    classification_steps,
    contrast_steps,
    train_classification,
    train_contrast,
)

_BATCH_SIZE = 64  # texts of a forward pass


def train_classifier(
    examples: Sequence[Example],
    categories: Sequence[str],
    model: str,
    *,
    seed: int,
    epochs: float | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> SequenceModel:
    """Train a classifier of the categories.

    Args:
        model: Encoder: a folder or a Hub id.
        epochs: Epochs of classification; None: chosen by the number of examples.
        on_step: Called after each step, `step_count` times.

    Raises:
        ClassifierError: A package is not installed, or the model cannot be loaded.
    """
    import torch

    torch.manual_seed(seed)
    trained = load_model(model, categories)
    has_pooling_layer = trained.has_pooling_layer
    data = training_set(examples, categories)
    recipe = choose_recipe(len(examples), epochs, has_pooling_layer=has_pooling_layer)
    if has_pooling_layer:
        train_contrast(trained, data, recipe, seed, on_step)
        states = torch.from_numpy(_forward(trained, data.texts)[1]).to(trained.network.device)
        centred = (data.targets - 1 / len(categories)).to(states.device)
        initialise_from_kernel(trained, states, centred, torch.Generator().manual_seed(seed))
    train_classification(trained, data, recipe, seed, on_step)
    return trained


def step_count(examples: Sequence[Example], *, has_pooling_layer: bool, epochs: float | None = None) -> int:
    """Return the number of steps of `train_classifier`."""
    recipe = choose_recipe(len(examples), epochs, has_pooling_layer=has_pooling_layer)
    inside = sum(example.category is not None for example in examples)
    contrast = contrast_steps(inside, recipe) if has_pooling_layer else 0
    return classification_steps(len(examples), recipe) + contrast


def predict_logits(model: SequenceModel, texts: Sequence[str]) -> np.ndarray:
    """Return the logits of texts, float32 [texts, labels]."""
    return _forward(model, texts)[0]


def training_set(examples: Sequence[Example], categories: Sequence[str]) -> TrainingSet:
    """Return examples as tensors."""
    import torch

    category_index = {category: index for index, category in enumerate(categories)}
    labels = torch.tensor(
        [-1 if example.category is None else category_index[example.category] for example in examples]
    )
    pairs = dict.fromkeys(
        (example.category, example.intent) for example in examples if example.category and example.intent
    )
    intent_index: dict[tuple[str | None, str | None], int] = {pair: index for index, pair in enumerate(pairs)}
    intents = torch.tensor([intent_index.get((example.category, example.intent), -1) for example in examples])
    targets = torch.nn.functional.one_hot(labels.clamp(min=0), len(categories)).float()
    targets[labels < 0] = 1 / len(categories)
    return TrainingSet([example.text for example in examples], labels, intents, targets)


def _forward(model: SequenceModel, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits, [texts, labels], and the last layer's output for the first token, [texts, width]."""
    import torch

    config = model.network.config
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    logits = np.zeros((len(texts), config.num_labels), np.float32)
    states = np.zeros((len(texts), config.hidden_size), np.float32)
    model.network.eval()
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH_SIZE):
            batch = order[start : start + _BATCH_SIZE]
            outputs = model([texts[index] for index in batch])
            logits[batch], states[batch] = (output.float().cpu().numpy() for output in outputs)
    return logits, states
