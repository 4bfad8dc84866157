"""The part of `validate` that reports on a head: its accuracy on examples that it was not fitted on, and its errors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.config import LoadedConfig
from vllm_lora_router.config.head_source import head_source, head_texts
from vllm_lora_router.text import printable

MAX_ERRORS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LeftOutExample:
    """An example and its prediction by a head that was fitted without it."""

    text: str
    category: str
    predicted: str
    probability: float  # of the predicted category


def print_head(console: Console, loaded: LoadedConfig, *, files: bool) -> list[str]:
    """Print the accuracy of the configured head; return the problems of its files.

    Args:
        files: Whether the head's files must be valid, and the encoder may be loaded.
    """
    source = head_source(loaded.config)
    if source is None:
        return []
    if source == "folder":
        return _print_stored(console, loaded, files=files)
    counts = [len(texts) for texts in head_texts(loaded.config).values()]
    summary = f"head: fitted at startup from {sum(counts)} texts ({source}) in {len(counts)} categories"
    if not files:
        console.print(Text(f"{summary}; use --files to measure its accuracy"))
        return []
    from vllm_lora_router.classifiers.head_loader import embed_examples, load_head
    from vllm_lora_router.classifiers.models.encoder import load_encoder

    try:
        encoder = load_encoder(loaded)
        head, (data, is_example) = load_head(loaded, encoder), embed_examples(loaded, encoder)
    except ClassifierError as error:
        return [str(error)]
    assert head is not None and head.few_shot is not None
    if not head.few_shot.calibrated:
        console.print(Text(f"{summary}; too few to measure accuracy: give each category at least five `examples`"))
        return []
    texts = [text.text for of_category in head_texts(loaded.config).values() for text in of_category]
    categories = head.head.categories
    examples = [
        LeftOutExample(texts[place], categories[label], categories[row.argmax()], float(row.max()))
        for place, (row, label) in enumerate(zip(head.few_shot.leave_one_out, data.labels, strict=True))
        if is_example[place]
    ]
    _print_left_out(console, summary, examples, categories)
    return []


def _print_left_out(
    console: Console, summary: str, examples: Sequence[LeftOutExample], categories: Sequence[str]
) -> None:
    correct = sum(example.predicted == example.category for example in examples)
    console.print(Text(f"{summary}; leave-one-out: {correct} of {len(examples)} examples are classified correctly"))
    table = Table("category", "examples", "correct", "confused with", title="Head, leave-one-out", title_justify="left")
    for name in categories:
        in_category = [example for example in examples if example.category == name]
        confusions = Counter(example.predicted for example in in_category if example.predicted != name)
        confused_with = ", ".join(f"{printable(other)} {count}" for other, count in confusions.most_common())
        correct = len(in_category) - confusions.total()
        table.add_row(Text(printable(name)), str(len(in_category)), str(correct), Text(confused_with))
    console.print(table)
    errors = [example for example in examples if example.predicted != example.category]
    for example in sorted(errors, key=lambda example: -example.probability)[:MAX_ERRORS_SHOWN]:
        prediction = f"classified as {example.predicted!r} ({example.probability:.2f})"
        text = f"  {example.text[:70]!r} of {example.category!r} is {prediction}"
        console.print(Text(printable(text), style="yellow"))


def _print_stored(console: Console, loaded: LoadedConfig, *, files: bool) -> list[str]:
    from vllm_lora_router.classifiers.head_loader import read_configured_head

    try:
        stored = read_configured_head(loaded)
    except ClassifierError as error:
        # With --files, preflight has reported the error already.
        return [] if files else [str(error)]
    metadata, head = stored.metadata, stored.head
    figures = ", ".join(f"{name} {values[0]:.3f}" for name, values in metadata.get("held_out", {}).items())
    fitted = f"{metadata.get('chosen')} from {metadata.get('examples')} examples, on {stored.encoder}"
    console.print(Text(printable(f"head: {fitted}; held out: {figures}")))
    missing = [category.name for category in loaded.config.categories if category.name not in head.categories]
    if missing:
        console.print(Text(printable(f"head: has no output for {', '.join(missing)}")))
    return []
