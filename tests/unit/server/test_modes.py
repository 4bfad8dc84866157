"""Router modes, the routed share of the users, and A/B tests."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.factory import Classifiers
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.api import _method_status  # pyright: ignore[reportPrivateUsage]
from vllm_lora_router.types import Classification, Method

from .conftest import CONFIG, App, body_for

CHAT = "/v1/chat/completions"
OBSERVE = CONFIG + "router: {mode: observe}\n"


def chat(text: str, model: str | None = "MoM", **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], **more}
    return body if model is None else {"model": model, **body}


async def test_observe_mode_reports_decision_and_applies_nothing(
    app: App, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    app.configure(OBSERVE, tmp_path)
    response = await client.post(CHAT, json=chat("my blood"))
    assert app.received.json == chat("my blood", "served-base")
    assert response.headers["x-vsr-selected-category"] == "medical"
    assert response.headers["x-vsr-selected-model"] == "medical-lora"
    assert response.headers["x-vsr-injected-system-prompt"] == "false"
    assert response.headers["x-vsr-selected-reasoning"] == "off"
    assert response.headers["x-lora-router-reason"] == "observe"
    assert app.adapters.leased == [] and app.serving.recorder.counts.by_reason == {"observe": 1}
    (decision,) = app.serving.recorder.recent_decisions(10)
    assert decision["plan"]["reason"] == "routed" and decision["plan"]["category"] == "medical"
    assert decision["served"]["model"] == "served-base"


@pytest.mark.parametrize("named", ["legal-lora", "served-base", None])
async def test_observe_mode_records_decision_of_named_request(
    app: App, client: httpx.AsyncClient, tmp_path: Path, named: str | None
) -> None:
    app.configure(OBSERVE, tmp_path)
    content = json.dumps(chat("my blood", named, odd=[1.0]), indent=1).encode()
    response = await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert app.received.body == content
    assert response.headers["x-vsr-selected-model"] == "medical-lora"
    assert response.headers["x-lora-router-reason"] == "observe"
    (decision,) = app.serving.recorder.recent_decisions(10)
    assert (decision["requested_model"], decision["served"]["model"]) == (named, named or "served-base")
    assert decision["plan"]["category"] == "medical"
    assert decision["id"] == f"chatcmpl-{app.received.headers[-1]['x-request-id']}"
    assert decision["outcome"]["status"] == 200
    assert app.adapters.leased == []


class FailingClassifier:
    method: Method = "domain"
    reads = frozenset({"text"})
    fingerprint = ""

    async def classify(self, queries: Any) -> list[Classification]:
        raise RuntimeError("out of memory")


async def test_observe_mode_ignores_on_error_reject(app: App, client: httpx.AsyncClient, tmp_path: Path) -> None:
    router = app.configure(CONFIG + "router: {mode: observe, on_error: reject}\n", tmp_path)
    app.serving.router = Router(router.loaded, router.base, Classifiers(Cascade([FailingClassifier()], 50), ()))
    for model in ("MoM", "legal-lora"):
        assert (await client.post(CHAT, json=chat("my blood", model))).status_code == 200
    assert [decision["plan"]["reason"] for decision in app.serving.recorder.recent_decisions(2)] == ["error", "error"]
    last = _method_status(app.serving.router.classifiers)["domain"]["last_failure"]
    assert (last["reason"], last["error"]) == ("error", "RuntimeError: out of memory") and last["at"].endswith("+00:00")


@pytest.mark.parametrize("path", ["/tokenize", "/v1/chat/completions/render", "/v1/embeddings"])
async def test_dry_run_and_unrouted_paths_are_not_observed(
    app: App, client: httpx.AsyncClient, tmp_path: Path, path: str
) -> None:
    app.configure(OBSERVE, tmp_path)
    await client.post(path, json=chat("my blood", "legal-lora"))
    assert app.serving.recorder.recent_decisions(10) == []


async def test_mode_off_serves_auto_names_with_default_model(
    app: App, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    app.configure(CONFIG + "router: {mode: off}\n", tmp_path)
    assert app.serving.router is not None and app.serving.router.classifiers.cascade.classifiers == ()
    response = await client.post(CHAT, json=chat("my blood"))
    assert app.received.json == chat("my blood", "served-base")
    assert response.headers["x-lora-router-reason"] == "off"
    await client.post(CHAT, json=chat("my blood", "legal-lora"))
    assert app.received.json["model"] == "legal-lora"
    app.configure(CONFIG, tmp_path)
    await client.post(CHAT, json=chat("my blood"))
    assert app.received.json["model"] == "medical-lora"


async def test_share_routes_stable_part_of_users(app: App, client: httpx.AsyncClient, tmp_path: Path) -> None:
    routed: dict[float, set[int]] = {}
    for share in (0.3, 0.6):
        app.configure(CONFIG + f"router: {{share: {share}}}\n", tmp_path)
        for user in range(200):
            responses = [await client.post(CHAT, json=chat("my blood", user=f"u{user}")) for _ in range(2)]
            reasons = {response.headers["x-lora-router-reason"] for response in responses}
            assert reasons in ({"routed"}, {"not_in_share"})
            assert app.received.json["model"] == ("medical-lora" if reasons == {"routed"} else "served-base")
            if reasons == {"routed"}:
                routed.setdefault(share, set()).add(user)
    assert routed[0.3] < routed[0.6]
    assert 40 < len(routed[0.3]) < 80 and 100 < len(routed[0.6]) < 140


WEIGHTED = CONFIG.replace("  - name: medical\n", "  - name: medical\n    selection: weighted\n").replace(
    "      - {model: base, lora_name: second-lora, score: 0.5}\n",
    "      - {model: base, lora_name: second-lora, score: 0.45}\n      - {model: base, score: 0.45}\n",
)


async def test_user_keeps_arm_across_turns_and_reloads(app: App, client: httpx.AsyncClient, tmp_path: Path) -> None:
    arms: dict[int, str] = {}
    for turn in range(2):
        app.configure(WEIGHTED, tmp_path)
        for user in range(120):
            response = await client.post(CHAT, json=chat(f"my blood, {turn}", safety_identifier=f"u{user}"))
            arm = response.headers["x-lora-router-arm"]
            assert arms.setdefault(user, arm) == arm
            assert app.received.json["model"] == {"base": "served-base"}.get(arm, arm)
    counts = Counter(arms.values())
    assert set(counts) == {"medical-lora", "second-lora", "base"} and counts["medical-lora"] > counts["base"]


async def test_user_key_is_read_from_every_api(app: App, client: httpx.AsyncClient, tmp_path: Path) -> None:
    app.configure(WEIGHTED, tmp_path)
    for user in range(20):
        name = f"u{user}"
        requests = [
            (CHAT, {"safety_identifier": name}, {}),
            (CHAT, {"user": name}, {}),
            (CHAT, {"user": None, "metadata": {"user_id": name}}, {}),
            ("/v1/messages", {"metadata": {"user_id": name}}, {}),
            ("/v1/responses", {"user": name}, {}),
            ("/v1/completions", {}, {"X-User": name}),
            (CHAT, {"metadata": 3, "safety_identifier": ["x"]}, {"X-User": name}),
        ]
        responses = [
            await client.post(path, json=body_for(path, "my blood", model="MoM", **more), headers=headers)
            for path, more, headers in requests
        ]
        assert len({response.headers["x-lora-router-arm"] for response in responses}) == 1


async def test_conversation_without_user_keeps_arm(app: App, client: httpx.AsyncClient, tmp_path: Path) -> None:
    app.configure(WEIGHTED, tmp_path)
    by_key: dict[str, list[str]] = {"a": [], "b": []}
    for number in range(40):
        messages = [{"role": "user", "content": f"my blood {number}"}]
        for key, arms in by_key.items():
            headers = {"authorization": f"Bearer {key}"}
            first = await client.post(CHAT, json={"model": "MoM", "messages": messages}, headers=headers)
            more = [*messages, {"role": "assistant", "content": "x"}, {"role": "user", "content": "and a symptom?"}]
            second = await client.post(CHAT, json={"model": "MoM", "messages": more}, headers=headers)
            assert first.headers["x-lora-router-arm"] == second.headers["x-lora-router-arm"]
            arms.append(first.headers["x-lora-router-arm"])
    assert by_key["a"] != by_key["b"]


async def test_previous_response_id_keeps_arm_and_topic(app: App, client: httpx.AsyncClient, tmp_path: Path) -> None:
    app.configure(WEIGHTED, tmp_path)
    for number in range(10):
        first = await client.post("/v1/responses", json={"model": "MoM", "input": f"my blood {number}"})
        body = {"model": "MoM", "input": "thanks", "previous_response_id": app.received.json["request_id"]}
        second = await client.post("/v1/responses", json=body)
        assert second.headers["x-lora-router-arm"] == first.headers["x-lora-router-arm"]
        assert second.headers["x-lora-router-reason"] == "affinity"


async def test_arm_that_cannot_serve_falls_back_to_other_arm(
    app: App, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    app.configure(WEIGHTED, tmp_path)
    app.adapters.loaded -= {"second-lora"}
    app.adapters.broken["second-lora"] = "its file is broken"
    served = Counter[str]()
    for user in range(60):
        await client.post(CHAT, json=chat("my blood", user=f"u{user}"))
        (decision,) = app.serving.recorder.recent_decisions(1)
        if decision["plan"]["assignment"]["arm"] == "second-lora":
            assert decision["reason"] == "not_loadable"
            served[decision["served"]["arm"]] += 1
    assert set(served) == {"medical-lora", "base"}


async def test_affinity_is_reported(app: App, client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": text} for text in ("my blood", "thanks")]
    response = await client.post(CHAT, json={"model": "MoM", "messages": messages})
    assert response.headers["x-lora-router-reason"] == "affinity"
    assert app.received.json["model"] == "medical-lora"
    (decision,) = app.serving.recorder.recent_decisions(1)
    assert decision["plan"]["affinity"]["kept"] and decision["plan"]["affinity"]["alternative"] is None
