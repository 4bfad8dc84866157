"""vLLM's routes: their protocols and properties, and requests with unusual values."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import ApiProtocol
from vllm_lora_router.protocols.routes import ROUTES, detect_protocol, is_behind_api_key
from vllm_lora_router.types import Edit, Reasoning

from ..conftest import claude_code, cline, codex

APIS: dict[str, str | list[str]] = {
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/batch": "batch",
    "/v1/chat/completions/render": "chat",
    "/v1/chat/completions/derender": "tokens",
    "/v1/completions": "completions",
    "/v1/completions/render": "completions",
    "/v1/completions/derender": "tokens",
    "/v1/responses": "responses",
    "/v1/responses/render": "responses",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "messages",
    "/v1/messages/render": "messages",
    "/v1/systemone": "decisions",
    "/v1/decisions": "decisions",
    "/cohere/v2/chat": "cohere",
    "/cohere/v2/chat/render": "cohere",
    "/inference/v1/generate": "tokens",
    "/generative_scoring": "scoring",
    "/tokenize": ["tokenize", "completions"],
    "/detokenize": "tokens",
    "/invocations": ["chat", "completions"],
}


def test_each_route_has_its_protocols() -> None:
    apis_by_path = {path: [protocol.api for protocol in route.protocols] for path, route in ROUTES.items()}
    assert apis_by_path == {path: [apis] if isinstance(apis, str) else apis for path, apis in APIS.items()}
    assert all(route.path == path for path, route in ROUTES.items())


def test_routes_without_an_api_key_are_known() -> None:
    open_to_all = {"/generative_scoring", "/tokenize", "/detokenize", "/invocations"}
    assert {path for path, route in ROUTES.items() if not route.behind_api_key} == open_to_all
    assert is_behind_api_key("/v1/embeddings") and not is_behind_api_key("/score") and not is_behind_api_key("/v1")


def test_dry_run_routes_are_known() -> None:
    dry_run = {path for path, route in ROUTES.items() if route.dry_run}
    assert dry_run == {path for path in APIS if path.endswith(("render", "count_tokens", "tokenize"))}


def test_only_sagemakers_route_has_an_adapter_header() -> None:
    headers = {path: route.adapter_header for path, route in ROUTES.items() if route.adapter_header}
    assert headers == {"/invocations": b"x-amzn-sagemaker-adapter-identifier"}


@pytest.mark.parametrize(
    ("path", "members", "api"),
    [
        ("/invocations", {"messages": b"[]", "prompt": b'""'}, "chat"),
        ("/invocations", {"prompt": b'""'}, "completions"),
        ("/invocations", {"text_1": b'""'}, "chat"),
        ("/tokenize", {"messages": b"[]", "prompt": b'""'}, "tokenize"),
        ("/tokenize", {"prompt": b'""'}, "completions"),
        ("/tokenize", {}, "tokenize"),
        ("/v1/responses", {"messages": b"[]"}, "responses"),
    ],
)
def test_the_members_of_the_body_select_among_several_protocols(path: str, members: dict[str, Any], api: str) -> None:
    assert ROUTES[path].protocol_for(members).api == api


def test_the_protocol_of_a_body_is_detected_without_a_path() -> None:
    for members, api in (
        ({"messages": b"[]"}, "chat"),
        ({"prompt": b""}, "completions"),
        ({"input": b""}, "responses"),
    ):
        protocol = detect_protocol(members)
        assert protocol is not None and protocol.api == api
    assert detect_protocol({"text_1": b'""'}) is None


def question(text: str) -> dict[str, Any]:
    content = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": "data:"}},
        "and a part that is a string",
    ]
    return {
        "model": "MoM",
        "messages": [
            {"role": "system", "content": "Client."},
            {"role": "user", "content": content},
            {"role": "developer", "content": [{"type": "text", "text": "Client."}]},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{}"}}]},
            {"role": "tool", "content": "x"},
            {"role": "user", "content": text},
        ],
        "chat_template_kwargs": {"x": 1},
        "reasoning": {"summary": "auto"},
        "output_config": {"format": {}},
    }


REQUESTS: dict[str, list[dict[str, Any]]] = {
    "chat": [question("x"), cline("x")],
    "cohere": [question("x")],
    "batch": [{**question("x"), "messages": [question("x")["messages"], question("y")["messages"]]}],
    "completions": [{"prompt": ["x", "y"]}, {"prompt": "x"}, {"prompt": [[1, 2], [3]]}],
    "responses": [codex("x"), {"input": "x", "instructions": "y", "request_id": "z"}],
    "messages": [{**claude_code("x"), "tools": []}, {**question("x"), "system": "y"}],
    "decisions": [{"state": {"x": ["y"]}, "instructions": "z"}],
    "tokens": [{"token_ids": [1, 2], "tokens": [3]}],
    "scoring": [{"query": "x", "items": ["y"]}],
    "tokenize": [question("x")],
}
# Raw JSON that replaces each value: another type, an unusual form, or half a surrogate pair.
UNUSUAL = ["null", "true", "5", "1e400", "NaN", '""', '"\\ud83d"', '"<system-reminder>"', "[]", "{}", "[null]"]
UNUSUAL += ["[[]]", '["\\udc00"]', '[{"role":"user","content":"\\ud83d"}]', '{"":"\\udc00"}', '{"\\udc00":[]}']
PLACEHOLDER = "\ue000"


def variants(value: Any) -> Iterator[Any]:
    """Yield the value with a placeholder for itself or for one of the values in it."""
    yield PLACEHOLDER
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: other} for other in variants(inner))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from ([*value[:index], other, *value[index + 1 :]] for other in variants(inner))


EDITS = [
    Edit("m", "Category prompt.", "insert", Reasoning(True, {"enable_thinking": True}, "high")),
    Edit("m", "Category prompt.", "replace", Reasoning(True, effort="none")),
]


PROTOCOLS = {protocol.api: protocol for route in ROUTES.values() for protocol in route.protocols}


def unusual_requests(api: str) -> Iterator[tuple[ApiProtocol, bytes]]:
    protocol = PROTOCOLS[api]
    for request in REQUESTS[api]:
        for variant in variants(request):
            text = json.dumps(variant)
            for value in UNUSUAL if variant != PLACEHOLDER else ():
                yield protocol, text.replace(json.dumps(PLACEHOLDER), value).encode()


@pytest.mark.parametrize("api", REQUESTS)
def test_unusual_requests_can_be_read(api: str) -> None:
    for protocol, content in unusual_requests(api):
        try:
            read = protocol.read(json_edit.object_members(content))
        except Exception as error:
            raise AssertionError(content) from error
        assert all(isinstance(text, str) for query in read for text in (query.text, *query.turns))


@pytest.mark.parametrize("api", REQUESTS)
def test_unusual_requests_can_be_edited(api: str) -> None:
    for protocol, content in unusual_requests(api):
        for edit in EDITS:
            members = json_edit.object_members(content)
            try:
                protocol.write(members, edit)
                model = json.loads(json_edit.join_members(members))["model"]
            except Exception as error:
                raise AssertionError(content) from error
            assert model == "m"


@pytest.mark.parametrize("api", PROTOCOLS)
def test_an_empty_object_can_be_read_and_written(api: str) -> None:
    assert [query.text for query in PROTOCOLS[api].read({})] == [""]
    members: dict[str, Any] = {}
    PROTOCOLS[api].write(members, Edit("m"))
    assert members == {"model": b'"m"'}


def test_every_protocol_is_tested() -> None:
    assert PROTOCOLS.keys() == REQUESTS.keys()
