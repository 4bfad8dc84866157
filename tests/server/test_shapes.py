"""The prompt that the model receives, rendered by vLLM: system prompt and reasoning in every API format."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllm_lora_router.tools.demo.answers import ADAPTERS, BASE_ANSWER
from vllm_lora_router.tools.demo.server import Server

from .conftest import ADMIN, GuideServers
from .logs import decision_lines

ANSWER = {recipe.name: recipe.answer for recipe in ADAPTERS} | {"tiny": BASE_ANSWER}

CONFIG = """
model_config:
  base: {{reasoning_family: {family}}}
reasoning_families:
  effort: {{type: reasoning_effort, parameter: reasoning_effort}}
default_model: base
keyword_rules:
  - {{category: medical, keywords: [fever]}}
  - {{category: legal, keywords: [lawsuit]}}
  - {{category: calm, keywords: [tea]}}
  - {{category: keen, keywords: [riddle]}}
  - {{category: long, keywords: [epic]}}
categories:
  - name: medical # an adapter, on
    system_prompt: You are a medical expert.
    model_scores: [{{model: base, lora_name: medical-lora, use_reasoning: true, reasoning_effort: high}}]
  - name: legal # an adapter, off
    system_prompt: Speak of the law.
    system_prompt_mode: replace
    model_scores: [{{model: base, lora_name: legal-lora, use_reasoning: false}}]
  - name: keen # the base, on
    system_prompt: Think twice.
    model_scores: [{{model: base, use_reasoning: true, reasoning_effort: low}}]
  - name: calm # the base, off
    model_scores: [{{model: base, use_reasoning: false}}]
  - name: long
    system_prompt: {long}
    model_scores: [{{model: base, lora_name: technical-lora}}]
router: {{admin_key_env: ROUTER_ADMIN_KEY}}
"""

FAMILIES = ("qwen3", "deepseek", "effort")
# (family, reasoning on, effort) -> what the template writes after the assistant's name.
SHOWN = {
    ("qwen3", True, "high"): "",
    ("qwen3", True, "low"): "",
    ("qwen3", False, None): "<think>\n\n</think>\n\n",
    ("deepseek", True, "high"): "<think>",
    ("deepseek", True, "low"): "<think>",
    ("deepseek", False, None): "</think>",
    ("effort", True, "high"): "(effort high)",
    ("effort", True, "low"): "(effort low)",
    ("effort", False, None): "",
}


@pytest.fixture
async def http(plugin_server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=plugin_server.url, timeout=120) as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def configuration_restored(plugin_server: Server, plugin_config: Path) -> Iterator[None]:
    """Restore the configuration that other modules use."""
    before = plugin_config.read_text()
    yield
    plugin_config.write_text(before)
    assert httpx.post(f"{plugin_server.url}/v1/router/reload", headers=ADMIN, timeout=120).status_code == 200


@pytest.fixture(scope="module")
def plugin_config(guide_servers: GuideServers) -> Path:
    return guide_servers.plugin_config


@pytest.fixture
async def family(request: pytest.FixtureRequest, http: httpx.AsyncClient, plugin_config: Path) -> str:
    """The base model's reasoning family, which a reload puts into effect."""
    plugin_config.write_text(CONFIG.format(family=request.param, long="x" * 1500))
    response = await http.post("/v1/router/reload", headers=ADMIN)
    assert response.status_code == 200, response.text
    return request.param


def chat(text: str, system: str | None) -> dict[str, Any]:
    system_messages = [{"role": "system", "content": system}] if system else []
    return {"messages": [*system_messages, {"role": "user", "content": text}]}


def responses(text: str, system: str | None) -> dict[str, Any]:
    return {"input": text, **({"instructions": system} if system else {})}


def responses_items(text: str, system: str | None) -> dict[str, Any]:
    system_messages = [{"role": "system", "content": [{"type": "input_text", "text": system}]}] if system else []
    return {"input": [*system_messages, {"role": "user", "content": [{"type": "input_text", "text": text}]}]}


def messages(text: str, system: str | None) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 9, **({"system": system} if system else {})}


def message_blocks(text: str, system: str | None) -> dict[str, Any]:
    system_field = (
        {"system": [{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}]} if system else {}
    )
    return {
        "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}],
        "max_tokens": 9,
        **system_field,
    }


SHAPES = {
    "chat": ("/v1/chat/completions/render", chat),
    "tokenize": ("/tokenize", chat),
    "responses": ("/v1/responses/render", responses),
    "responses-items": ("/v1/responses/render", responses_items),
    "messages": ("/v1/messages/render", messages),
    "message-blocks": ("/v1/messages/render", message_blocks),
}


async def prompt_of(http: httpx.AsyncClient, path: str, request: dict[str, Any]) -> tuple[str, httpx.Response]:
    """Return the prompt that vLLM renders for a request, as text, and the response."""
    response = await http.post(path, json={"model": "MoM", **request})
    assert response.status_code == 200, response.text
    rendered = response.json()
    tokens = rendered.get("token_ids") or rendered.get("tokens")
    text = (await http.post("/detokenize", json={"model": "tiny", "tokens": tokens})).json()["prompt"]
    return text.replace("<s>", ""), response


def system_of(prompt: str) -> str:
    return prompt.removeprefix("[system]").partition("\n[user]")[0] if prompt.startswith("[system]") else ""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
async def test_system_prompt_and_reasoning_are_in_the_prompt(http: httpx.AsyncClient, family: str, shape: str) -> None:
    path, make = SHAPES[shape]
    for word, model, prompt, on, effort in (
        ("fever", "medical-lora", "You are a medical expert.", True, "high"),
        ("lawsuit", "legal-lora", "Speak of the law.", False, None),
        ("riddle", "tiny", "Think twice.", True, "low"),
        ("tea", "tiny", "", False, None),
    ):
        for client_prompt in (None, "Answer in French."):
            rendered, response = await prompt_of(http, path, make(f"A {word}?", client_prompt))
            replaced = word == "lawsuit"
            # vLLM joins the parts of a message with a line break, the router joins two texts with a blank line.
            system = system_of(rendered).replace("\n\n", "\n")
            assert system == "\n".join(filter(None, [prompt, None if replaced else client_prompt])), rendered
            head, _, tail = rendered.partition("[assistant]")
            assert head.endswith(f"[user]A {word}?\n") and tail == SHOWN[family, on, effort], rendered
            written = on or family != "effort"
            assert response.headers["x-vsr-selected-model"] == model
            assert response.headers["x-vsr-selected-reasoning"] == ("on" if on and written else "off")
            assert response.headers["x-vsr-injected-system-prompt"] == ("true" if prompt else "false")


CLIENT_SETTINGS = {
    "chat": [{"reasoning_effort": "medium"}, {"reasoning_effort": "none"}],
    "responses": [{"reasoning": {"effort": "medium"}}, {"reasoning": {"effort": "none"}}],
    "messages": [{"output_config": {"effort": "medium"}}, {"thinking": {"type": "disabled"}}],
    "tokenize": [],
}
KWARGS = [
    {"chat_template_kwargs": {name: value}} for name in ("enable_thinking", "thinking") for value in (True, False)
]


@pytest.mark.parametrize("shape", CLIENT_SETTINGS)
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
async def test_reasoning_settings_of_the_client_are_never_overridden(
    http: httpx.AsyncClient, family: str, shape: str
) -> None:
    """The prompt is the same as for the base model, where the router writes nothing."""
    path, make = SHAPES[shape]
    for setting in [*CLIENT_SETTINGS[shape], *KWARGS]:
        for word in ("fever", "lawsuit"):
            rendered, response = await prompt_of(http, path, {**make(f"A {word}?", None), **setting})
            plain, _ = await prompt_of(http, path, {**make(f"A {word}?", None), **setting, "model": "tiny"})
            assert rendered.partition("[assistant]")[2] == plain.partition("[assistant]")[2], (setting, rendered, plain)
            assert response.headers["x-vsr-selected-reasoning"] == "off"


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
async def test_token_counts_match_the_prompt_that_runs(http: httpx.AsyncClient, family: str) -> None:
    chat_body = chat("A fever?", "Answer in French.")
    counted = await http.post("/tokenize", json={"model": "MoM", **chat_body})
    answered = await http.post("/v1/chat/completions", json={"model": "MoM", **chat_body, "max_tokens": 1})
    assert answered.json()["usage"]["prompt_tokens"] == counted.json()["count"]
    body = messages("A fever?", "Answer in French.")
    count = {key: value for key, value in body.items() if key != "max_tokens"}
    counted = await http.post("/v1/messages/count_tokens", json={"model": "MoM", **count})
    answered = await http.post("/v1/messages", json={"model": "MoM", **body})
    assert answered.json()["usage"]["input_tokens"] == counted.json()["input_tokens"]


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
async def test_a_system_prompt_that_does_not_fit_is_left_out(http: httpx.AsyncClient, family: str) -> None:
    """The request fits the model's 2,048 tokens, but not together with the category's 1,500."""
    short = await http.post("/v1/chat/completions", json={"model": "MoM", **chat("An epic?", None), "max_tokens": 64})
    assert short.headers["x-vsr-injected-system-prompt"] == "true"
    assert short.json()["usage"]["prompt_tokens"] > 1500
    text = "An epic? " + "y" * 900
    for path, request in (
        ("/v1/chat/completions", {**chat(text, None), "max_tokens": 64}),
        ("/v1/chat/completions", {**chat(text, None), "max_tokens": 64, "stream": True}),
        ("/v1/responses", {**responses(text, None), "max_output_tokens": 64}),
        ("/v1/messages", {**messages(text, None), "max_tokens": 64}),
    ):
        response = await http.post(path, json={"model": "MoM", "temperature": 0, **request})
        assert response.status_code == 200, response.text
        assert response.headers["x-vsr-injected-system-prompt"] == "false"
        assert response.headers["x-vsr-selected-model"] == "technical-lora"
        assert "technical-lora" in response.text
    too_long = await http.post("/v1/chat/completions", json={"model": "MoM", **chat("An epic? " + "y" * 2100, None)})
    assert too_long.status_code == 400 and "2048" in too_long.text
    assert too_long.headers["x-vsr-injected-system-prompt"] == "false"


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
async def test_every_format_is_answered_by_the_selected_adapter(http: httpx.AsyncClient, family: str) -> None:
    requests: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": chat("A fever?", None),
        "/v1/chat/completions/batch": {"messages": [chat("A fever?", None)["messages"]] * 2},
        "/v1/completions": {"prompt": ["A fever?", "Another fever?"], "max_tokens": 64},
        "/v1/responses": responses("A fever?", None),
        "/v1/messages": {**messages("A fever?", None), "max_tokens": 64},
    }
    for path, request in requests.items():
        response = await http.post(path, json={"model": "MoM", "temperature": 0, **request})
        assert response.status_code == 200, (path, response.text)
        assert response.headers["x-vsr-selected-model"] == "medical-lora" == response.json()["model"]
        assert ANSWER["medical-lora"] in response.text, path
    # A batch with prompts of different categories gets the default model.
    mixed = {"messages": [chat(f"A {word}?", None)["messages"] for word in ("fever", "lawsuit")]}
    response = await http.post("/v1/chat/completions/batch", json={"model": "MoM", "temperature": 0, **mixed})
    assert response.headers["x-lora-router-reason"] == "mixed" and BASE_ANSWER in response.text


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
async def test_the_id_of_the_answer_is_in_the_log(http: httpx.AsyncClient, family: str, plugin_server: Server) -> None:
    for path, request in (
        ("/v1/chat/completions", chat("A fever?", None)),
        ("/v1/chat/completions", {**chat("A fever?", None), "request_id": "own-7"}),
        ("/v1/chat/completions/batch", {"messages": [chat("A fever?", None)["messages"]]}),
        ("/v1/completions", {"prompt": "A fever?"}),
        ("/v1/responses", responses("A fever?", None)),
        ("/v1/responses", {**responses("A fever?", None), "request_id": "resp_own"}),
        ("/v1/messages", messages("A fever?", None)),
    ):
        response = await http.post(path, json={"model": "MoM", **request})
        answer_id = response.json()["id"]
        lines = await asyncio.to_thread(decision_lines, plugin_server, answer_id)
        assert len(lines) == 1, (path, answer_id, plugin_server.tail())


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
async def test_routes_outside_the_api_key_load_nothing(http: httpx.AsyncClient, family: str) -> None:
    header = "X-Amzn-SageMaker-Adapter-Identifier"
    body = {"model": "is not read", **chat("A fever?", None), "temperature": 0}
    routed = await http.post("/invocations", json=body, headers={header: "MoM"})
    assert routed.status_code == 200, routed.text
    assert routed.json()["model"] == "medical-lora" == routed.headers["x-vsr-selected-model"]
    assert routed.json()["choices"][0]["message"]["content"] == ANSWER["medical-lora"]
    named = await http.post("/invocations", json=body, headers={header: "legal-lora"})
    assert named.json()["choices"][0]["message"]["content"] == ANSWER["legal-lora"]
    base = await http.post("/invocations", json=body)
    assert base.json()["choices"][0]["message"]["content"] == BASE_ANSWER
    tea = await http.post("/invocations", json={**chat("Some tea?", None), "temperature": 0}, headers={header: "auto"})
    assert tea.json()["choices"][0]["message"]["content"] == BASE_ANSWER


async def test_an_auto_name_on_a_route_without_routing_is_refused_with_the_routes_that_have_it(
    http: httpx.AsyncClient,
) -> None:
    response = await http.post("/v1/embeddings", json={"model": "MoM", "input": "x"})
    assert response.status_code == 400
    assert "/v1/chat/completions" in response.json()["error"]["message"]


async def test_token_ids_are_served_by_the_default_model(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/completions", json={"model": "MoM", "prompt": [5, 6, 7], "max_tokens": 4})
    assert response.json()["model"] == "tiny"
    assert response.headers["x-lora-router-reason"] == "no_text"


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
async def test_the_other_routes_of_vllm_are_routed(http: httpx.AsyncClient, family: str) -> None:
    scored = {"query": "Is a fever ", "items": ["good", "bad"], "label_token_ids": [5, 6]}
    response = await http.post("/generative_scoring", json={"model": "MoM", **scored})
    assert response.status_code == 200, response.text
    assert response.headers["x-vsr-selected-model"] == "medical-lora" == response.json()["model"]
    question = {"type": "choice", "instructions": "Is it one?", "criteria": {"yes": "It is.", "no": "It is not."}}
    decided = {"state": "A fever of 40 degrees.", "questions": {"first": question}}
    response = await http.post("/v1/systemone", json={"model": "MoM", **decided})
    assert response.headers["x-vsr-selected-model"] == "medical-lora", response.text
    plain = await http.post("/v1/systemone", json={"model": "tiny", **decided})
    assert response.status_code == plain.status_code, (response.text, plain.text)
    # A rendered request names the selected adapter, and can be generated from its tokens.
    rendered = (await http.post("/v1/chat/completions/render", json={"model": "MoM", **chat("A fever?", None)})).json()
    assert rendered["model"] == "medical-lora"
    generated = await http.post("/inference/v1/generate", json=rendered)
    assert generated.status_code == 200, generated.text
    response = await http.post("/inference/v1/generate", json={**rendered, "model": "MoM"})
    assert response.status_code == 200 and response.headers["x-lora-router-reason"] == "no_text"
    read_back = await http.post("/detokenize", json={"model": "MoM", "tokens": rendered["token_ids"]})
    assert "A fever?" in read_back.json()["prompt"]
