"""Measure accuracy with few examples for each category, on CLINC150's ten domains."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vllm_lora_router.classifiers.heads.few_shot import fit_few_shot
from vllm_lora_router.classifiers.heads.kernel_ridge import LabelledEmbeddings
from vllm_lora_router.classifiers.models.source import packaged
from vllm_lora_router.tools.bench.datasets import clinc150
from vllm_lora_router.tools.bench.domains import Encode, encoder_of
from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.fit.finetune.train import predict_logits, train_classifier
from vllm_lora_router.tools.fit.fit import embed_labelled

DRAWS = 5

Accuracy = Callable[[Sequence[int], int], float]  # (indices of examples, seed) -> accuracy


def sample_examples(examples: Sequence[Example], count: int, seed: int, *, cover: bool) -> list[int]:
    """Return the indices of `count` random examples for each category; `cover` spreads them over intents."""
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for category in sorted({example.category for example in examples if example.category is not None}):
        indices = [index for index in rng.permutation(len(examples)) if examples[index].category == category]
        chosen += list(_by_distinct_intents(indices, examples) if cover else indices)[:count]
    return [int(index) for index in chosen]


def _by_distinct_intents(indices: Sequence[int], examples: Sequence[Example]) -> Iterator[int]:
    # First one example of each intent, then a second of each, and so on.
    used: dict[str | None, int] = {}
    rounds = []
    for index in indices:
        intent = examples[index].intent
        used[intent] = used.get(intent, 0) + 1
        rounds.append((used[intent], index))
    yield from (index for _, index in sorted(rounds, key=lambda pair: pair[0]))


def main() -> int:
    """Print the mean accuracy over the draws and its standard error."""
    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.tools.bench.few", description=__doc__)
    parser.add_argument("data", type=Path, help="a folder with CLINC150's data_full.json and domains.json")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="default: %(default)s")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="evaluated split")
    parser.add_argument(
        "--counts",
        type=int,
        nargs="+",
        default=[2, 5, 8, 20, 50],
        help="examples per domain",
    )
    variant = parser.add_mutually_exclusive_group()
    variant.add_argument("--names", action="store_true", help="use each domain's name as its category's description")
    variant.add_argument("--finetune", action="store_true", help="fine-tune the encoder, as `fit --finetune` does")
    args = parser.parse_args()
    train, test = (
        [example for example in clinc150(args.data, name) if example.category] for name in ("train", args.split)
    )
    console = Console()
    with console.status("encoding"):
        accuracy = (
            finetuned(train, test, args.model) if args.finetune else frozen(train, test, args.model, names=args.names)
        )
    table = Table("examples per domain", "random", "from different intents", title=f"accuracy, {args.split} split")
    with console.status("fitting"):
        for count in args.counts:
            cells = []
            for cover in (False, True):
                accuracies = [accuracy(sample_examples(train, count, seed, cover=cover), seed) for seed in range(DRAWS)]
                cells.append(f"{np.mean(accuracies):.4f} +- {np.std(accuracies, ddof=1) / np.sqrt(DRAWS):.4f}")
            table.add_row(str(count), *cells)
    console.print(table)
    return 0


def frozen(train: Sequence[Example], test: Sequence[Example], model: str, *, names: bool) -> Accuracy:
    """Return the accuracy function of a head on the frozen encoder."""
    encode = encoder_of(model, "torch")
    known, unseen = (_by_category(examples, encode) for examples in (train, test))
    named = None
    if names:
        named = _by_category([Example(_readable(name), name) for name in sorted(known.categories)], encode)

    def accuracy(indices: Sequence[int], seed: int) -> float:
        subset, is_example = known.subset(np.array(indices)), np.ones(len(indices), bool)
        if named is not None:
            subset = replace(
                subset,
                vectors=np.concatenate([subset.vectors, named.vectors]),
                outputs=np.concatenate([subset.outputs, named.outputs]),
            )
            is_example = np.concatenate([is_example, np.zeros(len(named), bool)])
        head = fit_few_shot(subset, is_example).head
        return float((head(unseen.vectors).argmax(axis=1) == unseen.labels).mean())

    return accuracy


def finetuned(train: Sequence[Example], test: Sequence[Example], model: str) -> Accuracy:
    """Return the accuracy function of a fine-tuned encoder; intents are not used."""
    folder = str(packaged(model) or model)
    categories = sorted({example.category for example in train if example.category is not None})
    labels = np.array([categories.index(example.category or "") for example in test])

    def accuracy(indices: Sequence[int], seed: int) -> float:
        subset = [replace(train[index], intent=None) for index in indices]
        finetuned_model = train_classifier(subset, categories, folder, seed=seed)
        logits = predict_logits(finetuned_model, [example.text for example in test])
        return float((logits.argmax(axis=1) == labels).mean())

    return accuracy


def _by_category(examples: Sequence[Example], encode: Encode) -> LabelledEmbeddings:
    # Sorted by category, so that category indices agree between the splits.
    order = sorted(range(len(examples)), key=lambda index: (examples[index].category or "", index))
    embeddings = embed_labelled([Example(examples[index].text, examples[index].category) for index in order], encode)
    return embeddings.subset(np.argsort(order))


def _readable(name: str) -> str:
    return name.replace("_", " ")


if __name__ == "__main__":
    raise SystemExit(main())
