"""How much a few examples a category are worth: a head of a configuration's own examples, on CLINC150's ten domains."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vllm_lora_router.classifiers.heads.few_shot import fit_few
from vllm_lora_router.classifiers.heads.kernel_ridge import Labelled
from vllm_lora_router.classifiers.models.encoder import packaged
from vllm_lora_router.tools.bench.datasets import clinc150
from vllm_lora_router.tools.bench.domains import Encode, encoder_of
from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.fit.finetune.train import learn, logits_of
from vllm_lora_router.tools.fit.fit import embedded

DRAWS = 5

Accuracy = Callable[[Sequence[int], int], float]  # what places of examples are worth, learnt with a seed


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
    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.tools.bench.few", description=__doc__)
    parser.add_argument("data", type=Path, help="a folder with CLINC150's data_full.json and domains.json")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="default: %(default)s")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="default: %(default)s")
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 5, 8, 20, 50], help="examples a domain")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--names", action="store_true", help="with each domain's name as its category's description")
    way.add_argument("--finetune", action="store_true", help="the encoder learns them, as `fit --finetune` does")
    args = parser.parse_args()
    train, asked = ([one for one in clinc150(args.data, name) if one.category] for name in ("train", args.split))
    console = Console()
    with console.status("encoding"):
        accuracy = (
            tuned(train, asked, args.model) if args.finetune else frozen(train, asked, args.model, names=args.names)
        )
    table = Table("examples a domain", "by chance", "from different intents", title=f"accuracy, {args.split} split")
    with console.status("learning"):
        for count in args.counts:
            cells = []
            for cover in (False, True):
                found = [accuracy(drawn(train, count, seed, cover=cover), seed) for seed in range(DRAWS)]
                cells.append(f"{np.mean(found):.4f} +- {np.std(found, ddof=1) / np.sqrt(DRAWS):.4f}")
            table.add_row(str(count), *cells)
    console.print(table)
    return 0


def frozen(train: Sequence[Example], asked: Sequence[Example], model: str, *, names: bool) -> Accuracy:
    """Of a head on the encoder as it is."""
    encode = encoder_of(model, "torch")
    known, unseen = (_by_category(some, encode) for some in (train, asked))
    named = _by_category([Example(_spelt(one), one) for one in sorted(known.categories)], encode) if names else None

    def accuracy(places: Sequence[int], seed: int) -> float:
        some, asked_of = known.at(np.array(places)), np.ones(len(places), bool)
        if named is not None:
            some = replace(
                some,
                vectors=np.concatenate([some.vectors, named.vectors]),
                outputs=np.concatenate([some.outputs, named.outputs]),
            )
            asked_of = np.concatenate([asked_of, np.zeros(len(named), bool)])
        head = fit_few(some, asked_of).head
        return float((head(unseen.vectors).argmax(axis=1) == unseen.labels).mean())

    return accuracy


def tuned(train: Sequence[Example], asked: Sequence[Example], model: str) -> Accuracy:
    """Of an encoder that learns them; what they are of beside their categories is not told."""
    folder = str(packaged(model) or model)
    categories = sorted({one.category for one in train if one.category is not None})
    labels = np.array([categories.index(one.category or "") for one in asked])

    def accuracy(places: Sequence[int], seed: int) -> float:
        some = [replace(train[place], intent=None) for place in places]
        made = learn(some, categories, folder, seed=seed)
        return float((logits_of(made, [one.text for one in asked]).argmax(axis=1) == labels).mean())

    return accuracy


def _by_category(examples: Sequence[Example], encode: Encode) -> Labelled:
    # In the order of the names, so that places mean the same in both splits.
    order = sorted(range(len(examples)), key=lambda place: (examples[place].category or "", place))
    found = embedded([Example(examples[place].text, examples[place].category) for place in order], encode)
    return found.at(np.argsort(order))


def _spelt(name: str) -> str:
    return name.replace("_", " ")


if __name__ == "__main__":
    raise SystemExit(main())
