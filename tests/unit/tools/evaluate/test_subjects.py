"""What is measured: a configuration in this process, or a server at a URL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from vllm_lora_router.classifiers.models.batcher import LIMIT
from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.tools.evaluate.targets import Configuration, Server, SubjectError, plans
from vllm_lora_router.types import Plan, Query, Step

from .conftest import CONFIG, EXAMPLES, plan, step
from .encoder import RULES, needs_encoder, write_encoder

if TYPE_CHECKING:
    import httpx

    from .conftest import Configure

httpx = pytest.importorskip("httpx")


def bare(some: Sequence[Plan]) -> list[Plan]:
    """Without the time that it took."""
    steps = [tuple(structs.replace(step, duration_ms=0.0) for step in one.steps) for one in some]
    return [structs.replace(one, steps=own) for one, own in zip(some, steps, strict=True)]


async def test_a_configuration_gives_the_plan_that_a_server_of_it_would(configure: Configure, tmp_path: Path) -> None:
    subject = configure()
    loaded = load(tmp_path / "config.yaml")
    router = Router.build(loaded, served_base(loaded))
    texts = [example.text for example in EXAMPLES]
    found = await plans(subject, texts)
    assert bare(found) == bare([await router.plan([Query(text, (text,))]) for text in texts])
    assert [one.category for one in found] == ["medical", "medical", None, "legal", "medical", None]
    assert subject.name == str(tmp_path / "config.yaml") and subject.deadline_ms == 50


@pytest.mark.parametrize("settings", ["mode: 'off'", "mode: observe", "share: 0.0"])
async def test_a_configuration_that_does_not_route_yet_is_measured_as_if_it_did(
    configure: Configure, settings: str
) -> None:
    (found,) = await plans(configure(f"router: {{{settings}}}\n"), ["a fever"])
    assert (found.category, found.reason) == ("medical", "routed")


@needs_encoder
async def test_however_many_prompts_are_asked_none_is_late_or_turned_away(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder")
    file = tmp_path / "config.yaml"
    file.write_text(RULES + "router: {deadline_ms: 0.001}\n", "utf-8")
    loaded = load(file)
    texts = [f"fever number {n}" for n in range(2 * LIMIT)]
    told: list[str] = []
    found = await plans(Configuration(loaded, served_base(loaded)), texts, lambda: told.append("one"))
    assert {(one.reason, one.category) for one in found} == {("routed", "medical")}
    assert len(told) == len(texts)


@needs_encoder
async def test_two_that_are_compared_share_models_and_no_answers(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder")
    file = tmp_path / "config.yaml"
    file.write_text(RULES, "utf-8")
    loaded = load(file)
    one = Configuration(loaded, served_base(loaded))
    await plans(one, ["a fever"])
    other = Configuration(loaded, served_base(loaded), one)
    (found,) = await plans(other, ["a fever"])
    assert found.steps[0].classification is not None and not found.steps[0].classification.cached
    workers = {subject.classifiers.scored["embedding"].scorer.worker for subject in (one, other)}
    assert len(workers) == 1


class Busy:
    """A server that has no time for two at once."""

    name, deadline_ms = "busy", 5.0

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.asked: list[str] = []
        self.under_way = self.most = 0

    async def plan(self, text: str) -> Plan:
        self.asked.append(text)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        late = self.under_way > 1
        self.under_way -= 1
        return plan(Step("domain", 5.0, failure="timeout"), failure="timeout") if late else plan(step("legal"))


async def test_what_was_late_because_we_ask_much_is_asked_again_alone() -> None:
    busy = Busy(3)
    found = await plans(busy, [f"{n}" for n in range(9)])
    assert [one.category for one in found] == ["legal"] * 9
    assert busy.most == 3 and 9 < len(busy.asked) <= 18


class Broken(Busy):
    async def plan(self, text: str) -> Plan:
        raise SubjectError("it is down")


async def test_who_does_not_answer_is_told_of_once() -> None:
    with pytest.raises(SubjectError, match=r"^it is down$"):
        await plans(Broken(3), ["a", "b", "c", "d"])


def served(folder: Path, text: str = CONFIG) -> httpx.AsyncBaseTransport:
    """A server's own routes, without a network."""
    from starlette.applications import Starlette

    from vllm_lora_router.server.api import routes
    from vllm_lora_router.server.state import Serving

    file = folder / "served.yaml"
    file.write_text(text, "utf-8")
    loaded = load(file)
    serving = Serving()
    serving.start(Router.build(loaded, served_base(loaded)), ("base",), None)
    return httpx.ASGITransport(app=Starlette(routes=routes(serving)))


async def test_a_server_gives_the_same_plans_as_its_configuration(configure: Configure, tmp_path: Path) -> None:
    texts = [example.text for example in EXAMPLES]
    at_home = await plans(configure(), texts)
    async with Server("http://server:8000/v1/", transport=served(tmp_path)) as server:
        found = await plans(server, texts)
        assert (server.name, server.categories, server.deadline_ms) == (
            *("http://server:8000", ("medical", "legal"), 50.0),
        )

    # A server whose adapters are not there says in `reason` that they cannot serve; what it would choose is the same.
    assert [one.reason for one in found] == ["not_loadable", "not_loadable", "below_threshold"] + [
        "not_loadable"
    ] * 2 + ["below_threshold"]
    assert bare(found) == [
        structs.replace(one, reason=there.reason) for one, there in zip(bare(at_home), found, strict=True)
    ]


def answering(status: int, text: str) -> httpx.AsyncBaseTransport:
    return httpx.MockTransport(lambda request: httpx.Response(status, text=text))


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (401, "", "wants an API key (status 401); name the environment variable that holds it with --api-key-env"),
        (404, "", "has no /v1/router/config; is it a server with this router?"),
        (500, "oops", "/v1/router/config: status 500: oops"),
        (200, "<html>", "/v1/router/config: is not answered with JSON"),
        (200, "[]", "/v1/router/config: is not this router's answer"),
    ],
)
async def test_a_server_that_is_none_of_ours_is_told(status: int, text: str, said: str) -> None:
    with pytest.raises(SubjectError) as error:
        async with Server("http://server:8000", transport=answering(status, text)):
            pass
    assert str(error.value).startswith("http://server:8000") and said in str(error.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "localhost:8000", "http://[", "nowhere"])
async def test_a_url_at_which_nothing_answers_is_told(url: str) -> None:
    with pytest.raises(SubjectError, match="URL"):
        async with Server(url):
            pass


async def test_an_answer_of_another_version_is_told() -> None:
    server = Server("http://server", transport=answering(200, '{"steps": 3}'))
    with pytest.raises(SubjectError, match="no plan of this version"):
        await server.plan("a text")


async def test_the_key_is_shown_to_the_server() -> None:
    shown: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        shown.append(request.headers.get("authorization", ""))
        return httpx.Response(403)

    for key in ("secret", None):
        with pytest.raises(SubjectError):
            await Server("http://server", key, transport=httpx.MockTransport(answer)).plan("a text")
    assert shown == ["Bearer secret", ""]
