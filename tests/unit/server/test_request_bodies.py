"""Bodies of every protocol: a routed body gets the edit and nothing else, all others arrive byte for byte."""

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_lora_router.ids import is_usable_id
from vllm_lora_router.protocols.routes import ROUTES

from ..conftest import (
    claude_code,
    cline,
    codex,
    examples,
    json_list,
    json_object,
    json_values,
    numbers,
    same,
    strings,
    whitespace,
)
from .conftest import App, ReceivedResponse, body_for, echo, post_json

SAGEMAKER = b"x-amzn-sagemaker-adapter-identifier"


@dataclass
class SyncClient:
    """A client of the application for tests that are not asynchronous."""

    app: App
    runner: asyncio.Runner

    def post(self, path: str, model: str, content: bytes) -> ReceivedResponse:
        self.app.received.bodies.clear()
        self.app.received.headers.clear()
        headers = [(SAGEMAKER, model.encode())] if path == "/invocations" else []
        return self.runner.get_loop().run_until_complete(post_json(self.app.asgi, path, content, headers))


PROMPT = 'Ours: "1.50" é'
CONFIG = """
model_config: {{base: {{reasoning_family: {family}, loras: [{{name: medical-lora}}]}}}}
default_model: base
classifier: {{category_model: {{fallback_category: everything}}}}
categories:
  - name: everything
    system_prompt: 'Ours: "1.50" é'
    system_prompt_mode: {mode}
    model_scores: [{{model: base, lora_name: medical-lora, use_reasoning: true, reasoning_effort: {effort}}}]
"""


@dataclass(frozen=True)
class ExpectedEdit:
    """The edit that a configuration applies."""

    mode: str
    kwargs: dict[str, bool]
    effort: str | None


EXPECTED_EDITS = [
    ExpectedEdit(mode, kwargs, effort)
    for mode in ("insert", "replace")
    for kwargs, effort in (({"enable_thinking": True}, None), ({}, "high"), ({}, "minimal"), ({}, "none"))
]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def sync_client(tmp_path_factory: pytest.TempPathFactory, runner: asyncio.Runner) -> SyncClient:
    return SyncClient(echo(tmp_path_factory.mktemp("echo")), runner)


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory, runner: asyncio.Runner) -> list[SyncClient]:
    """Return one application for each of `EXPECTED_EDITS`."""

    def application(expected_edit: ExpectedEdit, folder: Path) -> SyncClient:
        family = "qwen3" if expected_edit.kwargs else "gpt-oss"
        config = CONFIG.format(
            family=family, mode=expected_edit.mode, effort=json.dumps(expected_edit.effort or "high")
        )
        return SyncClient(echo(folder, config), runner)

    return [application(expected_edit, tmp_path_factory.mktemp("echo")) for expected_edit in EXPECTED_EDITS]


# Strategies for the values of each protocol.
odd = st.sampled_from(["NaN", "-Infinity", '"\\ud83d"', '{"\\udc00":0}'])
others = st.tuples(strings, json_values | odd)
kinds = st.sampled_from(['"text"', '"input_text"', '"image_url"', '"tool_result"', '"input_image"'])
parts = json_object(st.one_of(st.tuples(st.just('"type"'), kinds), st.tuples(st.just('"text"'), strings | odd), others))
contents = st.one_of(strings, json_list(parts | strings), json_values, odd)
roles = st.sampled_from(['"user"', '"system"', '"developer"', '"assistant"', '"tool"', '"\\u0073ystem"', "null"])
messages = json_list(
    json_object(st.one_of(st.tuples(st.just('"role"'), roles), st.tuples(st.just('"content"'), contents), others))
)
efforts = st.sampled_from(['"low"', '"none"', "null"])
reasoning_members = json_object(
    st.one_of(
        st.tuples(st.just('"effort"'), efforts),
        st.tuples(st.sampled_from(['"summary"', '"format"']), json_values),
        st.tuples(st.just('"enabled"'), st.just("null")),
    ),
    max_size=2,
)
kwargs = json_object(
    st.tuples(st.sampled_from(['"documents"', '"enable_thinking"', '"a"', '"b"', '"c"']), json_values), max_size=3
)
common_members = st.one_of(
    st.tuples(st.just('"tools"'), json_values),
    st.tuples(st.sampled_from(['"temperature"', '"seed"', '"max_tokens"']), numbers),
    st.tuples(st.sampled_from(['"reasoning"', '"output_config"']), reasoning_members | st.just("null")),
    st.tuples(st.sampled_from(['"reasoning_effort"', '"thinking"', '"thinking_token_budget"']), efforts),
    st.tuples(st.just('"chat_template_kwargs"'), kwargs | st.just("null")),
    others,
    others,
)


def members(key: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, str]]:
    return st.tuples(st.just(f'"{key}"'), values)


OF_PROTOCOL = {
    "chat": members("messages", messages),
    "batch": members("messages", json_list(messages) | json_values),
    "completions": members("prompt", strings | json_list(strings) | json_values),
    "responses": st.one_of(
        members("input", strings | messages | odd),
        members("instructions", strings | st.just("null") | odd),
        members("request_id", strings | st.just("null")),
    ),
    "messages": st.one_of(members("messages", messages), members("system", strings | json_list(parts) | odd)),
    "decisions": st.one_of(members("state", json_values), members("instructions", strings | st.just("null") | odd)),
    "cohere": members("messages", messages),
    "tokens": members("token_ids", json_list(numbers)),
    "scoring": st.one_of(members("query", strings | json_values), members("items", json_list(strings))),
    "tokenize": members("messages", messages) | members("prompt", strings),
    None: st.one_of(members("messages", messages), members("prompt", strings), members("input", strings | messages)),
}
PATHS: dict[str | None, list[str]] = {
    api: [path for path, route in ROUTES.items() if (None if route.adapter_header else route.protocols[0].api) == api]
    for api in OF_PROTOCOL
}


def bodies(api: str | None, models: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[bytes]:
    """Return JSON text of a protocol's bodies with `model` at a random place."""
    items = st.lists(OF_PROTOCOL[api], min_size=api is None, max_size=3)
    more = st.lists(common_members, max_size=4)
    arranged = st.builds(
        lambda model, items, more, seed: random.Random(seed).sample([model, *items, *more], 1 + len(items) + len(more)),
        *(models, items, more, st.integers(0, 1 << 20)),
    )

    def text(members: list[tuple[str, str]], blank: str, other: str) -> bytes:
        inner = ",".join(f"{blank}{key}{other}:{blank}{value}{other}" for key, value in members)
        return f"{other}{{{inner}}}{blank}".encode()

    return st.builds(text, arranged, whitespace, whitespace)


AUTO = st.tuples(st.sampled_from(['"model"', '"\\u006dodel"']), st.sampled_from(['"MoM"', '"auto"', '"M\\u006fM"']))
NAMED = ["medical-lora", "served-base", "nothing-known", "mom", ""]


def is_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ("system", "developer")


def prepended(client_value: Any, part: str = "text", ending: str = "") -> Any:
    if isinstance(client_value, list):
        return [{"type": part, "text": PROMPT + (ending if client_value else "")}, *client_value]
    return f"{PROMPT}\n\n{client_value}" if isinstance(client_value, str) and client_value else PROMPT


def prompted(conversation: Any, mode: str, part: str = "text") -> Any:
    """Return a conversation with the system prompt; None if the value is no conversation."""
    if not isinstance(conversation, list):
        return None
    first = next((index for index, message in enumerate(conversation) if is_system(message)), None)
    if first is None:
        return [{"role": "system", "content": PROMPT}, *conversation]
    client_message = conversation[first]
    edited = {
        **client_message,
        "content": PROMPT if mode == "replace" else prepended(client_message.get("content"), part),
    }
    rest = [message for message in conversation[first + 1 :] if mode == "insert" or not is_system(message)]
    return [*conversation[:first], edited, *rest]


def protocol_of(api: str | None, client: dict[str, Any]) -> str:
    if api is None:
        return "completions" if "prompt" in client and "messages" not in client else "chat"
    if api == "tokenize":
        return "completions" if "prompt" in client and "messages" not in client else "tokenize"
    return api


def with_prompt(api: str, client: dict[str, Any], mode: str) -> dict[str, Any]:
    """Return the members that our system prompt changes, with their new values."""
    replaces = mode == "replace"
    if api in ("chat", "cohere", "tokenize"):
        conversation = prompted(client.get("messages"), mode)
        return {} if conversation is None else {"messages": conversation}
    if api == "batch":
        conversations = client.get("messages")
        many = (
            [prompted(conversation, mode) for conversation in conversations] if isinstance(conversations, list) else []
        )
        return {"messages": many} if many and None not in many else {}
    if api == "messages":
        return {"system": PROMPT if replaces else prepended(client.get("system"), ending="\n\n")}
    if api == "decisions":
        return {"instructions": PROMPT if replaces else prepended(client.get("instructions"))}
    if api == "responses":
        items = client.get("input") or []
        has_system = isinstance(items, list) and any(map(is_system, items))
        if replaces:
            edited = {"input": [item for item in items if not is_system(item)]} if has_system else {}
            return {"instructions": PROMPT, **edited}
        if has_system and not client.get("instructions"):
            return {"input": prompted(items, mode, "input_text")}
        return {"instructions": prepended(client.get("instructions"))}
    return {}


def with_reasoning(api: str, client: dict[str, Any], expected_edit: ExpectedEdit) -> dict[str, Any]:
    """Return the members that our reasoning changes, with their new values."""
    if api not in ("chat", "batch", "responses", "messages", "cohere", "tokenize"):
        return {}
    client_fields = {name: client.get(name) or {} for name in ("reasoning", "output_config", "chat_template_kwargs")}
    client_values = [client.get(name) for name in ("reasoning_effort", "thinking", "thinking_token_budget")]
    for name in ("reasoning", "output_config"):
        client_values += [client_fields[name].get(inner) for inner in ("effort", "enabled", "max_tokens")]
    if any(value is not None for value in client_values) or "enable_thinking" in client_fields["chat_template_kwargs"]:
        return {}
    if expected_edit.effort is None:
        return {"chat_template_kwargs": {**client_fields["chat_template_kwargs"], **expected_edit.kwargs}}
    if api == "responses":
        return {"reasoning": {**client_fields["reasoning"], "effort": expected_edit.effort}}
    if api == "messages" and expected_edit.effort == "none":
        return {"thinking": {"type": "disabled"}}
    if api == "messages":
        effort = "low" if expected_edit.effort == "minimal" else expected_edit.effort
        return {"output_config": {**client_fields["output_config"], "effort": effort}}
    if api == "tokenize":
        template_kwargs = {"reasoning_effort": expected_edit.effort, "enable_thinking": expected_edit.effort != "none"}
        return {"chat_template_kwargs": {**client_fields["chat_template_kwargs"], **template_kwargs}}
    return {} if api == "cohere" else {"reasoning_effort": expected_edit.effort}


def same_members(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)


@pytest.mark.parametrize("api", OF_PROTOCOL, ids=lambda api: api or "invocations")
@given(st.data())
@settings(examples, max_examples=40)
def test_routed_body_differs_only_by_edit(configured: list[SyncClient], api: str | None, data: st.DataObject) -> None:
    which = data.draw(st.integers(0, len(EXPECTED_EDITS) - 1))
    path, content = data.draw(st.sampled_from(PATHS[api])), data.draw(bodies(api, AUTO))
    sync_client, expected_edit, client = configured[which], EXPECTED_EDITS[which], json.loads(content)
    response = sync_client.post(path, "MoM", content)
    received, protocol = sync_client.app.received.json, protocol_of(api, client)
    prompt, reasoning = (
        with_prompt(protocol, client, expected_edit.mode),
        with_reasoning(protocol, client, expected_edit),
    )
    expected = {**client, "model": "medical-lora", **prompt, **reasoning}
    request_id = client.get("request_id", "")
    if protocol == "responses" and isinstance(request_id, str) and not is_usable_id(request_id):
        assert received["request_id"].startswith("resp_")
        expected["request_id"] = received["request_id"]
    assert same_members(received, expected)
    assert list(received)[: len(client)] == list(client)
    assert response.headers["x-vsr-selected-model"] == "medical-lora"
    assert response.headers["x-vsr-injected-system-prompt"] == ("true" if prompt else "false")
    assert response.headers["x-vsr-selected-reasoning"] == (
        "on" if reasoning and expected_edit.effort != "none" else "off"
    )
    assert sync_client.app.received.headers[-1]["content-length"] == str(len(sync_client.app.received.body))


@given(st.data())
@settings(examples, max_examples=100)
def test_body_without_auto_name_is_forwarded_byte_for_byte(sync_client: SyncClient, data: st.DataObject) -> None:
    api, name = data.draw(st.sampled_from(list(OF_PROTOCOL))), data.draw(st.sampled_from(NAMED))
    # Where a header names the adapter, the body's `model` is ignored.
    models = st.just(json.dumps(name)) | json_values.filter(lambda text: json.loads(text) not in ("MoM", "auto"))
    path, content = (
        data.draw(st.sampled_from(PATHS[api])),
        data.draw(bodies(api, members("model", models) if api else AUTO)),
    )
    response = sync_client.post(path, name, content)
    assert sync_client.app.received.bodies == [content]
    assert "x-request-id" not in sync_client.app.received.headers[-1]
    assert not [header for header in response.headers if header.startswith(("x-vsr", "x-lora-router"))]


async def test_agent_requests_are_routed_by_user_text(app: App) -> None:
    for path, request in (
        ("/v1/messages", claude_code("Is my blood thin?")),
        ("/v1/messages/count_tokens", claude_code("Is my blood thin?")),
        ("/v1/responses", codex("Is my blood thin?")),
        ("/v1/chat/completions", cline("Is my blood thin?")),
    ):
        response = await post_json(app.asgi, path, request)
        assert response.headers["x-vsr-selected-category"] == "medical"
        assert response.headers["x-vsr-injected-system-prompt"] == "true"
        received = app.received.json
        assert received["model"] == "medical-lora" and received["chat_template_kwargs"] == {"enable_thinking": True}
        for name in request.keys() - {"model", "system", "input", "instructions", "messages"}:
            assert received[name] == request[name]


def swapped(value: Any, chance: random.Random) -> Any:
    """Return a value in which one inner value has another type."""
    if chance.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return chance.choice([None, True, 0, -1.5, "", "MoM", [], {}, [value], {"x": value}, str(value), {"text": 1}])
    place = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
    inner = swapped(value[place], chance)
    if isinstance(value, dict):
        return {**value, place: inner}
    return [*value[:place], inner, *value[place + 1 :]]


def mutated(request: dict[str, Any], chance: random.Random) -> bytes:
    """Return a request's body with random damage, as broken or hostile clients send it."""
    for _ in range(chance.randrange(3)):
        name = chance.choice([name for name in request if name != "model"])
        request = {**request, name: swapped(request[name], chance)}
    content = bytearray(json.dumps(request, ensure_ascii=chance.random() < 0.5).encode())
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(content) or 1)
        until = at + chance.randrange(1, 12)
        match chance.randrange(5):
            case 0 if content:
                content[at] ^= 1 << chance.randrange(8)
            case 1:
                del content[at:until]
            case 2:
                content[at:at] = content[at:until] * chance.randrange(1, 20)
            case 3 if chance.random() < 0.3:
                del content[at:]
            case 4:
                content[at:at] = chance.choice(
                    [b"[", b"}", b'"', b"\\", b"\xff", b"\x00", b"\\ud83d", b"NaN", b"1e999", b","]
                )
    return bytes(content)


def is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


async def test_10_000_broken_bodies_cause_no_error(app: App, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(7)
    agents = {"/v1/messages": claude_code, "/v1/responses": codex, "/v1/chat/completions": cline}
    requests = [(path, body_for(path, "Größe of my \u2028 blood 🩺", model="MoM")) for path in ROUTES]
    text_members = {"input", "instructions", "messages", "reasoning", "system", "model", "tool_choice", "include"}
    for path, agent in agents.items():
        requests.append((path, {name: value for name, value in agent("blood").items() if name in text_members}))
    requests += [
        ("/v1/responses", {"model": "MoM", "input": "blood", "instructions": "Own.", "background": True}),
        ("/v1/messages", {"model": "MoM", "system": "Own.", "messages": [{"role": "user", "content": "blood"}]}),
        ("/v1/completions", {"model": "MoM", "prompt": ["blood", "size"], "n": 2}),
    ]
    broken = 0
    async with asyncio.timeout(300):
        for _ in range(10_000):
            path, request = chance.choice(requests)
            content = mutated(request, chance)
            app.received.bodies.clear()
            await post_json(app.asgi, path, content, [(SAGEMAKER, b"MoM")] if path == "/invocations" else ())
            if not is_json(content):
                broken += 1
                assert app.received.bodies == [content]
    assert 2_000 < broken < 8_000
    assert app.adapters.leased == [] and app.adapters.unknown_uses == 0 and app.serving.recorder.counts.in_progress == 0
    # Internal errors would be logged here, because the request falls back to the default model.
    app.serving.recorder.flush()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
