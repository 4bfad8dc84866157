"""The models to score and the assignments of categories."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.tools.prove.assignments import Assignments, read_assignments
from vllm_lora_router.tools.prove.endpoint import ProveError, ServedModels

from .conftest import BASE

Write = Callable[..., Path]


def assignments_of(file: Path, served: ServedModels, only: Sequence[str] | None = None) -> Assignments:
    loaded = load(file, adapters=served.adapters)
    return read_assignments(loaded, served_base(loaded, served.bases), served, only)


def test_category_is_assigned_its_highest_entry_or_default_model(config: Write, served: ServedModels) -> None:
    assignments = assignments_of(config(), served)
    assert assignments.models == (BASE, "a-lora", "b-lora")
    assert assignments.served_by == {"A": "a-lora", "B": "b-lora", "C": BASE, "D": BASE}
    assert assignments.system_prompts == {"A": "Say a.", "B": None, "C": None, "D": None}
    default = assignments_of(config(("default_model: base", "default_model: b-lora")), served)
    assert default.served_by["D"] == "b-lora" and default.models == (BASE, "a-lora", "b-lora")


def test_adapter_without_category_is_scored_only_if_requested(config: Write) -> None:
    served = ServedModels((BASE,), ("a-lora", "b-lora", "new-lora"), ())
    assert "new-lora" not in assignments_of(config(), served).models
    assert assignments_of(config(), served, ["new-lora", BASE, "new-lora"]).models == (BASE, "new-lora")


def test_adapter_that_is_not_served_is_reported_with_served_adapters(config: Write) -> None:
    file = config()
    with pytest.raises(ProveError) as raised:
        assignments_of(file, ServedModels((BASE,), ("a-lora",), ()))
    assert str(raised.value).splitlines() == [
        "the server does not serve 'b-lora', named by category 'A'; did you mean 'a-lora'?",
        "it serves a-lora; choose adapters with --models, or serve the missing ones",
    ]
    assert assignments_of(file, ServedModels((BASE,), ("a-lora",), ()), ["a-lora"]).served_by["B"] == "b-lora"
    with pytest.raises(ProveError, match=r"(?s)'c-lora', named by --models.*it serves a-lora, b-lora"):
        assignments_of(file, ServedModels((BASE,), ("a-lora", "b-lora"), ()), ["c-lora"])


def test_routed_base_model_is_refused(config: Write, served: ServedModels) -> None:
    with pytest.raises(ProveError, match=r"config\.yaml: router\.route_base_model is true"):
        assignments_of(config(more="router: {route_base_model: true}\n"), served)
    assert assignments_of(config(more="router: {route_base_model: true, mode: observe}\n"), served).base == BASE
