"""The routing guide's configuration on a real server, used by the official client."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import openai
import pytest

from vllm_lora_router.tools.demo.answers import ADAPTERS, BASE_ANSWER
from vllm_lora_router.tools.demo.server import Server

from .conftest import ADMIN, API_KEY, BASE, HANG_GUARD_S
from .logs import decision_lines

ANSWER = {recipe.name: recipe.answer for recipe in ADAPTERS} | {BASE: BASE_ANSWER}
GUIDE = Path(__file__).parents[2] / "config/guide.yaml"

# The guide's two questions and two more, with the category and the model that fit.
QUESTIONS = [
    ("Explain async/await in JavaScript", "technical", "technical-lora"),
    ("What causes high blood pressure?", "medical", "medical-lora"),
    ("Can my landlord keep my deposit?", "legal", "legal-lora"),
    ("Suggest a name for my cat", "general", BASE),
]


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0)


@pytest.fixture
async def http(server: Server):
    async with httpx.AsyncClient(
        base_url=server.url, headers={"authorization": f"Bearer {API_KEY}"}, timeout=120
    ) as client:
        yield client


def messages(text: str) -> list:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(("question", "category", "model"), QUESTIONS)
def test_a_question_is_answered_by_the_adapter_of_its_category(
    client: openai.OpenAI, question: str, category: str, model: str
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="MoM", messages=messages(question), max_tokens=64, temperature=0
    )
    completion = raw.parse()
    assert completion.choices[0].message.content == ANSWER[model]
    assert completion.model == model
    assert raw.headers["x-vsr-selected-model"] == model
    assert raw.headers["x-vsr-selected-category"] == category
    assert raw.headers["x-vsr-selected-reasoning"] == "off"  # the guide's reasoning family llama2 is not defined
    assert raw.headers["x-vsr-injected-system-prompt"] == "true"
    assert raw.headers["x-lora-router-method"] == "domain"


def test_a_stream_is_answered_by_the_adapter(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="auto",
            messages=messages("What causes high blood pressure?"),
            max_tokens=64,
            temperature=0,
            stream=True,
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER["medical-lora"]
    assert {chunk.model for chunk in chunks} == {"medical-lora"}


def test_completions_are_routed(client: openai.OpenAI) -> None:
    completion = client.completions.create(
        model="MoM", prompt="My landlord wants to keep my deposit. Is that legal?", max_tokens=64, temperature=0
    )
    assert completion.model == "legal-lora"
    assert completion.choices[0].text == ANSWER["legal-lora"]


@pytest.mark.parametrize("model", ["legal-lora", BASE])
def test_a_request_that_names_a_model_is_not_routed(client: openai.OpenAI, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=messages("What causes high blood pressure?"), max_tokens=64, temperature=0
    )
    assert raw.parse().choices[0].message.content == ANSWER[model]
    assert not [name for name in raw.headers if name.startswith(("x-vsr", "x-lora-router"))]


def test_the_log_line_has_the_id_of_the_answer(client: openai.OpenAI, server: Server) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="MoM", messages=messages("Can my landlord keep my deposit?"), max_tokens=4
    )
    (line,) = decision_lines(server, raw.parse().id)
    assert "legal -> legal-lora domain 0." in line and "(law)" in line and " ms chatcmpl-" in line


def test_the_list_of_models_has_the_auto_name(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {BASE, "technical-lora", "medical-lora", "legal-lora", "MoM"}


def test_errors_of_vllm_are_returned_with_the_decision_headers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="MoM", messages=messages("What causes high blood pressure?"), max_tokens=-1
        )
    assert "max_tokens" in str(caught.value)
    assert caught.value.response.headers["x-vsr-selected-model"] == "medical-lora"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="missing", messages=messages("x"))


@pytest.mark.parametrize("path", ["/v1/router/health", "/v1/router/config"])
async def test_vllms_api_key_protects_the_router_routes(server: Server, http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 200
    refused = await http.get(path, headers={"authorization": "Bearer wrong"})
    assert refused.status_code == 401
    body = {"model": "MoM", "messages": messages("Can my landlord keep my deposit?")}
    unknown = await http.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer wrong"})
    assert unknown.status_code == 401
    assert "x-lora-router-reason" not in unknown.headers


async def test_classify_returns_the_plan_without_generating(http: httpx.AsyncClient) -> None:
    before = await requests_served(http)
    plan = (await http.post("/v1/router/classify", json={"text": "What causes high blood pressure?"})).json()
    assert plan["category"] == "medical" and plan["model"] == "medical-lora"
    scores = plan["steps"][0]["classification"]["scores"]
    assert set(scores) == {"technical", "medical", "legal", "general"} and 0.99 < sum(scores.values()) < 1.01
    assert await requests_served(http) == before


async def test_config_shows_the_category_of_each_label(http: httpx.AsyncClient) -> None:
    config = (await http.get("/v1/router/config", headers=ADMIN)).json()
    labels = {label["label"]: label for label in config["labels"]}
    right = {"computer science": "technical", "engineering": "technical", "health": "medical", "law": "legal"}
    assert {name: labels[name]["category"] for name in right} == right
    assert {label["source"] for name, label in labels.items() if name in right} == {"similarity"}
    assert {label["category"] for name, label in labels.items() if name not in right} == {"general"}


@pytest.mark.parametrize("model", ["medical-lora", "MoM"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_disconnects_cancels_the_generation(
    http: httpx.AsyncClient, model: str, stream: bool
) -> None:
    body = {
        "model": model,
        "messages": messages("What causes high blood pressure?"),
        "max_tokens": 1800,
        "ignore_eos": True,
        "stream": stream,
    }
    for _ in range(5):  # on a busy machine a generation may end before it is seen running
        before = await generated(http)
        request = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        if await seen_running(http, request):
            request.cancel()
            await until(lambda: running(http), 0)
            if await generated(http) - before < 900:
                return
    pytest.fail("five generations were not cancelled")


async def test_bodies_in_other_encodings_are_routed(http: httpx.AsyncClient) -> None:
    body = {"model": "MoM", "messages": messages("Can my landlord keep my deposit?"), "max_tokens": 4}
    for encoding in ("utf-16", "utf-8-sig"):
        response = await http.post(
            "/v1/chat/completions",
            content=json.dumps(body).encode(encoding),
            headers={"content-type": "application/json"},
        )
        assert response.status_code == 200, response.text
        assert response.json()["model"] == "legal-lora"


async def test_invalid_bodies_get_the_error_of_vllm(http: httpx.AsyncClient) -> None:
    for content in (b'{"model": "MoM", "messages": [', b"", b'{"model": "MoM"}'):
        response = await http.post(
            "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
        )
        assert 400 <= response.status_code < 500, response.text
        assert "error" in response.json()


def test_the_configuration_of_the_guide_is_unchanged() -> None:
    """It has no keys of the router. The demo serves the base model under another name than llama2-7b."""
    text = GUIDE.read_text()
    assert "llama2-7b" in text and "router:" not in text and "embedding_model" not in text


async def requests_served(http: httpx.AsyncClient) -> float:
    return await metric(http, "vllm:request_success_total")


async def running(http: httpx.AsyncClient) -> float:
    return await metric(http, "vllm:num_requests_running")


async def generated(http: httpx.AsyncClient) -> float:
    return await metric(http, "vllm:generation_tokens_total")


async def metric(http: httpx.AsyncClient, name: str) -> float:
    lines = (await http.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


async def seen_running(http: httpx.AsyncClient, request: asyncio.Task[httpx.Response]) -> bool:
    """Return whether the engine was running the request before it was done."""
    while not request.done():
        if await running(http) and not request.done():
            return True
        await asyncio.sleep(0.1)
    assert request.result().status_code == 200, request.result().text
    return False


async def until(read: Callable[[], Awaitable[float]], expected: int) -> None:
    deadline = time.monotonic() + HANG_GUARD_S
    while await read() != expected:
        assert time.monotonic() < deadline, f"not {expected} after {HANG_GUARD_S} s"
        await asyncio.sleep(0.1)
