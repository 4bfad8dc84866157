"""Our own routes, and vLLM's list of models with the auto name in it."""

import json
from pathlib import Path

import httpx
import pytest

from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.observability.audit_destination import destination
from vllm_lora_router.server.model_list import changed
from vllm_lora_router.server.reload import Reloading, ReloadRefused

from .conftest import CONFIG, App


async def test_the_list_of_models_has_the_auto_name_and_every_adapter_under_its_public_name(
    app: App, client: httpx.AsyncClient
) -> None:
    app.adapters.loaded = {"medical-lora", "legal-lora"}
    response = await client.get("/v1/models")
    cards = response.json()["data"]
    assert [card["id"] for card in cards] == ["served-base", "legal-lora", "medical-lora", "MoM"]
    assert [card.get("parent") for card in cards] == [None, "served-base", "served-base", None]
    assert {card["max_model_len"] for card in cards} == {7}
    assert response.headers["content-length"] == str(len(response.content))


async def test_the_list_of_models_is_each_tenants_own(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.loaded.clear()
    for headers, names in (({}, []), ({"X-Tenant": "acme"}, ["acmes-own"]), ({"X-Tenant": " "}, [])):
        response = await client.get("/v1/models", headers=headers)
        assert [card["id"] for card in response.json()["data"]] == ["served-base", *names, "MoM"]


async def test_a_server_without_lora_lists_its_base_and_the_auto_name(app: App, client: httpx.AsyncClient) -> None:
    app.serving.adapters = None
    data = (await client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in data] == ["served-base", "medical-lora@1a2b3c4d", "MoM"]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"data": []}', b'{"data": 3}', b"[1]"])
def test_a_list_of_models_of_another_form_stays_as_it_is(content: bytes) -> None:
    assert changed(content, ["MoM"], lambda name: False) == content


async def test_classify_gives_the_plan_for_a_text(app: App, client: httpx.AsyncClient) -> None:
    plan = (await client.post("/v1/router/classify", json={"text": "my blood"})).json()
    assert (plan["category"], plan["model"], plan["method"], plan["reason"]) == (
        *("medical", "medical-lora", "keyword", "routed"),
    )
    assert [candidate["model"] for candidate in plan["candidates"]] == ["medical-lora", "second-lora", "served-base"]
    assert plan["steps"][0]["classification"]["evidence"]["keywords"] == ["blood"]
    assert app.reached.bodies == []
    assert app.serving.record.tally.reasons == {}


async def test_classify_reads_a_whole_request(client: httpx.AsyncClient) -> None:
    body = {"model": "x", "messages": [{"role": "user", "content": "blood"}, {"role": "user", "content": "lawsuit"}]}
    assert (await client.post("/v1/router/classify", json=body)).json()["category"] == "legal"
    assert (await client.post("/v1/router/classify", json={"prompt": "blood"})).json()["category"] == "medical"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"text": 3}', b'{"text": "\xff"}'])
async def test_classify_says_what_it_needs(client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post("/v1/router/classify", content=content)
    assert response.status_code == 400
    assert "body" in response.json()["error"]["message"]


async def test_health_tells_what_is_in_force_and_what_happened(app: App, client: httpx.AsyncClient) -> None:
    await client.post("/v1/chat/completions", json={"model": "MoM", "messages": [{"role": "user", "content": "blood"}]})
    health = (await client.get("/v1/router/health")).json()
    assert health["status"] == "ok"
    assert health["methods"] == {"keyword": {"failures": {}}}
    assert health["cache"] == {"entries": 0, "bytes": 0, "hits": 0, "misses": 0}
    assert health["decisions"] == {"routed": 1}
    assert health["under_way"] == 0 and health["aborted"] == 0
    assert app.serving.router is not None and health["config"]["version"] == app.serving.router.version


async def test_config_is_shown_under_the_files_own_keys(client: httpx.AsyncClient) -> None:
    shown = (await client.get("/v1/router/config")).json()
    assert shown["base"] == {"alias": "base", "served_names": ["served-base"]}
    assert shown["config"]["model_config"]["base"]["reasoning_family"] == "qwen3"


async def test_our_routes_wait_for_the_engine(app: App, client: httpx.AsyncClient) -> None:
    app.serving.router = None
    assert (await client.get("/v1/router/health")).status_code == 503


ADMIN = CONFIG + "router: {admin_key_env: TEST_ADMIN_KEY}\n"


async def test_admin_routes_are_shut_unless_a_key_is_set_and_said(
    app: App, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"x-lora-router-admin-key": "boss"}
    monkeypatch.delenv("TEST_ADMIN_KEY", raising=False)
    for config, said in ((CONFIG, "router.admin_key_env names none"), (ADMIN, "TEST_ADMIN_KEY is empty")):
        app.configure(config, tmp_path)
        for method, path in (("GET", "/v1/router/adapters"), ("POST", "/v1/router/reload")):
            response = await client.request(method, path, headers=key)
            assert response.status_code == 403 and said in response.json()["error"]["message"]
    monkeypatch.setenv("TEST_ADMIN_KEY", "boss")
    assert (await client.get("/v1/router/adapters", headers=key)).json() == {"adapters": ["all of them"]}
    for headers in ({}, {"x-lora-router-admin-key": "bos"}, {"x-lora-router-admin-key": "bösş".encode()}):
        response = await client.get("/v1/router/adapters", headers=headers)
        assert response.status_code == 403 and "x-lora-router-admin-key" in response.json()["error"]["message"]


async def test_a_reload_says_what_became_of_it(
    app: App, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_ADMIN_KEY", "boss")
    app.configure(ADMIN, tmp_path)
    file = tmp_path / "config.yaml"
    taken: list[bytes] = []

    async def prepare(content: bytes) -> bytes:
        if b"wrong" in content:
            raise ReloadRefused(["config.yaml:1:1: it is wrong"])
        return content

    async def commit(content: bytes, generation: int) -> None:
        taken.append(content)

    reloading = Reloading(RunDirectory.open("server", tmp_path / "run"), file, prepare, commit, poll_s=0.01)
    app.serving.reloading = reloading
    await reloading.begin(file.read_bytes())
    reloading.start()
    try:
        for content, status, outcome, generation in (
            (None, 200, "unchanged", 1),
            (b"right", 200, "taken", 2),
            (b"wrong", 409, "refused", 2),
        ):
            if content is not None:
                file.write_bytes(content)
            response = await client.post("/v1/router/reload", headers={"x-lora-router-admin-key": "boss"})
            found = response.json()
            assert (response.status_code, found["outcome"], found["generation"]) == (status, outcome, generation)
        assert found["problems"] == ["config.yaml:1:1: it is wrong"]
        assert taken == [b"right"]
        health = (await client.get("/v1/router/health")).json()["config"]
        assert (health["generation"], health["refused"]["problems"]) == (2, ["config.yaml:1:1: it is wrong"])
    finally:
        await reloading.stop()


CHAT = {"model": "MoM", "messages": [{"role": "user", "content": "my blood"}]}


async def test_the_latest_decisions_are_the_admins_to_see(
    app: App, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await client.get("/v1/router/decisions")).status_code == 403
    monkeypatch.setenv("TEST_ADMIN_KEY", "boss")
    app.configure(ADMIN, tmp_path)
    for _ in range(3):
        await client.post("/v1/chat/completions", json=CHAT, headers={"X-Tenant": "acme"})
    key = {"x-lora-router-admin-key": "boss"}
    found = (await client.get("/v1/router/decisions?limit=2", headers=key)).json()["decisions"]
    assert [one["plan"]["category"] for one in found] == ["medical", "medical"]
    assert found[0]["at"] > found[1]["at"]
    assert (found[0]["tenant"], found[0]["served"]["version"]) == ("acme", "medical-lora")
    assert (found[0]["served"]["digest"], found[0]["outcome"]["status"]) == ("digest of medical-lora", 200)
    for limit in ("0", "x", "1e3", "100000", "-1", ""):
        response = await client.get(f"/v1/router/decisions?limit={limit}", headers=key)
        assert response.status_code == 400 and "limit" in response.json()["error"]["message"]


async def test_feedback_says_which_decision_it_joined(app: App, client: httpx.AsyncClient) -> None:
    await client.post("/v1/chat/completions", json=CHAT)
    id = f"chatcmpl-{app.reached.headers[-1]['x-request-id']}"
    response = await client.post("/v1/router/feedback", json={"id": id, "score": 1, "comment": "just right"})
    assert (response.status_code, response.json()) == (200, {"id": id, "category": "medical", "arm": None})
    unknown = await client.post("/v1/router/feedback", json={"id": "chatcmpl-x", "score": 0})
    assert unknown.status_code == 404 and "router.audit.path" in unknown.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"{}", b'{"id": "x"}', b'{"score": 1}', b'{"id": "", "score": 1}', b'{"id": 3, "score": 1}'),
        *(b'{"id": "x", "score": "1"}', b'{"id": "x", "score": true}', b'{"id": "x", "score": 1e999}'),
        *(b'{"id": "x", "score": 1, "coment": "x"}', b'{"id": "\xff", "score": 1}', b'{"id": "x", "score": NaN}'),
        b'{"id": "' + b"x" * 257 + b'", "score": 1}',
        b'{"id": "x", "score": 1, "comment": "' + b"x" * 4097 + b'"}',
    ],
)
async def test_feedback_says_what_it_needs(app: App, client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post("/v1/router/feedback", content=content)
    assert response.status_code == 400 and "score" in response.json()["error"]["message"]


async def test_feedback_on_another_processs_answer_is_taken_where_a_record_is_kept(
    app: App, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    router = app.configure(CONFIG + "router: {audit: {path: audit}}\n", tmp_path)
    app.serving.record.write_to(destination(router.loaded))
    response = await client.post("/v1/router/feedback", json={"id": "chatcmpl-x", "score": 0.5})
    assert (response.status_code, response.json()) == (200, {"id": "chatcmpl-x", "category": None, "arm": None})
    app.serving.record.close()
    (file,) = (tmp_path / "audit").glob("*.jsonl")
    assert json.loads(file.read_text())["score"] == 0.5
