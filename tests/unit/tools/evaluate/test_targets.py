"""Targets of an evaluation: configurations and servers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

pytest.importorskip("httpx")
import httpx

from vllm_lora_router.classifiers.models.batcher import QUEUE_LIMIT
from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.tools.evaluate.targets import ConfigTarget, ServerTarget, TargetError, plan_all
from vllm_lora_router.types import Candidate, Plan, Query, Step

from .conftest import CONFIG, EXAMPLES, plan, step
from .encoder import RULES, needs_encoder, write_encoder

if TYPE_CHECKING:
    from .conftest import Configure


def without_durations(plans: Sequence[Plan]) -> list[Plan]:
    return [
        structs.replace(plan, steps=tuple(structs.replace(step, duration_ms=0.0) for step in plan.steps))
        for plan in plans
    ]


async def test_configuration_gives_the_same_plans_as_a_router(configure: Configure, tmp_path: Path) -> None:
    target = configure()
    loaded = load(tmp_path / "config.yaml")
    router = Router.build(loaded, served_base(loaded))
    texts = [example.text for example in EXAMPLES]
    plans = await plan_all(target, texts)
    expected = [await router.plan([Query(text, (text,))]) for text in texts]
    assert without_durations(plans) == without_durations(expected)
    assert [plan.category for plan in plans] == ["medical", "medical", None, "legal", "medical", None]
    assert target.name == str(tmp_path / "config.yaml") and target.deadline_ms == 50


@pytest.mark.parametrize("settings", ["mode: 'off'", "mode: observe", "share: 0.0"])
async def test_configuration_is_evaluated_as_if_it_routed_all_requests(configure: Configure, settings: str) -> None:
    (result,) = await plan_all(configure(f"router: {{{settings}}}\n"), ["a fever"])
    assert (result.category, result.reason) == ("medical", "routed")


@needs_encoder
async def test_many_concurrent_prompts_neither_time_out_nor_overload(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder")
    file = tmp_path / "config.yaml"
    file.write_text(RULES + "router: {deadline_ms: 0.001}\n", "utf-8")
    loaded = load(file)
    texts = [f"fever number {n}" for n in range(2 * QUEUE_LIMIT)]
    reports: list[str] = []
    plans = await plan_all(ConfigTarget(loaded, served_base(loaded)), texts, lambda: reports.append("plan"))
    assert {(plan.reason, plan.category) for plan in plans} == {("routed", "medical")}
    assert len(reports) == len(texts)


@needs_encoder
async def test_compared_configurations_share_models_but_not_cached_results(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder")
    file = tmp_path / "config.yaml"
    file.write_text(RULES, "utf-8")
    loaded = load(file)
    first = ConfigTarget(loaded, served_base(loaded))
    await plan_all(first, ["a fever"])
    second = ConfigTarget(loaded, served_base(loaded), first)
    (result,) = await plan_all(second, ["a fever"])
    assert result.steps[0].classification is not None and not result.steps[0].classification.cached
    workers = {target.classifiers.model_classifiers["embedding"].scorer.worker for target in (first, second)}
    assert len(workers) == 1


class BusyTarget:
    """A target that times out on concurrent prompts."""

    name, deadline_ms = "busy", 5.0

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.texts: list[str] = []
        self.running = self.most_running = 0

    async def plan(self, text: str) -> Plan:
        self.texts.append(text)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        timed_out = self.running > 1
        self.running -= 1
        return plan(Step("domain", 5.0, failure="timeout"), failure="timeout") if timed_out else plan(step("legal"))


async def test_prompts_that_timed_out_under_load_are_planned_again() -> None:
    target = BusyTarget(3)
    plans = await plan_all(target, [f"{n}" for n in range(9)])
    assert [plan.category for plan in plans] == ["legal"] * 9
    assert target.most_running == 3 and 9 < len(target.texts) <= 18


class BrokenTarget(BusyTarget):
    async def plan(self, text: str) -> Plan:
        raise TargetError("it is down")


async def test_target_error_is_raised_once() -> None:
    with pytest.raises(TargetError, match=r"^it is down$"):
        await plan_all(BrokenTarget(3), ["a", "b", "c", "d"])


def served(folder: Path, text: str = CONFIG) -> httpx.AsyncBaseTransport:
    """Return a transport to the router's API routes, without a network."""
    from fastapi import FastAPI

    from vllm_lora_router.server.api import include_routes
    from vllm_lora_router.server.state import Serving

    file = folder / "served.yaml"
    file.write_text(text + "router: {admin_key_env: TEST_ADMIN_KEY}\n", "utf-8")
    loaded = load(file)
    serving = Serving()
    serving.start(Router.build(loaded, served_base(loaded)), ("base",), None)
    app = FastAPI()
    include_routes(app, serving)
    return httpx.ASGITransport(app=app)


def without_details(plans: Sequence[Plan]) -> list[Plan]:
    """Return plans as a server shows them to clients without the admin key."""

    def summary(step: Step) -> Step:
        classification = step.classification
        return structs.replace(step, classification=classification and structs.replace(classification, evidence={}))

    def candidates(plan: Plan) -> tuple[Candidate, ...]:
        return tuple(Candidate(candidate.model, candidate.adapter) for candidate in plan.candidates)

    return [
        structs.replace(plan, steps=tuple(map(summary, plan.steps)), candidates=candidates(plan), active_topic=None)
        for plan in plans
    ]


@pytest.mark.parametrize("admin_key", [None, "boss"])
async def test_server_gives_the_same_plans_as_its_configuration(
    configure: Configure, tmp_path: Path, admin_key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_ADMIN_KEY", "boss")
    texts = [example.text for example in EXAMPLES]
    expected = await plan_all(configure("router: {admin_key_env: TEST_ADMIN_KEY}\n"), texts)
    if admin_key is None:
        expected = without_details(expected)
    async with ServerTarget("http://server:8000/v1/", None, admin_key, transport=served(tmp_path)) as server:
        plans = await plan_all(server, texts)
        assert (server.name, server.categories, server.deadline_ms) == (
            *("http://server:8000", ("medical", "legal"), 50.0),
        )

    # The server reports in `reason` that the adapters cannot be loaded. All other fields are the same.
    not_loadable, below_threshold = "not_loadable", "below_threshold"
    assert [plan.reason for plan in plans] == [
        *(not_loadable, not_loadable, below_threshold, not_loadable, not_loadable, below_threshold)
    ]
    assert without_durations(plans) == [
        structs.replace(local, reason=remote.reason)
        for local, remote in zip(without_durations(expected), plans, strict=True)
    ]


def respond_with(status: int, text: str) -> httpx.AsyncBaseTransport:
    return httpx.MockTransport(lambda request: httpx.Response(status, text=text))


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (401, "", "requires an API key (status 401); name the environment variable that holds it with --api-key-env"),
        (404, "", "has no /v1/router/config; check that the server runs this router"),
        (500, "oops", "/v1/router/config: status 500: oops"),
        (200, "<html>", "/v1/router/config: the response is not JSON"),
        (200, "[]", "/v1/router/config: the response is not in this router's format"),
    ],
)
async def test_server_without_router_is_reported(status: int, text: str, expected: str) -> None:
    with pytest.raises(TargetError) as error:
        async with ServerTarget("http://server:8000", transport=respond_with(status, text)):
            pass
    assert str(error.value).startswith("http://server:8000") and expected in str(error.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "localhost:8000", "http://[", "nowhere"])
async def test_url_without_server_is_reported(url: str) -> None:
    with pytest.raises(TargetError, match="URL"):
        async with ServerTarget(url):
            pass


async def test_plan_of_another_version_is_reported() -> None:
    server = ServerTarget("http://server", transport=respond_with(200, '{"steps": 3}'))
    with pytest.raises(TargetError, match="not a plan of this version"):
        await server.plan("a text")


async def test_wrong_admin_key_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ADMIN_KEY", "boss")
    with pytest.raises(TargetError, match=r"the admin key is refused: .* check --admin-key-env"):
        async with ServerTarget("http://server", None, "wrong", transport=served(tmp_path)):
            pass


async def test_api_key_is_sent_to_the_server() -> None:
    headers: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        headers.append(request.headers.get("authorization", ""))
        return httpx.Response(403)

    for key in ("secret", None):
        with pytest.raises(TargetError):
            await ServerTarget("http://server", key, transport=httpx.MockTransport(respond)).plan("a text")
    assert headers == ["Bearer secret", ""]
