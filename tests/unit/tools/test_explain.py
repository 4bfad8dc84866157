"""`vllm-lora-router explain`."""

import pytest

from vllm_lora_router.cli import main


def test_explain_prints_the_meaning_type_default_and_example_of_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "router.affinity.margin"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("router.affinity.margin: number from 0 to 1, default 0.15\n\n  Minimum difference")
    assert printed.endswith("Example:\n\n  router:\n    affinity:\n      margin: 0.15\n")


@pytest.mark.parametrize("key", ["categories[].name", "categories.name", "categories[3].name"])
def test_explain_accepts_a_path_with_and_without_indexes(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", key]) == 0
    assert capsys.readouterr().out.startswith("categories[].name: text, required\n")


def test_explain_lists_the_keys_of_a_block(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "router.affinity"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("router.affinity: block\n")
    assert "\nKeys:\nenabled: true or false, default true\n" in printed
    assert "\nturns: integer from 2 to 64, default 8\n" in printed


def test_explain_without_a_key_lists_the_top_level(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    printed = capsys.readouterr().out
    assert "\ndefault_model: text, required\n" in printed and "\nrouter: block\n" in printed
    assert "vllm_endpoints" not in printed


def test_explain_describes_an_ignored_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "vllm_endpoints"]) == 0
    assert "Accepted and ignored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("router.afinity.margin", "'router.affinity.margin'"),
        ("margin", "'router.affinity.margin'"),
        ("margn", "'router.affinity.margin'"),
        ("lora_name", "'categories[].model_scores[].lora_name'"),
        ("categories[].modelscores", "'categories[].model_scores'"),
    ],
)
def test_explain_of_an_unknown_key_names_the_nearest_keys(
    key: str, suggestion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", key]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"unknown key {key!r}; did you mean {suggestion}")


def test_explain_of_an_unrelated_word_refers_to_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "zzzzzz"]) == 1
    assert capsys.readouterr().err == ("unknown key 'zzzzzz'; `vllm-lora-router explain` lists the top-level keys\n")
