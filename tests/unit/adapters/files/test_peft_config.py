"""adapter_config.json files that are invalid or use features that vLLM does not serve are refused with the reason."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.validation import AdapterError, validate_adapter

if TYPE_CHECKING:
    from .conftest import Files

BASE = BaseModel("acme/tiny")


def refusal(files: Files, without: str = "", **settings: Any) -> AdapterError:
    with pytest.raises(AdapterError) as refused:
        validate_adapter("medical-lora", files.adapter(None, without, **settings), BASE)
    return refused.value


def test_message_names_adapter_folder_file_and_remedy(files: Files) -> None:
    message = str(refusal(files, bias="all"))
    assert message == (
        f"adapter 'medical-lora' ({files.root / 'medical'}): adapter_config.json: bias is 'all': vLLM does not "
        "serve biases of adapters; train with bias='none'"
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("alora_invocation_tokens", [1, 2]),
        ("layer_replication", [[0, 1], [0, 1]]),
        ("use_bdlora", {"nblocks": 2}),
        ("use_qalora", True),
        ("modules_to_save", ["score", "lm_head"]),
        ("modules_to_save", "score"),
        ("modules_to_save", [["score"]]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("bias", "lora_only"),
        ("bias", None),
    ],
)
def test_feature_that_vllm_does_not_serve_is_refused(files: Files, setting: str, value: Any) -> None:
    problems = refusal(files, **{setting: value}).problems
    assert len(problems) == 1
    assert setting in problems[0]
    assert repr(value) in problems[0] or isinstance(value, str)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_dora", False),
        ("modules_to_save", []),
        ("modules_to_save", ["classifier", "score"]),
        ("init_lora_weights", "gaussian"),
        ("init_lora_weights", "EVA"),
        ("init_lora_weights", False),
        ("target_modules", "all-linear"),
        ("target_modules", r".*\.(q|k)_proj"),
        ("rank_pattern", None),
        ("use_rslora", True),
    ],
)
def test_setting_that_vllm_serves_is_accepted(files: Files, setting: str, value: Any) -> None:
    validate_adapter("medical-lora", files.adapter(None, "", **{setting: value}), BASE)


@pytest.mark.parametrize("setting", ["peft_type", "bias", "modules_to_save", "init_lora_weights", "rank_pattern"])
def test_setting_with_a_default_in_vllm_is_optional(files: Files, setting: str) -> None:
    validate_adapter("medical-lora", files.adapter(without=setting), BASE)


@pytest.mark.parametrize("setting", ["r", "lora_alpha", "target_modules"])
def test_missing_required_setting_is_refused(files: Files, setting: str) -> None:
    (problem,) = refusal(files, without=setting).problems
    assert setting in problem
    assert "missing" in problem


@pytest.mark.parametrize("rank", [0, -8, 4.0, "4", True, None])
def test_rank_that_is_not_a_positive_integer_is_refused(files: Files, rank: object) -> None:
    assert f"r, the rank, is {rank!r}, not a positive integer" in str(refusal(files, r=rank))


@pytest.mark.parametrize(
    "pattern",
    [
        {"q_proj": 0},
        {"q_proj": "8"},
        {"q_(": 8},
        {"(?i)q_proj": 8},
        {"(a+)+b": 8},
        {f"layers.{number}.q_proj": 8 for number in range(501)},
        ["q_proj"],
    ],
)
def test_unusable_rank_pattern_is_refused(files: Files, pattern: object) -> None:
    assert "rank_pattern" in str(refusal(files, rank_pattern=pattern))


NOT_FINITE = ["8", True, [8], float("nan"), float("inf"), -float("inf"), 10**400]


@pytest.mark.parametrize("alpha", [None, *NOT_FINITE], ids=lambda alpha: str(alpha)[:9])
def test_alpha_that_is_not_a_finite_number_is_refused(files: Files, alpha: object) -> None:
    assert "lora_alpha is " in str(refusal(files, lora_alpha=alpha))


@pytest.mark.parametrize("alpha", NOT_FINITE, ids=lambda alpha: str(alpha)[:9])
def test_alpha_pattern_with_a_value_that_is_not_a_finite_number_is_refused(files: Files, alpha: object) -> None:
    assert "alpha_pattern gives 'q_proj' the value" in str(refusal(files, alpha_pattern={"q_proj": alpha}))


@pytest.mark.parametrize(
    "settings", [{"lora_alpha": 0}, {"lora_alpha": 0.0}, {"lora_alpha": 8, "alpha_pattern": {".*_proj": 0}}]
)
def test_adapter_that_changes_no_answer_is_refused(files: Files, settings: dict[str, Any]) -> None:
    (problem,) = refusal(files, **settings).problems
    assert problem == (
        "adapter_config.json: lora_alpha or alpha_pattern is 0 for all 8 modules, so the adapter would not change any "
        "answer; save it again with the lora_alpha that it was trained with"
    )


def test_alpha_pattern_may_give_the_only_scaling(files: Files) -> None:
    folder = files.adapter(lora_alpha=0, alpha_pattern={"q_proj": 8})
    adapter = validate_adapter("medical-lora", folder, BASE)
    assert any("is 0 for 6 of 8 modules" in warning for warning in adapter.warnings)


def test_negative_alpha_is_a_warning(files: Files) -> None:
    adapter = validate_adapter("medical-lora", files.adapter(lora_alpha=-8), BASE)
    assert any("is negative for 8 of 8 modules: vLLM subtracts their LoRA" in text for text in adapter.warnings)


@pytest.mark.parametrize("value", ["false", 0, 1])
def test_rslora_that_is_not_a_bool_is_refused(files: Files, value: object) -> None:
    assert f"use_rslora is {value!r}, not true or false" in str(refusal(files, use_rslora=value))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("inference_mode", False),
        ("fan_in_fan_out", True),
        ("lora_dropout", 0.1),
        ("target_modules", "(a+)+b"),
        ("exclude_modules", "(a+)+b"),
        ("layers_pattern", "(a+)+b"),
    ],
)
def test_setting_that_vllm_ignores_is_accepted(files: Files, setting: str, value: Any) -> None:
    validate_adapter("medical-lora", files.adapter(None, "", **{setting: value}), BASE)


def test_pattern_that_takes_vllm_long_for_the_names_of_the_adapter_is_refused(files: Files) -> None:
    (problem,) = refusal(files, alpha_pattern={".*a.*a.*a.*a.*a.*a.*b": 8}).problems
    assert "vLLM matches rank_pattern and alpha_pattern with the names of 8 modules" in problem


@pytest.mark.parametrize("setting", ["r", "lora_alpha", "bias", "peft_type", "modules_to_save", "rank_pattern"])
@pytest.mark.parametrize("value", ["a" * 500_000, ["a" * 5000] * 100, {"a" * 500_000: "b"}], ids=type)
def test_huge_value_is_shortened_in_the_message(files: Files, setting: str, value: object) -> None:
    assert len(str(refusal(files, "", **{setting: value}))) < 5000


def test_deeply_nested_configuration_is_refused(files: Files) -> None:
    folder = files.adapter()
    (folder / "adapter_config.json").write_text("[" * 200_000)
    with pytest.raises(AdapterError, match=r"adapter_config.json is not usable JSON"):
        validate_adapter("medical-lora", folder, BASE)


def test_large_configuration_is_refused_without_reading_it(files: Files) -> None:
    folder = files.adapter()
    os.truncate(folder / "adapter_config.json", 1_000_000_000)
    with pytest.raises(AdapterError, match=r"adapter_config.json cannot be read .*more than 1,000,000"):
        validate_adapter("medical-lora", folder, BASE)


def test_pipe_as_configuration_is_refused_without_waiting(files: Files) -> None:
    folder = files.adapter()
    (folder / "adapter_config.json").unlink()
    os.mkfifo(folder / "adapter_config.json")
    with pytest.raises(AdapterError, match=r"adapter_config.json cannot be read .*not a regular file"):
        validate_adapter("medical-lora", folder, BASE)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_file_outside_of_the_boundary_is_refused(files: Files, file: str) -> None:
    folder = files.adapter()
    (folder / file).rename(files.root / "elsewhere")
    (folder / file).symlink_to(files.root / "elsewhere")
    validate_adapter("medical-lora", folder, BASE, files.root)
    with pytest.raises(AdapterError, match=r"links to .*/elsewhere, outside of"):
        validate_adapter("medical-lora", folder, BASE, folder)


def test_other_adapter_type_is_refused(files: Files) -> None:
    assert refusal(files, peft_type="IA3").problems == (
        "adapter_config.json: peft_type is 'IA3', but vLLM serves only LORA adapters; train a LoRA",
    )


def test_all_problems_are_reported_at_once(files: Files) -> None:
    error = refusal(files, r=0, bias="all", use_dora=True)
    assert len(error.problems) == 3
    assert str(error).count("\n  - ") == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not usable JSON"), ("[]", "is not a JSON object"), ("\xff\xfe", "is not usable JSON")],
)
def test_configuration_that_is_not_a_json_object_is_refused(files: Files, text: str, message: str) -> None:
    folder = files.adapter()
    (folder / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(AdapterError, match=f"adapter_config.json {message}"):
        validate_adapter("medical-lora", folder, BASE)


def test_missing_configuration_is_reported(files: Files) -> None:
    folder = files.adapter()
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"adapter_config.json is missing; copy all files"):
        validate_adapter("medical-lora", folder, BASE)


def test_unreadable_configuration_is_reported(files: Files) -> None:
    folder = files.adapter()
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").mkdir()
    with pytest.raises(AdapterError, match=r"adapter_config.json cannot be read"):
        validate_adapter("medical-lora", folder, BASE)
