"""Fine-tuning: the encoder itself learns the categories, and becomes a model for `category_model`."""

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
from vllm_lora_router.tools.fit.finetune.model import SequenceModel, load
from vllm_lora_router.tools.fit.finetune.train import learn, logits_of, steps_of
from vllm_lora_router.tools.fit.fit import check_enough

Split = tuple[np.ndarray, np.ndarray]  # places of examples to learn, and of those held out

MANY = 2000  # examples: some of them can be spared for calibration
MOST_HELD_OUT = 1000
FOLDS = 5


@dataclass(frozen=True)
class Finetuned:
    """What was written, and what it, or models made alike, said of examples in scope that they did not see."""

    folder: Path
    categories: tuple[str, ...]  # of the outputs, in their order
    held_out: int  # examples
    accuracy: float  # share of them
    macro_f1: float
    calibration_error: float  # expected calibration error, 0 to 1
    temperature: float  # what the logits were divided by
    steps: int
    seconds: float


def finetune(
    examples: Sequence[Example],
    model: str,
    folder: Path,
    *,
    seed: int = 0,
    epochs: float | None = None,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> Finetuned:
    """Trains an encoder and writes it as a sequence classifier of transformers, one output a category.

    The folder is what `classifier.category_model.model_id` takes. Intents are learnt along with the categories, and are
    not among the outputs. Examples out of scope are learnt as no category more than another, so that a threshold cuts
    what is like them. The logits are divided by a temperature that held-out examples give (Guo et al. 2017, "On
    Calibration of Modern Neural Networks"): one in ten where there are many; of few, each in its turn, and then one
    model learns them all. The same seed gives the same model on the same machine.

    Args:
        model: a folder or a hub id of an encoder.
        folder: new or empty.
        epochs: passes over the examples when the categories are taught; None: what suits their number.
        told: called with the steps that are done, and of how many.

    Raises:
        DataError: there are examples of one category only, or a single one of a category; or the folder holds
            something.
        ClassifierError: a package is not installed, or the model cannot be loaded.
    """
    began = time.monotonic()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError([f"{folder}: is there already and is not an empty folder; name another one"])
    check_enough(examples)
    categories = tuple(dict.fromkeys(one.category for one in examples if one.category is not None))
    layered = load(model, categories).layered
    import torch
    from sklearn.metrics import f1_score

    splits = _splits(examples, seed)
    again = len(splits) > 1
    sizes = [*([examples[place] for place in known] for known, _ in splits), *([examples] if again else [])]
    of = sum(steps_of(some, layered=layered, epochs=epochs) for some in sizes)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        told(done, of)

    found, labels = [], []
    made: SequenceModel | None = None
    with torch.random.fork_rng():
        for some, (_, unseen) in zip(sizes, splits, strict=False):
            made = learn(some, categories, model, seed=seed, epochs=epochs, told=step)
            inside = [one for place in unseen if (one := examples[place]).category is not None]
            found.append(logits_of(made, [one.text for one in inside]))
            labels += [categories.index(one.category or "") for one in inside]
        if again:
            made = learn(examples, categories, model, seed=seed, epochs=epochs, told=step)
    logits, right = np.concatenate(found), np.array(labels)
    each = np.eye(len(categories), dtype=np.float32)
    scale = calibrate(logits, right, each, np.ones(len(right))).scale
    guessed = logits.argmax(axis=1)
    found_right = guessed == right
    sure = probabilities(logits, scale, -np.inf, each).max(axis=1)
    temperature = 1 / scale
    assert made is not None
    write(made, categories, temperature, folder)
    return Finetuned(
        folder=folder,
        categories=categories,
        held_out=len(right),
        accuracy=float(found_right.mean()),
        macro_f1=float(f1_score(right, guessed, average="macro")),
        calibration_error=calibration_error(sure, found_right),
        temperature=temperature,
        steps=done,
        seconds=time.monotonic() - began,
    )


def write(model: SequenceModel, categories: Sequence[str], temperature: float, folder: Path) -> None:
    """Writes the model, its tokenizer and `category_mapping.json`; its logits are divided by the temperature."""
    import torch

    linear = next(
        one
        for one in reversed(list(model.network.modules()))
        if isinstance(one, torch.nn.Linear) and one.out_features == len(categories)
    )
    with torch.no_grad():
        for parameter in linear.parameters():
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
    # safetensors 0.8 writes it for its owner alone, who need not be who serves.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


def _splits(examples: Sequence[Example], seed: int) -> list[Split]:
    from sklearn.model_selection import StratifiedKFold, train_test_split

    labels = [one.category or "" for one in examples]
    names, counts = np.unique(labels, return_counts=True)
    places = np.arange(len(examples))
    if len(examples) >= MANY and len(names) <= MOST_HELD_OUT:
        held_out = min(len(examples) // 10, MOST_HELD_OUT)
        known, unseen = train_test_split(places, test_size=held_out, stratify=labels, random_state=seed)
        return [(np.asarray(known), np.asarray(unseen))]
    folds = StratifiedKFold(max(min(FOLDS, int(counts.min())), 2), shuffle=True, random_state=seed)
    return [(np.asarray(known), np.asarray(unseen)) for known, unseen in folds.split(places, labels)]
