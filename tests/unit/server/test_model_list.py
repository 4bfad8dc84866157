"""vLLM's list of models as clients see it: the base, the adapters of the tenant, and the auto name."""

import httpx
import pytest

from vllm_lora_router.server.model_list import with_names

from .conftest import App


async def test_model_list_contains_auto_name_and_adapters_under_public_names(
    app: App, client: httpx.AsyncClient
) -> None:
    app.adapters.loaded = {"medical-lora", "legal-lora"}
    response = await client.get("/v1/models")
    cards = response.json()["data"]
    assert [card["id"] for card in cards] == ["served-base", "legal-lora", "medical-lora", "MoM"]
    assert [card.get("parent") for card in cards] == [None, "served-base", "served-base", None]
    assert {card["max_model_len"] for card in cards} == {7}
    assert response.headers["content-length"] == str(len(response.content))


async def test_model_list_depends_on_tenant(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.loaded.clear()
    for headers, names in (({}, []), ({"X-Tenant": "acme"}, ["acmes-own"]), ({"X-Tenant": " "}, [])):
        response = await client.get("/v1/models", headers=headers)
        assert [card["id"] for card in response.json()["data"]] == ["served-base", *names, "MoM"]


async def test_model_list_without_lora_contains_base_and_auto_name(app: App, client: httpx.AsyncClient) -> None:
    app.serving.adapters = None
    data = (await client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in data] == ["served-base", "medical-lora@1a2b3c4d", "MoM"]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"data": []}', b'{"data": 3}', b"[1]"])
def test_model_list_of_unknown_form_is_not_changed(content: bytes) -> None:
    assert with_names(content, ["MoM"], lambda name: False) == content
