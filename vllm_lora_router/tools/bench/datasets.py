"""Convert public labelled questions into files for `fit` and `evaluate`, with a configuration of their categories.

CLINC150: Larson et al. 2019, "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction", its 150
intents in ten domains. Exemplars: those of vllm-project/semantic-router for the 14 subjects of MMLU-Pro.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from vllm_lora_router.tools.data.examples import Example

SPLITS = ("train", "val", "test")


def clinc150(data: Path, split: str) -> list[Example]:
    """Return a split with its intents and out-of-scope questions.

    Args:
        data: a folder with `data_full.json` of clinc/oos-eval and `domains.json` (domain -> intents).
    """
    intents = json.loads((data / "domains.json").read_text("utf-8"))
    domains = {intent: domain for domain, names in intents.items() for intent in names}
    pairs = json.loads((data / "data_full.json").read_text("utf-8"))
    return [
        *(Example(text, domains[intent], intent) for text, intent in pairs[split]),
        *(Example(text, None) for text, _ in pairs.get(f"oos_{split}", ())),
    ]


def exemplars(data: Path) -> list[Example]:
    """Return the exemplars of every subject; `data` is a folder with `labels.json`."""
    labels = json.loads((data / "labels.json").read_text("utf-8"))["labels"]
    return [Example(text, subject) for subject, label in labels.items() for text in label["exemplars"]]


def write(file: Path, examples: Iterable[Example], *, intents: bool = False) -> None:
    """Write one JSON line for each example."""
    lines = []
    for example in examples:
        line = {"text": example.text, "category": example.category}
        if intents:
            line["intent"] = example.intent
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    file.write_text("".join(lines), "utf-8")


def write_config(file: Path, categories: Sequence[str], head: str | None = None) -> None:
    """Write a configuration with these categories, all served by the base model."""
    config = {
        "classifier": {"embedding_model": {"head": head or "off"}},
        "model_config": {"base": {"loras": []}},
        "default_model": "base",
        "categories": [{"name": name, "model_scores": [{"model": "base"}]} for name in categories],
    }
    file.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def main() -> int:
    """Convert a data set into files in a folder."""
    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.tools.bench.datasets", description=__doc__)
    parser.add_argument("name", choices=("clinc150", "exemplars"), help="the data set")
    parser.add_argument("data", type=Path, help="the folder of the data set")
    parser.add_argument("output", type=Path, help="the output folder")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.name == "clinc150":
        sets = {split: clinc150(args.data, split) for split in SPLITS}
    else:
        sets = {"exemplars": exemplars(args.data)}
    for name, examples in sets.items():
        write(args.output / f"{name}.jsonl", examples)
        if any(example.intent for example in examples):
            write(args.output / f"{name}-intents.jsonl", examples, intents=True)
    categories = sorted(
        {example.category for examples in sets.values() for example in examples if example.category is not None}
    )
    write_config(args.output / "unfitted.yaml", categories)
    write_config(args.output / "fitted.yaml", categories, "head")
    print(
        f"{args.output}: {len(categories)} categories; run fit unfitted.yaml --output head there, then use fitted.yaml"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
