"""What we touch of vLLM: each of these fails when a release moves it."""

import inspect
import logging
from collections.abc import Iterator
from importlib.metadata import entry_points

import pytest
import vllm
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

from vllm_lora_router.protocols.routes import GUARDED, ROUTES
from vllm_lora_router.server.vllm.engine import VllmCommand
from vllm_lora_router.server.vllm.plugin import LoraRouterPlugin
from vllm_lora_router.server.vllm.releases import TESTED


def test_this_release_is_one_that_we_say_we_tested() -> None:
    assert vllm.__version__.partition("+")[0] in TESTED


def test_our_plugin_is_one_to_vllm() -> None:
    (entry,) = entry_points(group="vllm.endpoint_plugins", name="lora_router")
    assert entry.load() is LoraRouterPlugin
    assert isinstance(LoraRouterPlugin(), EndpointPlugin)
    for hook, parameters in {
        "attach_router": ["self", "app"],
        "init_state": ["self", "engine_client", "state", "args"],
    }.items():
        assert list(inspect.signature(getattr(EndpointPlugin, hook)).parameters) == parameters


def test_the_registry_of_adapters_is_where_we_look() -> None:
    source = inspect.getsource(OpenAIServingModels.__init__)
    assert "self.lora_requests" in source and "self.base_model_paths" in source


async def test_the_engine_is_asked_for_adapters_as_we_ask_it() -> None:
    """`VllmEngine` over vLLM's own client class: names and parameters, not what they do."""
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    for call, parameters in {
        "add_lora": ["self", "lora_request"],
        "remove_lora": ["self", "lora_id"],
        "list_loras": ["self"],
    }.items():
        assert list(inspect.signature(getattr(AsyncLLM, call)).parameters) == parameters
    request = LoRARequest("name", 2**20, "/path")
    assert (request.lora_name, request.lora_int_id, request.lora_path) == ("name", 2**20, "/path")
    assert hasattr(request, "is_3d_lora_weight")


def test_what_the_engine_was_started_with_is_where_we_look() -> None:
    from vllm.config import LoRAConfig, ParallelConfig

    lora = LoRAConfig(max_loras=2, max_lora_rank=16)
    assert (lora.max_loras, lora.max_cpu_loras, lora.max_lora_rank) == (2, 2, 16)
    parallel = ParallelConfig()
    assert (parallel.data_parallel_size, parallel.data_parallel_size_local, parallel.nnodes) == (1, 1, 1)


def test_the_command_line_tells_what_the_user_set() -> None:
    command = VllmCommand()
    args, given = command.parse(["model", "--max-loras", "1"])
    assert given == {"enable_lora": None, "max_loras": 1, "max_cpu_loras": None, "max_lora_rank": None}
    assert args.model_tag == "model" and args.max_lora_rank == 16 and args.max_loras == 1
    command.add(args, ["--enable-lora", "--max-cpu-loras", "3", "--lora-modules", '{"name": "a", "path": "/a=b,c"}'])
    assert args.enable_lora is True and args.max_cpu_loras == 3 and args.max_loras == 1
    assert [(module.name, module.path) for module in args.lora_modules] == [("a", "/a=b,c")]


# vLLM reads these bodies itself, by a header or as forms, and its schema says nothing of them.
WITHOUT_SCHEMA = {"/invocations"}


def posts_with_a_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The paths of vLLM's whole app to which JSON with a `model` is posted."""
    from vllm.entrypoints.launchers.app import build_app

    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    args, _ = VllmCommand().parse(["model", "--enable-scale-out"])
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    schema = build_app(args, ("generate",)).openapi()
    # SageMaker's library sets up the root logger for the whole process, other tests among it.
    root.setLevel(level)
    root.handlers[:] = handlers

    def has_model(part: dict, *seen: str) -> bool:
        if (name := part.get("$ref", "").rpartition("/")[2]) and name not in seen:
            return has_model(schema["components"]["schemas"][name], *seen, name)
        inner = [one for key in ("anyOf", "oneOf", "allOf") for one in part.get(key, ())]
        return "model" in part.get("properties", {}) or any(has_model(one, *seen) for one in inner)

    for path, methods in schema["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        if has_model(content.get("application/json", {}).get("schema", {})):
            yield path


def test_every_route_with_a_model_stands_in_our_table(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set(posts_with_a_model(monkeypatch))
    assert "/v1/chat/completions" in found and "/v1/messages/render" in found
    assert found <= ROUTES.keys(), "requests/table.py does not know these"
    # Of what the table has beyond them, some came or went with a release, and one needs a library of its own.
    later = {"/v1/decisions", "/cohere/v2/chat", "/cohere/v2/chat/render"}
    assert ROUTES.keys() - found == WITHOUT_SCHEMA | later


def test_what_the_api_key_guards_is_what_we_think() -> None:
    from vllm.entrypoints.serve.middleware.authenticate import GUARDED_PREFIX

    assert {prefix.rstrip("/") for prefix in GUARDED} == set(GUARDED_PREFIX)
