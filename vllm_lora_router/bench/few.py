"""How much a few examples a category are worth: a head of a configuration's own examples, on CLINC150's ten domains."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vllm_lora_router.bench.datasets import clinc150
from vllm_lora_router.bench.domains import Encode, encoder_of
from vllm_lora_router.heads.few import fit_few
from vllm_lora_router.heads.ridge import Labelled
from vllm_lora_router.training.examples import Example
from vllm_lora_router.training.fit import embedded

DRAWS = 5


def drawn(examples: Sequence[Example], count: int, seed: int, *, cover: bool) -> list[int]:
    """The places of so many examples a category, by chance; `cover` takes them from different intents while it can."""
    rng = np.random.default_rng(seed)
    found: list[int] = []
    for category in sorted({one.category for one in examples if one.category is not None}):
        own = [place for place in rng.permutation(len(examples)) if examples[place].category == category]
        found += list(_from_different(own, examples) if cover else own)[:count]
    return [int(place) for place in found]


def _from_different(places: Sequence[int], examples: Sequence[Example]) -> Iterator[int]:
    # One of each intent, then a second of each, and so on.
    taken: dict[str | None, int] = {}
    rounds = []
    for place in places:
        intent = examples[place].intent
        taken[intent] = taken.get(intent, 0) + 1
        rounds.append((taken[intent], place))
    yield from (place for _, place in sorted(rounds, key=lambda one: one[0]))


def main() -> int:
    """Prints the mean accuracy over the draws, with its standard error."""
    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.bench.few", description=__doc__)
    parser.add_argument("data", type=Path, help="a folder with CLINC150's data_full.json and domains.json")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="default: %(default)s")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="default: %(default)s")
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 5, 8, 20, 50], help="examples a domain")
    args = parser.parse_args()
    encode = encoder_of(args.model, "torch")
    train, asked = ([one for one in clinc150(args.data, name) if one.category] for name in ("train", args.split))
    console = Console()
    with console.status("encoding"):
        known, unseen = _by_category(train, encode), _by_category(asked, encode)
    table = Table("examples a domain", "by chance", "from different intents", title=f"accuracy, {args.split} split")
    for count in args.counts:
        cells = []
        for cover in (False, True):
            found = []
            for seed in range(DRAWS):
                some = known.at(np.array(drawn(train, count, seed, cover=cover)))
                head = fit_few(some, np.ones(len(some), bool)).head
                found.append(float((head(unseen.vectors).argmax(axis=1) == unseen.labels).mean()))
            cells.append(f"{np.mean(found):.4f} +- {np.std(found, ddof=1) / np.sqrt(DRAWS):.4f}")
        table.add_row(str(count), *cells)
    console.print(table)
    return 0


def _by_category(examples: Sequence[Example], encode: Encode) -> Labelled:
    # In the order of the names, so that places mean the same in both splits.
    order = sorted(range(len(examples)), key=lambda place: (examples[place].category or "", place))
    found = embedded([Example(examples[place].text, examples[place].category) for place in order], encode)
    back = np.argsort(order)
    return found.at(back)


if __name__ == "__main__":
    raise SystemExit(main())
