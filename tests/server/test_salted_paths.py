"""Every route into vLLM's engine takes a `cache_salt` or is refused. A test fails when a release changes that."""

import inspect
import logging
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import pytest
import vllm.entrypoints
from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMValidationError

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.cache_salt import SALTED_PATHS, runs_no_prompt, write_salt
from vllm_lora_router.server.tenant_isolation import salt_for
from vllm_lora_router.server.vllm.command import VllmCommand

# Routes that run prompts without a salt. They are refused where tenants are isolated.
UNSALTED = {"/v2/embed", "/v1/audio/transcriptions", "/v1/audio/translations"}
# Two need the cohere package, one is of a later release. None of them is salted.
NOT_HERE = {"/cohere/v2/chat", "/cohere/v2/chat/render", "/v1/decisions"}
REFUSED: list[Any] = [
    "",
    "x" * 129,
    "a@b",
    "a/b",
    "a\\b",
    "a\0b",
    "\ud800",
    1,
    0,
    1.5,
    True,
    False,
    [],
    ["x"],
    {},
    {"a": "b"},
]
ACCEPTED: list[Any] = ["x", "x" * 128, "🧂" * 128, " ", "null", 'a"b', None]


@pytest.fixture(scope="module")
def routes() -> Iterator[list[BaseRoute]]:
    """All routes of vLLM: those of its modules, and those that its app adds."""
    from vllm.entrypoints.launchers.app import build_app

    collected: list[BaseRoute] = []
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("VLLM_PLUGINS", raising=False)
        environment.setenv("VLLM_SERVER_DEV_MODE", "1")
        environment.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        args, _ = VllmCommand().parse(["model", "--enable-scale-out"])
        collected += build_app(args, ("generate", "transcription", "realtime")).routes
    for module in walk_packages(vllm.entrypoints.__path__, "vllm.entrypoints."):
        if module.name.rpartition(".")[2].endswith("api_router"):
            for value in vars(import_module(module.name)).values():
                if isinstance(value, APIRouter):
                    collected += value.routes
    # SageMaker's library configures the root logger of the whole process, which other tests use.
    root.setLevel(level)
    root.handlers[:] = handlers
    yield collected


def posts(routes: list[BaseRoute]) -> dict[str, Route]:
    return {route.path: route for route in routes if isinstance(route, Route) and "POST" in (route.methods or ())}


def request_classes(annotation: Any) -> list[type[BaseModel]]:
    """Return the class of an annotation, or those of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [request_class for part in get_args(annotation) for request_class in request_classes(part)]


def bodies(routes: list[BaseRoute]) -> dict[str, list[type[BaseModel]]]:
    """Return the classes of request bodies, for each path that runs prompts."""
    from vllm.entrypoints.generate.factories import get_generate_invocation_types
    from vllm.entrypoints.pooling.factories import get_pooling_invocation_types

    by_path: dict[str, list[type[BaseModel]]] = {}
    for path, route in posts(routes).items():
        if not runs_no_prompt(path) and isinstance(route, APIRoute) and route.body_field is not None:
            by_path[path] = request_classes(route.body_field.field_info.annotation)
    by_path["/invocations"] = []
    for task in ("generate", "embed", "classify", "token_embed", "token_classify"):
        model: Any = SimpleNamespace(
            get_pooling_task=lambda tasks, task=task: task, hf_config=SimpleNamespace(num_labels=1)
        )
        for request, _ in (*get_generate_invocation_types((task,)), *get_pooling_invocation_types((task,), model)):
            by_path["/invocations"] += request_classes(request)
    return by_path


def test_every_path_that_takes_a_post_is_known(routes: list[BaseRoute]) -> None:
    paths = posts(routes).keys()
    assert {"/v1/chat/completions", "/v1/embeddings", "/invocations", "/fault_tolerance/apply", "/pause"} <= paths
    unknown = {path for path in paths if path not in SALTED_PATHS and not runs_no_prompt(path)} - UNSALTED
    assert not unknown, "protocols/cache_salt.py does not have these, so they are refused where tenants are isolated"
    assert paths >= UNSALTED | SALTED_PATHS
    assert not NOT_HERE & paths


def test_no_other_method_or_protocol_takes_prompts(routes: list[BaseRoute]) -> None:
    for route in routes:
        if isinstance(route, Route):
            others = set(route.methods or ()) - {"POST"}
            assert others <= {"GET", "HEAD"} or (others, route.path) == ({"DELETE"}, "/adapters/{adapter_name}")
        else:
            assert isinstance(route, WebSocketRoute | Mount)
    assert {route.path for route in routes if isinstance(route, WebSocketRoute)} == {"/v1/realtime"}
    assert {route.path for route in routes if isinstance(route, Mount)} == {"/metrics"}


def test_a_salted_path_reads_nothing_but_json(routes: list[BaseRoute]) -> None:
    for path in SALTED_PATHS:
        route = posts(routes)[path]
        assert isinstance(route, APIRoute)
        assert "validate_json_request" in [
            getattr(dependency.call, "__name__", "") for dependency in route.dependant.dependencies
        ]


def test_every_salted_body_has_a_salt_and_every_refused_one_has_none(routes: list[BaseRoute]) -> None:
    by_path = bodies(routes)
    assert by_path.keys() == SALTED_PATHS | UNSALTED
    for path, classes in by_path.items():
        assert classes, path
        for request_class in classes:
            assert ("cache_salt" in request_class.model_fields) is (path in SALTED_PATHS), (path, request_class)
    cohere = Path(vllm.entrypoints.__path__[0], "cohere")
    assert not any("cache_salt" in file.read_text() for file in cohere.glob("*.py"))


USER: Any = {"role": "user", "content": "x"}
# A value for each required field.
ANYTHING: dict[str, Any] = {
    **dict.fromkeys(("model", "prompt", "input", "state", "query", "text_1", "queries"), "x"),
    **{name: ["x"] for name in ("documents", "items", "text_2")},
    **{"messages": [USER], "max_tokens": 1, "token_ids": [1], "label_token_ids": [1], "sampling_params": {}},
    **{"questions": {"q": {"type": "noul"}}, "data": "x", "data_1": "x", "data_2": "x"},
}


def read(request_class: type[BaseModel], salt: Any) -> Any:
    """Parse a body with this salt as vLLM does; some bodies it parses twice."""
    if request_class is BatchChatCompletionRequest:
        batch = request_class.model_validate({"messages": [[USER]], "cache_salt": salt})
        return batch.to_chat_completion_request([USER])  # pyright: ignore[reportAttributeAccessIssue]
    needed = {name for name, field in request_class.model_fields.items() if field.is_required()}
    needed |= {"prompt"} if request_class is CompletionRequest else set()
    request: Any = request_class.model_validate({**{name: ANYTHING[name] for name in needed}, "cache_salt": salt})
    if request_class is AnthropicMessagesRequest:
        return AnthropicServingMessages.to_chat_completion_request(request)
    return request


def is_refused(request_class: type[BaseModel], salt: Any) -> bool:
    """Return whether vLLM refuses the salt. If not, assert that vLLM uses it unchanged."""
    try:
        request = read(request_class, salt)
        msgspec.msgpack.encode(request.cache_salt)  # as it is sent to the engine
    except UnicodeEncodeError:
        return True
    except VLLMValidationError as refused:
        return refused.parameter == "cache_salt"
    except ValidationError as refused:
        return any("cache_salt" in error["loc"] for error in refused.errors())
    assert request.cache_salt == salt
    return False


@pytest.mark.parametrize("salt", [*ACCEPTED, *REFUSED], ids=lambda salt: ascii(salt)[:20])
def test_the_router_accepts_the_same_salts_as_vllm(routes: list[BaseRoute], salt: Any) -> None:
    """vLLM must refuse every salt that the router leaves unchanged, or a client could choose its salt."""
    members = {"cache_salt": json_edit.encode(salt)}
    written = write_salt(members, lambda client_salt: salt_for("acme", client_salt))
    assert written is not any(salt is refused for refused in REFUSED)
    for path, classes in bodies(routes).items():
        for request_class in classes if path in SALTED_PATHS else ():
            assert is_refused(request_class, salt) is not written, (path, request_class)
            assert not (written and is_refused(request_class, json_edit.decode(members["cache_salt"]))), (
                path,
                request_class,
            )


def test_a_salt_reaches_the_engine_with_the_prompt() -> None:
    """The request classes are tested above; these functions must pass the salt on."""
    from vllm.entrypoints.generate.generative_scoring.serving import ServingGenerativeScoring
    from vllm.entrypoints.generate.structured_decisions.serving import ServingStructuredDecisions
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.entrypoints.pooling.base.serving import PoolingBaseServing
    from vllm.renderers.online_renderer import OnlineRenderer
    from vllm.v1.core import kv_cache_utils

    for source, text in (
        (ServingGenerativeScoring, "cache_salt=request.cache_salt"),
        (ServingStructuredDecisions, "cache_salt=request.cache_salt"),
        (OnlineRenderer.preprocess_cmpl, '"cache_salt"'),
        (OnlineRenderer.preprocess_chat, '"cache_salt"'),
        (PoolingBaseServing, '"cache_salt"'),
        (OpenAIServingResponses._generate_with_builtin_tools, "cache_salt=cache_salt"),
        (kv_cache_utils.generate_block_hash_extra_keys, "request.cache_salt"),
    ):
        assert text in inspect.getsource(source)
