"""Write questions with the answers of the demo's models, for `vllm-lora-router prove`."""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from vllm_lora_router.tools.demo.answers import ADAPTERS, BASE_ANSWER
from vllm_lora_router.tools.demo.questions import QUESTIONS
from vllm_lora_router.tools.prove.pairs import Pair

# The guide's categories and their subjects.
SUBJECTS = {
    "technical": ("computer science", "engineering"),
    "medical": ("health",),
    "legal": ("law",),
    "general": ("other",),
}
ANSWERS = {recipe.name.removesuffix("-lora"): recipe.answer for recipe in ADAPTERS} | {"general": BASE_ANSWER}
PAIRS_PER_CATEGORY = 12


def pairs(each: int = PAIRS_PER_CATEGORY) -> Iterator[Pair]:
    """Yield `each` pairs for each category, every pair with a different question."""
    for category, subjects in SUBJECTS.items():
        questions = chain.from_iterable(zip(*(QUESTIONS[subject] for subject in subjects), strict=False))
        for question in islice(questions, each):
            yield Pair(question, ANSWERS[category], category)


def write(file: Path, each: int = PAIRS_PER_CATEGORY) -> None:
    """Write the pairs as JSONL."""
    lines = (
        json.dumps({"prompt": pair.prompt, "answer": pair.answer, "category": pair.category}) for pair in pairs(each)
    )
    file.write_text("\n".join(lines) + "\n", "utf-8")


def main() -> int:
    """Write the pairs into a file."""
    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.tools.demo.pairs", description=__doc__)
    parser.add_argument("file", type=Path, help="the JSONL file to write")
    parser.add_argument(
        "--each", type=int, default=PAIRS_PER_CATEGORY, help="pairs for each category (default: %(default)s)"
    )
    args = parser.parse_args()
    write(args.file, args.each)
    return 0


if __name__ == "__main__":
    sys.exit(main())
