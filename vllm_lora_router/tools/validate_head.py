"""What `validate` says of a head: how good it is on examples that it did not see, and what it confuses."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.config import Loaded
from vllm_lora_router.config.head_source import head_source, texts_of
from vllm_lora_router.observability.decision_log import printable

CONFUSED = 5  # examples that are shown


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a head that did not see an example says of it."""

    text: str
    category: str
    found: str
    probability: float  # of what was found


def print_head(console: Console, loaded: Loaded, *, files: bool) -> list[str]:
    """Prints it; gives what is wrong with the head's files when they count."""
    source = head_source(loaded.config)
    if source is None:
        return []
    if source == "folder":
        return _print_stored(console, loaded, files=files)
    counts = [len(texts) for texts in texts_of(loaded.config).values()]
    said = f"head: fitted at start from {sum(counts)} texts ({source}) of {len(counts)} categories"
    if not files:
        console.print(Text(f"{said}; --files says how good it is"))
        return []
    from vllm_lora_router.classifiers.head_loader import embedded, load_head
    from vllm_lora_router.classifiers.models.encoder import load_encoder

    try:
        encoder = load_encoder(loaded)
        used, (data, asked) = load_head(loaded, encoder), embedded(loaded, encoder)
    except ClassifierError as error:
        return [str(error)]
    assert used is not None and used.few is not None
    if not used.few.calibrated:
        console.print(Text(f"{said}; too few to tell how good it is: give each category five `examples` or more"))
        return []
    texts = [text.text for own in texts_of(loaded.config).values() for text in own]
    known = used.head.categories
    examples = [
        LeftOut(texts[place], known[label], known[row.argmax()], float(row.max()))
        for place, (row, label) in enumerate(zip(used.few.left_out, data.labels, strict=True))
        if asked[place]
    ]
    _print_left_out(console, said, examples, known)
    return []


def _print_left_out(console: Console, said: str, examples: Sequence[LeftOut], categories: Sequence[str]) -> None:
    right = sum(one.found == one.category for one in examples)
    console.print(Text(f"{said}; each example left out once, {right} of {len(examples)} are found"))
    table = Table("category", "examples", "found", "taken for", title="Head, by leaving out", title_justify="left")
    for name in categories:
        own = [one for one in examples if one.category == name]
        taken = Counter(one.found for one in own if one.found != name)
        said = ", ".join(f"{printable(other)} {count}" for other, count in taken.most_common())
        table.add_row(Text(printable(name)), str(len(own)), str(len(own) - taken.total()), Text(said))
    console.print(table)
    wrong = sorted((one for one in examples if one.found != one.category), key=lambda one: -one.probability)
    for one in wrong[:CONFUSED]:
        said = f"  {one.text[:70]!r} of {one.category!r} looks like {one.found!r} ({one.probability:.2f})"
        console.print(Text(printable(said), style="yellow"))


def _print_stored(console: Console, loaded: Loaded, *, files: bool) -> list[str]:
    from vllm_lora_router.classifiers.head_loader import read_stored

    try:
        stored = read_stored(loaded)
    except ClassifierError as error:
        # preflight has said it already when the files count.
        return [] if files else [str(error)]
    about, head = stored.about, stored.head
    figures = ", ".join(f"{name} {values[0]:.3f}" for name, values in about.get("held_out", {}).items())
    text = f"head: {about.get('chosen')} of {about.get('examples')} examples, on {stored.encoder}; held out: {figures}"
    console.print(Text(printable(text)))
    missing = [one.name for one in loaded.config.categories if one.name not in head.categories]
    if missing:
        console.print(Text(printable(f"head: does not know {', '.join(missing)}")))
    return []
