"""The work of a check grows with the size of the configuration, not with its square."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.config.warnings import config_warnings

if TYPE_CHECKING:
    from .conftest import Configs

RULES = {
    "keyword_rules": "keyword_rules:\n{}".format("  - {{category: {name}, keywords: [{name}]}}\n"),
    "embedding_rules": "embedding_rules:\n{}".format("  - {{category: {name}, candidates: [{name}]}}\n"),
    "examples": "",
}


def configuration(count: int, method: str) -> str:
    names = [f"name-{number}" for number in range(count)]
    examples = ", examples: [text {name}]" if method == "examples" else ""
    category = "  - {{name: {name}, model_scores: [{{model: base, lora_name: {name}}}]" + examples + "}}\n"
    head, _, rule = RULES[method].partition("\n")
    return "".join(
        [
            "model_config:\n  base:\n    loras:\n",
            *(f"      - {{name: {name}}}\n" for name in names),
            "default_model: base\ncategories:\n",
            *(category.format(name=name) for name in names),
            f"{head}\n",
            *(rule.format(name=name) for name in names if rule),
        ]
    )


def calls(run: Callable[[], object]) -> int:
    """Return how many calls a function makes, steps of generators included."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("method", RULES)
def test_four_times_as_many_categories_take_about_four_times_the_work(
    configs: Configs, method: str, tmp_path: Path
) -> None:
    def check(count: int) -> int:
        def run() -> None:
            loaded = configs.load(text)
            list(config_warnings(loaded, served_base(loaded)))

        text = configuration(count, method)
        return calls(run)

    check(2)  # fills the caches of the first call
    assert check(400) < 5 * check(100)
