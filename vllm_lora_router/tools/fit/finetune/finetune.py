"""Fine-tuning of an encoder: training, held-out metrics, calibration and the model folder."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vllm_lora_router.classifiers.heads.calibration import calibrate
from vllm_lora_router.classifiers.heads.head import probabilities
from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.evaluate.calibration_error import calibration_error
from vllm_lora_router.tools.fit.finetune.model import SequenceModel, load_model
from vllm_lora_router.tools.fit.finetune.train import predict_logits, step_count, train_classifier
from vllm_lora_router.tools.fit.fit import check_enough

Split = tuple[np.ndarray, np.ndarray]  # indices of training examples and of held-out examples

MANY_EXAMPLES = 2000  # enough to hold some of them out
MAX_HELD_OUT = 1000
FOLDS = 5


@dataclass(frozen=True)
class FinetuneResult:
    """The model that was written.

    The metrics are over in-scope examples that this model, or models trained the same way, were not trained on.
    """

    folder: Path
    categories: tuple[str, ...]  # of the outputs, in their order
    held_out: int  # examples
    accuracy: float
    macro_f1: float
    calibration_error: float  # expected calibration error, 0 to 1
    temperature: float  # divisor of the logits
    steps: int
    seconds: float


def finetune(
    examples: Sequence[Example],
    model: str,
    folder: Path,
    *,
    seed: int = 0,
    epochs: float | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> FinetuneResult:
    """Train an encoder and write it as a sequence classifier of transformers with one output per category.

    The folder can be used as `classifier.category_model.model_id`. Intents are trained too, but are not among the
    outputs. Out-of-scope examples are trained to have equal probabilities for all categories, so that a threshold
    rejects similar texts. The logits are divided by a temperature that is fitted on held-out examples (Guo et al. 2017,
    "On Calibration of Modern Neural Networks"). With many examples, a tenth is held out. With few examples, each is
    held out once in cross-validation, and the written model is trained on all of them. The same seed gives the same
    model on the same machine.

    Args:
        model: Encoder: a folder or a Hub id.
        folder: New or empty folder.
        epochs: Epochs of the classification stage; None: chosen by the number of examples.
        on_step: Called after each step with the number of steps done and the total.

    Raises:
        DataError: All examples are of one category, a category has a single example, or the folder is not empty.
        ClassifierError: A package is not installed, or the model cannot be loaded.
    """
    start = time.monotonic()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError([f"{folder}: exists and is not an empty folder; choose another one"])
    check_enough(examples)
    categories = tuple(dict.fromkeys(example.category for example in examples if example.category is not None))
    has_pooling_layer = load_model(model, categories).has_pooling_layer
    import torch
    from sklearn.metrics import f1_score

    splits = _splits(examples, seed)
    train_on_all = len(splits) > 1
    training_sets = [[examples[index] for index in train] for train, _ in splits]
    runs = [*training_sets, *([list(examples)] if train_on_all else [])]
    total = sum(step_count(run, has_pooling_layer=has_pooling_layer, epochs=epochs) for run in runs)
    done = 0

    def count_step() -> None:
        nonlocal done
        done += 1
        on_step(done, total)

    fold_logits, labels = [], []
    trained: SequenceModel | None = None
    with torch.random.fork_rng():
        for training_set, (_, test) in zip(training_sets, splits, strict=True):
            trained = train_classifier(training_set, categories, model, seed=seed, epochs=epochs, on_step=count_step)
            inside = [example for index in test if (example := examples[index]).category is not None]
            fold_logits.append(predict_logits(trained, [example.text for example in inside]))
            labels += [categories.index(example.category or "") for example in inside]
        if train_on_all:
            trained = train_classifier(examples, categories, model, seed=seed, epochs=epochs, on_step=count_step)
    logits, label_array = np.concatenate(fold_logits), np.array(labels)
    membership = np.eye(len(categories), dtype=np.float32)
    scale = calibrate(logits, label_array, membership, np.ones(len(labels))).scale
    predictions = logits.argmax(axis=1)
    correct = predictions == label_array
    confidences = probabilities(logits, scale, -np.inf, membership).max(axis=1)
    temperature = 1 / scale
    assert trained is not None
    write_model(trained, categories, temperature, folder)
    return FinetuneResult(
        folder=folder,
        categories=categories,
        held_out=len(labels),
        accuracy=float(correct.mean()),
        macro_f1=float(f1_score(label_array, predictions, average="macro")),
        calibration_error=calibration_error(confidences, correct),
        temperature=temperature,
        steps=done,
        seconds=time.monotonic() - start,
    )


def write_model(model: SequenceModel, categories: Sequence[str], temperature: float, folder: Path) -> None:
    """Write the model with logits divided by the temperature, its tokenizer and `category_mapping.json`."""
    import torch

    output = next(
        module
        for module in reversed(list(model.network.modules()))
        if isinstance(module, torch.nn.Linear) and module.out_features == len(categories)
    )
    with torch.no_grad():
        for parameter in output.parameters():
            parameter.div_(temperature)
    folder.mkdir(parents=True, exist_ok=True)
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    mapping = {
        "category_to_idx": {category: index for index, category in enumerate(categories)},
        "idx_to_category": {str(index): category for index, category in enumerate(categories)},
    }
    text = json.dumps(mapping, indent=2, ensure_ascii=False)
    (folder / "category_mapping.json").write_text(text + "\n", encoding="utf-8")
    # safetensors 0.8 makes the file readable for its owner only, but the server may run as another user.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


def _splits(examples: Sequence[Example], seed: int) -> list[Split]:
    """Return one split with a tenth held out if there are many examples, else cross-validation folds."""
    from sklearn.model_selection import StratifiedKFold, train_test_split

    labels = [example.category or "" for example in examples]
    names, counts = np.unique(labels, return_counts=True)
    indices = np.arange(len(examples))
    if len(examples) >= MANY_EXAMPLES and len(names) <= MAX_HELD_OUT:
        held_out = min(len(examples) // 10, MAX_HELD_OUT)
        train, test = train_test_split(indices, test_size=held_out, stratify=labels, random_state=seed)
        return [(np.asarray(train), np.asarray(test))]
    folds = StratifiedKFold(max(min(FOLDS, int(counts.min())), 2), shuffle=True, random_state=seed)
    return [(np.asarray(train), np.asarray(test)) for train, test in folds.split(indices, labels)]
