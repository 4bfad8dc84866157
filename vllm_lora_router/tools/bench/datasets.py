"""Public labelled questions as files that `fit` and `evaluate` read, with a configuration of their categories.

CLINC150: Larson et al. 2019, "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction", its 150
intents as ten domains. Exemplars: vllm-project/semantic-router's of the 14 subjects of MMLU-Pro.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from vllm_lora_router.tools.data.examples import Example

SPLITS = ("train", "val", "test")


def clinc150(data: Path, split: str) -> list[Example]:
    """A split with its intents and what is out of scope.

    Args:
        data: a folder with `data_full.json` of clinc/oos-eval and `domains.json`, domain -> its intents.
    """
    intents = json.loads((data / "domains.json").read_text("utf-8"))
    domains = {intent: domain for domain, own in intents.items() for intent in own}
    pairs = json.loads((data / "data_full.json").read_text("utf-8"))
    return [
        *(Example(text, domains[intent], intent) for text, intent in pairs[split]),
        *(Example(text, None) for text, _ in pairs.get(f"oos_{split}", ())),
    ]


def exemplars(data: Path) -> list[Example]:
    """The exemplars of every subject; `data` is a folder with `labels.json`."""
    labels = json.loads((data / "labels.json").read_text("utf-8"))["labels"]
    return [Example(text, subject) for subject, said in labels.items() for text in said["exemplars"]]


def write(file: Path, examples: Iterable[Example], *, intents: bool = False) -> None:
    """Writes a line of JSON an example."""
    lines = []
    for one in examples:
        said = {"text": one.text, "category": one.category, **({"intent": one.intent} if intents else {})}
        lines.append(json.dumps(said, ensure_ascii=False) + "\n")
    file.write_text("".join(lines), "utf-8")


def write_config(file: Path, categories: Sequence[str], head: str | None = None) -> None:
    """Writes a configuration that tells these categories apart, all of them the base's."""
    config = {
        "classifier": {"embedding_model": {"head": head or "off"}},
        "model_config": {"base": {"loras": []}},
        "default_model": "base",
        "categories": [{"name": name, "model_scores": [{"model": "base"}]} for name in categories],
    }
    file.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def main() -> int:
    """Writes everything into a folder."""
    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.tools.bench.datasets", description=__doc__)
    parser.add_argument("name", choices=("clinc150", "exemplars"))
    parser.add_argument("data", type=Path, help="the folder of the data set")
    parser.add_argument("output", type=Path, help="the folder that is written into")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.name == "clinc150":
        sets = {split: clinc150(args.data, split) for split in SPLITS}
    else:
        sets = {"exemplars": exemplars(args.data)}
    for name, examples in sets.items():
        write(args.output / f"{name}.jsonl", examples)
        if any(one.intent for one in examples):
            write(args.output / f"{name}-intents.jsonl", examples, intents=True)
    categories = sorted({one.category for own in sets.values() for one in own if one.category is not None})
    write_config(args.output / "unfitted.yaml", categories)
    write_config(args.output / "fitted.yaml", categories, "head")
    print(
        f"{args.output}: {len(categories)} categories; fit unfitted.yaml to the folder head there, then use fitted.yaml"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
