"""Which model serves a category, and which are asked, is what the configuration and the server say."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.tools.prove.assignments import Assigned, assigned
from vllm_lora_router.tools.prove.endpoint import ProofError, Served

from .conftest import BASE

Write = Callable[..., Path]


def of(file: Path, served: Served, only: Sequence[str] | None = None) -> Assigned:
    loaded = load(file, adapters=served.adapters)
    return assigned(loaded, served_base(loaded, served.bases), served, only)


def test_the_highest_entry_serves_and_the_default_where_there_is_none(config: Write, served: Served) -> None:
    found = of(config(), served)
    assert found.models == (BASE, "a-lora", "b-lora")
    assert found.served_by == {"A": "a-lora", "B": "b-lora", "C": BASE, "D": BASE}
    assert found.system_prompts == {"A": "Say a.", "B": None, "C": None, "D": None}
    default = of(config(("default_model: base", "default_model: b-lora")), served)
    assert default.served_by["D"] == "b-lora" and default.models == (BASE, "a-lora", "b-lora")


def test_an_adapter_that_no_category_names_is_asked_only_when_it_is_named(config: Write) -> None:
    served = Served((BASE,), ("a-lora", "b-lora", "new-lora"), ())
    assert "new-lora" not in of(config(), served).models
    assert of(config(), served, ["new-lora", BASE, "new-lora"]).models == (BASE, "new-lora")


def test_adapters_that_the_server_does_not_serve_are_told_with_those_that_it_does(config: Write) -> None:
    file = config()
    with pytest.raises(ProofError) as raised:
        of(file, Served((BASE,), ("a-lora",), ()))
    assert str(raised.value).splitlines() == [
        "the server does not serve 'b-lora', which category 'A' names; did you mean 'a-lora'?",
        "it serves a-lora; name those to ask with --models, or serve what is missing",
    ]
    assert of(file, Served((BASE,), ("a-lora",), ()), ["a-lora"]).served_by["B"] == "b-lora"
    with pytest.raises(ProofError, match=r"(?s)'c-lora', which --models names.*it serves a-lora, b-lora"):
        of(file, Served((BASE,), ("a-lora", "b-lora"), ()), ["c-lora"])


def test_a_base_that_is_routed_by_its_name_cannot_be_asked(config: Write, served: Served) -> None:
    with pytest.raises(ProofError, match=r"config\.yaml: router\.route_base_model is true"):
        of(config(more="router: {route_base_model: true}\n"), served)
    assert of(config(more="router: {route_base_model: true, mode: observe}\n"), served).base == BASE
