"""vLLM's routes: what each takes, who may use it, and that nothing a client sends there is too strange to be read."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import Shape
from vllm_lora_router.protocols.routes import ROUTES, is_guarded, shape_of
from vllm_lora_router.types import Edit, Reasoning

from ..conftest import claude_code, cline, codex

SHAPES: dict[str, str | list[str]] = {
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


def test_every_route_has_its_shape() -> None:
    shapes = {path: [shape.api for shape in route.shapes] for path, route in ROUTES.items()}
    assert shapes == {path: [apis] if isinstance(apis, str) else apis for path, apis in SHAPES.items()}
    assert all(route.path == path for path, route in ROUTES.items())


def test_what_lies_outside_the_api_key_is_known() -> None:
    open_to_all = {"/generative_scoring", "/tokenize", "/detokenize", "/invocations"}
    assert {path for path, route in ROUTES.items() if not route.guarded} == open_to_all
    assert is_guarded("/v1/embeddings") and not is_guarded("/score") and not is_guarded("/v1")


def test_what_only_renders_is_known() -> None:
    dry = {path for path, route in ROUTES.items() if route.dry}
    assert dry == {path for path in SHAPES if path.endswith(("render", "count_tokens", "tokenize"))}


def test_a_header_names_the_adapter_on_sagemakers_route_alone() -> None:
    headers = {path: route.header for path, route in ROUTES.items() if route.header}
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
def test_a_route_with_several_shapes_is_told_by_the_bodys_members(path: str, members: dict[str, Any], api: str) -> None:
    assert ROUTES[path].shape_of(members).api == api


def test_a_body_without_a_path_tells_its_own_shape() -> None:
    for members, api in (
        ({"messages": b"[]"}, "chat"),
        ({"prompt": b""}, "completions"),
        ({"input": b""}, "responses"),
    ):
        shape = shape_of(members)
        assert shape is not None and shape.api == api
    assert shape_of({"text_1": b'""'}) is None


def question(said: str) -> dict[str, Any]:
    content = [
        {"type": "text", "text": said},
        {"type": "image_url", "image_url": {"url": "data:"}},
        "and a part that is a string",
    ]
    return {
        "model": "MoM",
        "messages": [
            {"role": "system", "content": "Own."},
            {"role": "user", "content": content},
            {"role": "developer", "content": [{"type": "text", "text": "Own."}]},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{}"}}]},
            {"role": "tool", "content": "x"},
            {"role": "user", "content": said},
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
# Raw, in the place of every value: of another type, of a strange form, or half a character.
STRANGE = ["null", "true", "5", "1e400", "NaN", '""', '"\\ud83d"', '"<system-reminder>"', "[]", "{}", "[null]"]
STRANGE += ["[[]]", '["\\udc00"]', '[{"role":"user","content":"\\ud83d"}]', '{"":"\\udc00"}', '{"\\udc00":[]}']
PLACE = "\ue000"


def strange(value: Any) -> Iterator[Any]:
    """The value with a placeholder in the place of itself or of one of the values in it."""
    yield PLACE
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: other} for other in strange(inner))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from ([*value[:index], other, *value[index + 1 :]] for other in strange(inner))


EDITS = [
    Edit("m", "Ours.", "insert", Reasoning(True, {"enable_thinking": True}, "high")),
    Edit("m", "Ours.", "replace", Reasoning(True, effort="none")),
]


EVERY = {shape.api: shape for route in ROUTES.values() for shape in route.shapes}


def strange_requests(api: str) -> Iterator[tuple[Shape, bytes]]:
    shape = EVERY[api]
    for request in REQUESTS[api]:
        for one in strange(request):
            text = json.dumps(one)
            for value in STRANGE if one != PLACE else ():
                yield shape, text.replace(json.dumps(PLACE), value).encode()


@pytest.mark.parametrize("api", REQUESTS)
def test_nothing_that_a_client_sends_is_too_strange_to_be_read(api: str) -> None:
    for shape, content in strange_requests(api):
        try:
            read = shape.read(json_edit.fields(content))
        except Exception as error:
            raise AssertionError(content) from error
        assert all(isinstance(text, str) for query in read for text in (query.text, *query.turns))


@pytest.mark.parametrize("api", REQUESTS)
def test_nothing_that_a_client_sends_is_too_strange_to_be_edited(api: str) -> None:
    for shape, content in strange_requests(api):
        for edit in EDITS:
            members = json_edit.fields(content)
            try:
                shape.write(members, edit)
                model = json.loads(json_edit.join(members))["model"]
            except Exception as error:
                raise AssertionError(content) from error
            assert model == "m"


@pytest.mark.parametrize("api", EVERY)
def test_an_empty_object_can_be_read_and_written(api: str) -> None:
    assert [query.text for query in EVERY[api].read({})] == [""]
    members: dict[str, Any] = {}
    EVERY[api].write(members, Edit("m"))
    assert members == {"model": b'"m"'}


def test_every_shape_is_tried_here() -> None:
    assert EVERY.keys() == REQUESTS.keys()
