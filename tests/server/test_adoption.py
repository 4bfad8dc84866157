"""Ways to try routing on a running server: affinity, observe mode, A/B tests, and modes that change by reload."""

import asyncio
import json
import re
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from vllm_lora_router.tools.demo.many import ManyAdapters

from ..conversations import CONVERSATIONS
from .conftest import ADMIN_KEY_ENV, HANG_GUARD_S, ComparedServers

CONFIG = Path(__file__).parents[1] / "conversations.yaml"
# Answers are longer than a few words and clients have a system prompt, as in real conversations.
SYSTEM = (
    "You are the assistant of a large company. Answer kindly, in a few sentences, and say when you do not know. " * 2
)


def configuration(router: Mapping[str, Any], categories: Mapping[str, Any]) -> str:
    config = yaml.safe_load(CONFIG.read_text())
    config["router"] |= {"admin_key_env": ADMIN_KEY_ENV, "audit": {"path": "audit"}, **router}
    for category in config["categories"]:
        category |= categories.get(category["name"], {})
    return yaml.safe_dump(config)


@dataclass
class RouterClient:
    """A client of the server with the router. A test may change the server's configuration."""

    compared: ComparedServers
    http: httpx.AsyncClient

    def configure(self, router: Mapping[str, Any], categories: Mapping[str, Any] | None = None) -> None:
        """Reload the conversations' configuration with other settings of `router` and of categories."""
        self.compared.routed.configure(configuration(router, categories or {}))

    async def chat(self, messages: list[dict[str, str]], **more: Any) -> httpx.Response:
        body = {"model": "MoM", "messages": messages, "max_tokens": 5, "temperature": 0, **more}
        response = await self.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return response


@pytest.fixture
async def plain(compared: ComparedServers) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the server without the router."""
    async with httpx.AsyncClient(base_url=compared.plain_url, timeout=HANG_GUARD_S) as http:
        yield http


@pytest.fixture
async def client(compared: ComparedServers) -> AsyncIterator[RouterClient]:
    async with httpx.AsyncClient(base_url=compared.routed.url, timeout=HANG_GUARD_S) as http:
        yield RouterClient(compared, http)


QUESTIONS = {
    "a fever": ("medical", "What can I do about a fever and a sore throat?"),
    "a recipe": ("cooking", "How long do I bake bread in the oven?"),
    "neither": (None, "Hm."),
}
NAMED = ("base", "legal-lora")
STREAM_ATTEMPTS = 100


def requests(text: str, model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return a request of each kind, as a client without a router sends them."""
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


def without_ids(content: bytes) -> str:
    """Return a response without its ids and times, which differ between two equal responses."""
    text = re.sub(r'"(id|item_id|response_id)":\s*"[^"]*"', r'"\1": "-"', content.decode())
    return re.sub(r'"(created|created_at|completed_at)":\s*[0-9.]+', r'"\1": 0', text)


@pytest.mark.parametrize("topic", QUESTIONS)
async def test_observe_mode_changes_no_byte_of_any_response(
    plain: httpx.AsyncClient, client: RouterClient, topic: str
) -> None:
    client.configure({"mode": "observe"})
    for named in NAMED:
        for path, body in requests(QUESTIONS[topic][1], named):
            # In observe mode an auto request is served by the default model.
            for model in (named, *(["MoM"] if named == "base" else [])):
                await same_response(plain, client.http, path, body, model)


async def same_response(
    plain: httpx.AsyncClient, routed: httpx.AsyncClient, path: str, body: Mapping[str, Any], model: str
) -> None:
    """Assert that both servers send the same bytes for the same request.

    A busy vLLM joins several tokens in one event, so a stream is repeated until both servers have sent the same events.
    """
    requests = ((plain, body), (routed, {**body, "model": model}))
    for http, content in requests:
        await http.post(path, json=content)  # fills the prefix cache, which is reported in a response
    seen: tuple[set[str], set[str]] = set(), set()
    for _ in range(STREAM_ATTEMPTS if body["stream"] else 1):
        responses = [await http.post(path, json=content) for http, content in requests]
        assert [response.status_code for response in responses] == [200, 200], [response.text for response in responses]
        assert responses[0].headers["content-type"] == responses[1].headers["content-type"]
        assert responses[1].headers["x-lora-router-reason"] == "observe"
        for texts, response in zip(seen, responses, strict=True):
            texts.add(without_ids(response.content))
        if seen[0] & seen[1]:
            return
    assert seen[0] == seen[1], (path, model)


async def test_observe_mode_reports_the_routing_decision(client: RouterClient) -> None:
    client.configure({"mode": "observe"})
    for category, text in QUESTIONS.values():
        for model in (*NAMED, "MoM"):
            response = await client.chat([{"role": "user", "content": text}], model=model)
            assert response.json()["model"] == ("base" if model == "MoM" else model)
            assert response.headers["x-vsr-selected-category"] == (category or "")
            assert response.headers["x-vsr-selected-model"] == (f"{category}-lora" if category else "base")


async def play(client: RouterClient, salt: str) -> Counter[str]:
    """Send all conversations, turn by turn; count the tokens of their prompts, and those that were computed."""
    counted = Counter[str]()
    for conversation in CONVERSATIONS:
        # The salt keeps this run apart from the prefix cache of another one.
        messages = [{"role": "system", "content": f"{salt} {SYSTEM}"}]
        served = None
        for turn in conversation.turns:
            messages.append({"role": "user", "content": turn.text})
            answer = (await client.chat(messages)).json()
            messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"] * 12})
            usage = answer["usage"]
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            counted["tokens"] += usage["prompt_tokens"]
            counted["computed"] += usage["prompt_tokens"] - cached
            counted["turns"] += 1
            counted["switches"] += served is not None and answer["model"] != served
            served = answer["model"]
    return counted


async def test_affinity_recomputes_fewer_prompt_tokens(client: RouterClient) -> None:
    counts: dict[bool, Counter[str]] = {}
    for enabled in (True, False):
        client.configure({"affinity": {"enabled": enabled}})
        counts[enabled] = await play(client, secrets.token_hex(8))
    for enabled, count in counts.items():
        print(
            f"\naffinity {'on' if enabled else 'off'}: {count['turns']} turns, {count['switches']} switches, "
            f"{count['tokens']} prompt tokens, {count['computed']} of them computed"
        )
    assert counts[True]["tokens"] == pytest.approx(counts[False]["tokens"], rel=0.05)
    assert counts[True]["computed"] < 0.85 * counts[False]["computed"]


async def test_a_reload_changes_the_mode_and_fails_no_request(client: RouterClient) -> None:
    client.configure({})
    messages = [{"role": "user", "content": QUESTIONS["a fever"][1]}]
    expected = {
        "observe": ({"mode": "observe"}, "base"),
        "off": ({"mode": "off"}, "base"),
        "not_in_share": ({"share": 0.0}, "base"),
        "routed": ({}, "medical-lora"),
    }
    # The outcomes of the requests that started after each reload answered, and of those that started during one.
    after: dict[str, list[tuple[str, str]]] = {reason: [] for reason in expected}
    during: list[tuple[str, str]] = []
    current = during
    stop = asyncio.Event()

    async def send_requests() -> None:
        while not stop.is_set():
            outcomes = current
            response = await client.chat(messages)
            outcomes.append((response.headers["x-lora-router-reason"], response.json()["model"]))

    tasks = [asyncio.create_task(send_requests()) for _ in range(3)]
    for reason, (router, _) in expected.items():
        await asyncio.to_thread(client.configure, router)
        current = after[reason]
        async with asyncio.timeout(HANG_GUARD_S):
            while len(after[reason]) < 6 and not any(task.done() for task in tasks):
                await asyncio.sleep(0.02)
        current = during
    stop.set()
    await asyncio.gather(*tasks)
    outcomes = {reason: (reason, model) for reason, (_, model) in expected.items()}
    assert {reason: set(seen) for reason, seen in after.items()} == {
        reason: {outcome} for reason, outcome in outcomes.items()
    }
    assert set(during) <= set(outcomes.values())


async def test_an_ab_test_assigns_users_to_arms_and_is_evaluated(client: RouterClient) -> None:
    weights = {"medical-lora": 50, "finance-lora": 30, None: 20}
    scores = [
        {"model": "base", "score": score, **({"lora_name": name} if name else {})} for name, score in weights.items()
    ]
    audit = f"audit-{secrets.token_hex(4)}"
    client.configure({"audit": {"path": audit}}, {"medical": {"selection": "weighted", "model_scores": scores}})
    answers = {name: ManyAdapters.answer(number).strip() for name, number in client.compared.adapters.items()}
    arm_of: dict[str, str] = {}
    for turn in range(2):
        for user in range(24):
            messages = [{"role": "user", "content": f"What can I do about a fever? I am at day {turn} of it."}]
            response = await client.chat(messages, user=f"user {user}", max_tokens=8)
            arm = response.headers["x-lora-router-arm"]
            assert arm_of.setdefault(f"user {user}", arm) == arm
            assert response.json()["model"] == arm
            if arm in answers:
                assert response.json()["choices"][0]["message"]["content"].strip() == answers[arm]
            feedback = {"id": response.json()["id"], "score": int(arm == "finance-lora")}
            assert (await client.http.post("/v1/router/feedback", json=feedback)).json()["arm"] == arm
    assert set(arm_of.values()) == {"medical-lora", "finance-lora", "base"}
    folder = client.compared.routed.file.with_name(audit)
    async with asyncio.timeout(HANG_GUARD_S):
        while sum(file.read_bytes().count(b'"feedback"') for file in folder.glob("*.jsonl")) < 2 * 24:
            await asyncio.sleep(0.1)
    (report,) = json.loads(command("ab", str(folder), "--category", "medical", "--json"))
    reported = {arm["name"]: (arm["requests"], arm["keys"], arm["finish_reasons"]) for arm in report["arms"]}
    users = Counter(arm_of.values())
    assert reported == {arm: (2 * users[arm], users[arm], {"stop": 2 * users[arm]}) for arm in users}
    assert "decisions are identical when replayed from their lines" in command("audit", str(folder), "--check")


def command(*arguments: str) -> str:
    """Run `vllm-lora-router` and return its output."""
    result = subprocess.run(
        [sys.executable, "-m", "vllm_lora_router.cli", *arguments], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
