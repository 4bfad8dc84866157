"""Whatever a client sends, in whatever shape: what is not routed arrives to the byte, what is routed gets the edit."""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_lora_router.protocols.routes import ROUTES

from ..conftest import (
    blanks,
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
)
from .conftest import Answer, App, ask, echo, request_to

SAGEMAKER = b"x-amzn-sagemaker-adapter-identifier"


@dataclass
class Over:
    """The application, driven from a test that is not asynchronous."""

    app: App
    runner: asyncio.Runner

    def ask(self, path: str, model: str, content: bytes) -> Answer:
        self.app.reached.bodies.clear()
        self.app.reached.headers.clear()
        headers = [(SAGEMAKER, model.encode())] if path == "/invocations" else []
        return self.runner.get_loop().run_until_complete(ask(self.app.asgi, path, content, headers))


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
class Wanted:
    """What a configuration wants to be written."""

    mode: str
    kwargs: dict[str, bool]
    effort: str | None


WANTED = [
    Wanted(mode, kwargs, effort)
    for mode in ("insert", "replace")
    for kwargs, effort in (({"enable_thinking": True}, None), ({}, "high"), ({}, "minimal"), ({}, "none"))
]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory, runner: asyncio.Runner) -> Over:
    return Over(echo(tmp_path_factory.mktemp("echo")), runner)


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory, runner: asyncio.Runner) -> list[Over]:
    """An application for every one of `WANTED`."""

    def one(wanted: Wanted, folder: Path) -> Over:
        family = "qwen3" if wanted.kwargs else "gpt-oss"
        config = CONFIG.format(family=family, mode=wanted.mode, effort=json.dumps(wanted.effort or "high"))
        return Over(echo(folder, config), runner)

    return [one(wanted, tmp_path_factory.mktemp("echo")) for wanted in WANTED]


# One strategy a shape.
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
said_within = json_object(
    st.one_of(
        st.tuples(st.just('"effort"'), efforts),
        st.tuples(st.sampled_from(['"summary"', '"format"']), json_values),
        st.tuples(st.just('"enabled"'), st.just("null")),
    ),
    most=2,
)
kwargs = json_object(
    st.tuples(st.sampled_from(['"documents"', '"enable_thinking"', '"a"', '"b"', '"c"']), json_values), most=3
)
of_any_shape = st.one_of(
    st.tuples(st.just('"tools"'), json_values),
    st.tuples(st.sampled_from(['"temperature"', '"seed"', '"max_tokens"']), numbers),
    st.tuples(st.sampled_from(['"reasoning"', '"output_config"']), said_within | st.just("null")),
    st.tuples(st.sampled_from(['"reasoning_effort"', '"thinking"', '"thinking_token_budget"']), efforts),
    st.tuples(st.just('"chat_template_kwargs"'), kwargs | st.just("null")),
    others,
    others,
)


def members(key: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, str]]:
    return st.tuples(st.just(f'"{key}"'), values)


OF_SHAPE = {
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
    api: [path for path, route in ROUTES.items() if (None if route.header else route.shapes[0].api) == api]
    for api in OF_SHAPE
}


def bodies(api: str | None, models: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[bytes]:
    """JSON text of a shape, with `model` somewhere in it."""
    some = st.lists(OF_SHAPE[api], min_size=api is None, max_size=3)
    more = st.lists(of_any_shape, max_size=4)
    arranged = st.builds(
        lambda model, some, more, seed: random.Random(seed).sample([model, *some, *more], 1 + len(some) + len(more)),
        *(models, some, more, st.integers(0, 1 << 20)),
    )

    def text(members: list[tuple[str, str]], blank: str, other: str) -> bytes:
        inner = ",".join(f"{blank}{key}{other}:{blank}{value}{other}" for key, value in members)
        return f"{other}{{{inner}}}{blank}".encode()

    return st.builds(text, arranged, blanks, blanks)


AUTO = st.tuples(st.sampled_from(['"model"', '"\\u006dodel"']), st.sampled_from(['"MoM"', '"auto"', '"M\\u006fM"']))
NAMED = ["medical-lora", "served-base", "nothing-known", "mom", ""]


def is_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ("system", "developer")


def before(own: Any, part: str = "text", ending: str = "") -> Any:
    if isinstance(own, list):
        return [{"type": part, "text": PROMPT + (ending if own else "")}, *own]
    return f"{PROMPT}\n\n{own}" if isinstance(own, str) and own else PROMPT


def prompted(conversation: Any, mode: str, part: str = "text") -> Any:
    """A conversation with the prompt in it; None when it is none."""
    if not isinstance(conversation, list):
        return None
    first = next((index for index, message in enumerate(conversation) if is_system(message)), None)
    if first is None:
        return [{"role": "system", "content": PROMPT}, *conversation]
    own = conversation[first]
    edited = {**own, "content": PROMPT if mode == "replace" else before(own.get("content"), part)}
    rest = [one for one in conversation[first + 1 :] if mode == "insert" or not is_system(one)]
    return [*conversation[:first], edited, *rest]


def shape_of(api: str | None, client: dict[str, Any]) -> str:
    if api is None:
        return "completions" if "prompt" in client and "messages" not in client else "chat"
    if api == "tokenize":
        return "completions" if "prompt" in client and "messages" not in client else "tokenize"
    return api


def with_prompt(api: str, client: dict[str, Any], mode: str) -> dict[str, Any]:
    """The members that our system prompt changes, with what they become."""
    replaces = mode == "replace"
    if api in ("chat", "cohere", "tokenize"):
        conversation = prompted(client.get("messages"), mode)
        return {} if conversation is None else {"messages": conversation}
    if api == "batch":
        conversations = client.get("messages")
        many = [prompted(one, mode) for one in conversations] if isinstance(conversations, list) else []
        return {"messages": many} if many and None not in many else {}
    if api == "messages":
        return {"system": PROMPT if replaces else before(client.get("system"), ending="\n\n")}
    if api == "decisions":
        return {"instructions": PROMPT if replaces else before(client.get("instructions"))}
    if api == "responses":
        items = client.get("input")
        instructs = isinstance(items, list) and any(map(is_system, items))
        if replaces:
            kept = {"input": [one for one in items if not is_system(one)]} if instructs else {}
            return {"instructions": PROMPT, **kept}
        if instructs and not client.get("instructions"):
            return {"input": prompted(items, mode, "input_text")}
        return {"instructions": before(client.get("instructions"))}
    return {}


def with_reasoning(api: str, client: dict[str, Any], wanted: Wanted) -> dict[str, Any]:
    """The members that our reasoning changes, with what they become."""
    if api not in ("chat", "batch", "responses", "messages", "cohere", "tokenize"):
        return {}
    own = {name: client.get(name) or {} for name in ("reasoning", "output_config", "chat_template_kwargs")}
    spoken = [client.get(name) for name in ("reasoning_effort", "thinking", "thinking_token_budget")]
    for name in ("reasoning", "output_config"):
        spoken += [own[name].get(inner) for inner in ("effort", "enabled", "max_tokens")]
    if any(one is not None for one in spoken) or "enable_thinking" in own["chat_template_kwargs"]:
        return {}
    if wanted.effort is None:
        return {"chat_template_kwargs": {**own["chat_template_kwargs"], **wanted.kwargs}}
    if api == "responses":
        return {"reasoning": {**own["reasoning"], "effort": wanted.effort}}
    if api == "messages" and wanted.effort == "none":
        return {"thinking": {"type": "disabled"}}
    if api == "messages":
        effort = "low" if wanted.effort == "minimal" else wanted.effort
        return {"output_config": {**own["output_config"], "effort": effort}}
    if api == "tokenize":
        thinks = {"reasoning_effort": wanted.effort, "enable_thinking": wanted.effort != "none"}
        return {"chat_template_kwargs": {**own["chat_template_kwargs"], **thinks}}
    return {} if api == "cohere" else {"reasoning_effort": wanted.effort}


def same_members(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)


@pytest.mark.parametrize("api", OF_SHAPE, ids=lambda api: api or "invocations")
@given(st.data())
@settings(examples, max_examples=40)
def test_a_routed_body_is_the_clients_with_the_edit_and_nothing_else(
    configured: list[Over], api: str | None, data: st.DataObject
) -> None:
    which = data.draw(st.integers(0, len(WANTED) - 1))
    path, content = data.draw(st.sampled_from(PATHS[api])), data.draw(bodies(api, AUTO))
    over, wanted, client = configured[which], WANTED[which], json.loads(content)
    answer = over.ask(path, "MoM", content)
    after, shape = over.app.reached.json, shape_of(api, client)
    prompt, reasoning = with_prompt(shape, client, wanted.mode), with_reasoning(shape, client, wanted)
    expected = {**client, "model": "medical-lora", **prompt, **reasoning}
    if shape == "responses" and "request_id" not in client:
        assert after["request_id"].startswith("resp_")
        expected["request_id"] = after["request_id"]
    assert same_members(after, expected)
    assert list(after)[: len(client)] == list(client)
    assert answer.headers["x-vsr-selected-model"] == "medical-lora"
    assert answer.headers["x-vsr-injected-system-prompt"] == ("true" if prompt else "false")
    assert answer.headers["x-vsr-selected-reasoning"] == ("on" if reasoning and wanted.effort != "none" else "off")
    assert over.app.reached.headers[-1]["content-length"] == str(len(over.app.reached.body))


@given(st.data())
@settings(examples, max_examples=100)
def test_a_body_that_names_no_auto_name_arrives_byte_for_byte(over: Over, data: st.DataObject) -> None:
    api, name = data.draw(st.sampled_from(list(OF_SHAPE))), data.draw(st.sampled_from(NAMED))
    # Where the header names the adapter, the body's model means nothing.
    models = st.just(json.dumps(name)) | json_values.filter(lambda text: json.loads(text) not in ("MoM", "auto"))
    path, content = (
        data.draw(st.sampled_from(PATHS[api])),
        data.draw(bodies(api, members("model", models) if api else AUTO)),
    )
    answer = over.ask(path, name, content)
    assert over.app.reached.bodies == [content]
    assert "x-request-id" not in over.app.reached.headers[-1]
    assert not [header for header in answer.headers if header.startswith(("x-vsr", "x-lora-router"))]


async def test_agents_work_is_routed_by_what_their_user_asked(app: App) -> None:
    for path, request in (
        ("/v1/messages", claude_code("Is my blood thin?")),
        ("/v1/messages/count_tokens", claude_code("Is my blood thin?")),
        ("/v1/responses", codex("Is my blood thin?")),
        ("/v1/chat/completions", cline("Is my blood thin?")),
    ):
        answer = await ask(app.asgi, path, request)
        assert answer.headers["x-vsr-selected-category"] == "medical"
        assert answer.headers["x-vsr-injected-system-prompt"] == "true"
        after = app.reached.json
        assert after["model"] == "medical-lora" and after["chat_template_kwargs"] == {"enable_thinking": True}
        for name in request.keys() - {"model", "system", "input", "instructions", "messages"}:
            assert after[name] == request[name]


def swapped(value: Any, chance: random.Random) -> Any:
    """A value with one of the values in it in another type's clothes."""
    if chance.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return chance.choice([None, True, 0, -1.5, "", "MoM", [], {}, [value], {"x": value}, str(value), {"text": 1}])
    place = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
    inner = swapped(value[place], chance)
    if isinstance(value, dict):
        return {**value, place: inner}
    return [*value[:place], inner, *value[place + 1 :]]


def mutated(request: dict[str, Any], chance: random.Random) -> bytes:
    """A request's body as a broken client, or a hostile one, might send it."""
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


async def test_ten_thousand_broken_bodies_harm_nobody(app: App, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(7)
    agents = {"/v1/messages": claude_code, "/v1/responses": codex, "/v1/chat/completions": cline}
    requests = [(path, request_to(path, "Größe of my \u2028 blood 🩺", model="MoM")) for path in ROUTES]
    kept = {"input", "instructions", "messages", "reasoning", "system", "model", "tool_choice", "include"}
    for path, agent in agents.items():
        requests.append((path, {name: value for name, value in agent("blood").items() if name in kept}))
    requests += [
        ("/v1/responses", {"model": "MoM", "input": "blood", "instructions": "Own.", "background": True}),
        ("/v1/messages", {"model": "MoM", "system": "Own.", "messages": [{"role": "user", "content": "blood"}]}),
        ("/v1/completions", {"model": "MoM", "prompt": ["blood", "size"], "n": 2}),
    ]
    began, broken = time.process_time(), 0
    async with asyncio.timeout(60):
        for _ in range(10_000):
            path, request = chance.choice(requests)
            content = mutated(request, chance)
            app.reached.bodies.clear()
            await ask(app.asgi, path, content, [(SAGEMAKER, b"MoM")] if path == "/invocations" else ())
            if not is_json(content):
                broken += 1
                assert app.reached.bodies == [content]
    assert 2_000 < broken < 8_000
    assert time.process_time() - began < 15
    assert app.adapters.leased == [] and app.adapters.under_way == 0 and app.serving.record.tally.under_way == 0
    # What went wrong inside would be told here, and the request would have taken the default.
    app.serving.record.settle()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
