"""Routing that is tried safely on a running server: conversations, A/B tests, and modes that change by reload."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.many import ManyAdapters
from vllm_lora_router.tools.demo.server import FLAGS, Server

from ..conversations import CONVERSATIONS, TOPICS
from .conftest import ADMIN_KEY_ENV, ONE_ENGINE_PROCESS, START_SECONDS

CONFIG = Path(__file__).parents[1] / "conversations.yaml"
KEY = "of the admin"
# Longer answers and a client's own system prompt, as conversations have them.
SYSTEM = (
    "You are the assistant of a large company. Answer kindly, in a few sentences, and say when you do not know. " * 2
)


def written(router: Mapping[str, Any], categories: Mapping[str, Any]) -> str:
    config = yaml.safe_load(CONFIG.read_text())
    config["router"] |= {"admin_key_env": ADMIN_KEY_ENV, "audit": {"path": "audit"}, **router}
    for category in config["categories"]:
        category |= categories.get(category["name"], {})
    return yaml.safe_dump(config)


@dataclass
class Adoption:
    """A server whose configuration a test may change."""

    file: Path
    http: httpx.AsyncClient

    async def configure(self, router: Mapping[str, Any], categories: Mapping[str, Any] | None = None) -> None:
        """Puts the conversations' configuration in force with other settings of `router` and of categories."""
        self.file.write_text(written(router, categories or {}))
        response = await self.http.post("/v1/router/reload", headers={"x-lora-router-admin-key": KEY})
        assert response.json()["outcome"] in ("taken", "unchanged"), response.text

    async def chat(self, messages: list[dict[str, str]], **more: Any) -> httpx.Response:
        body = {"model": "MoM", "messages": messages, "max_tokens": 5, "temperature": 0, **more}
        response = await self.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return response


FLAGS_OF_BOTH = (*FLAGS, "--enable-prompt-tokens-details", "--block-size", "32")


@pytest.fixture(scope="module")
def modules(many: ManyAdapters, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter a topic, and its folder."""
    folder = tmp_path_factory.mktemp("adoption")
    for number, topic in enumerate(TOPICS):
        many.write(number, folder / f"{topic}-lora")
    return {f"{topic}-lora": folder / f"{topic}-lora" for topic in TOPICS}


@pytest.fixture(scope="module")
def servers(
    models: DemoModels, modules: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Server]]:
    """Ours, and vLLM's own over the same models and without us. They start together: each loads on one core."""
    folder = tmp_path_factory.mktemp("configuration")
    (folder / "config.yaml").write_text(written({}, {}))
    named = ["--lora-modules", *(f"{name}={path}" for name, path in modules.items())]
    ours = Server(
        [
            *(str(models.base), "--served-model-name", "base", "--router-config", str(folder / "config.yaml")),
            *(*named, *FLAGS_OF_BOTH),
        ],
        log=folder / "server.log",
        directory=models.directory,
        environment={ADMIN_KEY_ENV: KEY, **ONE_ENGINE_PROCESS},
    )
    flags = ["--enable-lora", "--max-loras", "6", "--max-lora-rank", "8", "--max-cpu-loras", "6"]  # as we derive them
    plain = Server(
        ["--model", str(models.base), "--served-model-name", "base", *flags, *FLAGS_OF_BOTH, *named],
        log=folder / "plain.log",
        module="vllm.entrypoints.openai.api_server",
        environment={"VLLM_PLUGINS": "", **ONE_ENGINE_PROCESS},
    )
    with ours, plain:
        for server in (ours, plain):
            server.wait(START_SECONDS)
        yield ours, plain


@pytest.fixture(scope="module")
def server(servers: tuple[Server, Server]) -> Server:
    return servers[0]


@pytest.fixture(scope="module")
def answers_without(servers: tuple[Server, Server]) -> list[tuple[str, dict[str, Any], httpx.Response]]:
    """What vLLM's own server says, without us."""
    with httpx.Client(base_url=servers[1].url, timeout=120) as http:
        found = []
        for _, text in ASKED.values():
            for model in NAMED:
                for path, body in requests(text, model):
                    http.post(path, json=body)  # fills the prefix cache, which a response tells of
                    again = range(TRIES if body["stream"] else 1)
                    found.append((path, body, in_pieces(http.post(path, json=body) for _ in again)))
        return found


@pytest.fixture
async def adoption(server: Server):
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        yield Adoption(server.log.with_name("config.yaml"), http)


ASKED = {
    "a fever": ("medical", "What can I do about a fever and a sore throat?"),
    "a recipe": ("cooking", "How long do I bake bread in the oven?"),
    "neither": (None, "Hm."),
}
NAMED = ("base", "legal-lora")
TRIES = 5


def requests(text: str, model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """One of each kind, as a client without a router would send them."""
    chat = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 5, "temperature": 0}
    for stream in (False, True):
        yield "/v1/chat/completions", {**chat, "stream": stream}
        yield "/v1/messages", {**chat, "stream": stream}
        yield (
            "/v1/completions",
            {"model": model, "prompt": text, "max_tokens": 5, "temperature": 0, "stream": stream, "logprobs": 1},
        )
        yield (
            "/v1/responses",
            {"model": model, "input": text, "max_output_tokens": 16, "temperature": 0, "stream": stream},
        )


def in_pieces(responses: Iterable[httpx.Response]) -> httpx.Response:
    """Of several streams the one with the most events: vLLM joins tokens that come while it is busy in one."""
    return max(responses, key=lambda response: response.content.count(b"data: "))


def without_ids(content: bytes) -> str:
    """A response without what differs between two that are the same."""
    text = re.sub(r'"(id|item_id|response_id)":\s*"[^"]*"', r'"\1": "-"', content.decode())
    return re.sub(r'"(created|created_at|completed_at)":\s*[0-9.]+', r'"\1": 0', text)


async def asked_twice(client: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> httpx.Response:
    """The second response: the first fills the prefix cache, which a response tells of."""
    await client.post(path, json=body)
    return await client.post(path, json=body)


async def test_who_observes_changes_no_byte_of_any_response(
    answers_without: list[tuple[str, dict[str, Any], httpx.Response]], adoption: Adoption
) -> None:
    await adoption.configure({"mode": "observe"})
    for path, body, theirs in answers_without:
        # What an auto request is to whoever observes: one for the default model.
        for named in (body["model"], *(["MoM"] if body["model"] == "base" else [])):
            await adoption.http.post(path, json={**body, "model": named})
            again = range(TRIES if body["stream"] else 1)
            ours = in_pieces([await adoption.http.post(path, json={**body, "model": named}) for _ in again])
            assert ours.status_code == theirs.status_code == 200, (path, ours.text, theirs.text)
            assert without_ids(ours.content) == without_ids(theirs.content), (path, named)
            assert ours.headers["content-type"] == theirs.headers["content-type"]
            assert ours.headers["x-lora-router-reason"] == "observe"


async def test_who_observes_is_told_what_routing_would_do(adoption: Adoption) -> None:
    await adoption.configure({"mode": "observe"})
    for category, text in ASKED.values():
        for model in (*NAMED, "MoM"):
            response = await adoption.chat([{"role": "user", "content": text}], model=model)
            assert response.json()["model"] == ("base" if model == "MoM" else model)
            assert response.headers["x-vsr-selected-category"] == (category or "")
            assert response.headers["x-vsr-selected-model"] == (f"{category}-lora" if category else "base")


async def play(adoption: Adoption, salt: str) -> Counter[str]:
    """All conversations, turn by turn; the tokens of their prompts, and how many of them were computed."""
    counted = Counter[str]()
    for conversation in CONVERSATIONS:
        # What another run left in the prefix cache is not this one's.
        messages = [{"role": "system", "content": f"{salt} {SYSTEM}"}]
        served = None
        for turn in conversation.turns:
            messages.append({"role": "user", "content": turn.said})
            answer = (await adoption.chat(messages)).json()
            messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"] * 12})
            usage = answer["usage"]
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            counted["tokens"] += usage["prompt_tokens"]
            counted["computed"] += usage["prompt_tokens"] - cached
            counted["turns"] += 1
            counted["switches"] += served is not None and answer["model"] != served
            served = answer["model"]
    return counted


async def test_a_conversation_that_stays_recomputes_less(adoption: Adoption) -> None:
    found = {}
    for enabled in (True, False):
        await adoption.configure({"affinity": {"enabled": enabled}})
        found[enabled] = await play(adoption, f"run {enabled} {time.time()}")
    for enabled, counted in found.items():
        print(
            f"\naffinity {'on' if enabled else 'off'}: {counted['turns']} turns, {counted['switches']} switches, "
            f"{counted['tokens']} prompt tokens, {counted['computed']} of them computed"
        )
    assert found[True]["tokens"] == pytest.approx(found[False]["tokens"], rel=0.05)
    assert found[True]["computed"] < 0.85 * found[False]["computed"]


async def test_modes_change_by_reload_and_fail_no_request(adoption: Adoption) -> None:
    await adoption.configure({})
    asked = [{"role": "user", "content": ASKED["a fever"][1]}]
    seen: list[tuple[str, str]] = []
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            response = await adoption.chat(asked)
            seen.append((response.headers["x-lora-router-reason"], response.json()["model"]))

    asking = [asyncio.create_task(ask()) for _ in range(3)]
    for router in ({"mode": "observe"}, {"mode": "off"}, {"share": 0.0}, {}):
        await adoption.configure(router)
        await asyncio.sleep(1)
    stop.set()
    await asyncio.gather(*asking)
    assert set(seen) == {
        ("routed", "medical-lora"),
        *(("observe", "base"), ("off", "base"), ("not_in_share", "base")),
    }


async def test_an_ab_test_keeps_users_with_their_arms_and_is_evaluated(adoption: Adoption) -> None:
    arms = {"medical-lora": 50, "finance-lora": 30, None: 20}
    scores = [
        {"model": "base", "score": score, **({"lora_name": name} if name else {})} for name, score in arms.items()
    ]
    await adoption.configure({}, {"medical": {"selection": "weighted", "model_scores": scores}})
    says = {f"{topic}-lora": ManyAdapters.answer(number).strip() for number, topic in enumerate(TOPICS)}
    arm_of: dict[str, str] = {}
    for turn in range(2):
        for user in range(24):
            asked = [{"role": "user", "content": f"What can I do about a fever? I am at day {turn} of it."}]
            response = await adoption.chat(asked, user=f"user {user}", max_tokens=8)
            arm = response.headers["x-lora-router-arm"]
            assert arm_of.setdefault(f"user {user}", arm) == arm
            assert response.json()["model"] == arm
            if arm in says:
                assert response.json()["choices"][0]["message"]["content"].strip() == says[arm]
            liked = {"id": response.json()["id"], "score": int(arm == "finance-lora")}
            assert (await adoption.http.post("/v1/router/feedback", json=liked)).json()["arm"] == arm
    assert set(arm_of.values()) == {"medical-lora", "finance-lora", "base"}
    await asyncio.sleep(1)
    folder = adoption.file.with_name("audit")
    (report,) = json.loads(command("ab", str(folder), "--category", "medical", "--json"))
    counted = {arm["name"]: (arm["requests"], arm["keys"], arm["finish"]) for arm in report["arms"]}
    users = Counter(arm_of.values())
    assert counted == {arm: (2 * users[arm], users[arm], {"stop": 2 * users[arm]}) for arm in users}
    assert "decisions are the same when made again from their line alone" in command("audit", str(folder), "--check")


def command(*arguments: str) -> str:
    """What `vllm-lora-router` prints."""
    found = subprocess.run(
        [sys.executable, "-m", "vllm_lora_router.cli", *arguments], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout
