"""The parts of vLLM that this package uses. A test fails when a release of vLLM changes one."""

import inspect
import logging
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest
import vllm
from openapi_spec_validator import OpenAPIV31SpecValidator
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

from vllm_lora_router.protocols.routes import API_KEY_PREFIXES, ROUTES
from vllm_lora_router.server.vllm import TESTED_RELEASES
from vllm_lora_router.server.vllm.command import VllmCommand
from vllm_lora_router.server.vllm.plugin import LoraRouterPlugin

from ..unit.test_documentation import VLLM_OPTIONS


def test_installed_release_is_a_tested_release() -> None:
    assert vllm.__version__.partition("+")[0] in TESTED_RELEASES


def test_plugin_implements_vllm_endpoint_plugin() -> None:
    (entry,) = entry_points(group="vllm.endpoint_plugins", name="lora_router")
    assert entry.load() is LoraRouterPlugin
    assert isinstance(LoraRouterPlugin(), EndpointPlugin)
    for hook, parameters in {
        "attach_router": ["self", "app"],
        "init_state": ["self", "engine_client", "state", "args"],
    }.items():
        assert list(inspect.signature(getattr(EndpointPlugin, hook)).parameters) == parameters


def test_adapter_registry_has_the_attributes_that_are_used() -> None:
    source = inspect.getsource(OpenAIServingModels.__init__)
    assert "self.lora_requests" in source and "self.base_model_paths" in source


async def test_engine_client_has_the_lora_methods_that_are_used() -> None:
    """Check the names and parameters of the methods that `VllmEngine` calls, not their behavior."""
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


def test_engine_configuration_has_the_attributes_that_are_used() -> None:
    from vllm.config import LoRAConfig, ParallelConfig

    lora = LoRAConfig(max_loras=2, max_lora_rank=16)
    assert (lora.max_loras, lora.max_cpu_loras, lora.max_lora_rank) == (2, 2, 16)
    parallel = ParallelConfig()
    assert (parallel.data_parallel_size, parallel.data_parallel_size_local, parallel.nnodes) == (1, 1, 1)


def test_command_line_separates_user_flags_from_defaults() -> None:
    command = VllmCommand()
    args, user_flags = command.parse(["model", "--max-loras", "1"])
    assert user_flags == {"enable_lora": None, "max_loras": 1, "max_cpu_loras": None, "max_lora_rank": None}
    assert args.model_tag == "model" and args.max_lora_rank == 16 and args.max_loras == 1
    command.add_flags(
        args, ["--enable-lora", "--max-cpu-loras", "3", "--lora-modules", '{"name": "a", "path": "/a=b,c"}']
    )
    assert args.enable_lora is True and args.max_cpu_loras == 3 and args.max_loras == 1
    assert [(module.name, module.path) for module in args.lora_modules] == [("a", "/a=b,c")]


# vLLM reads these bodies itself, by header or as forms, so they are missing in its OpenAPI schema.
WITHOUT_SCHEMA = {"/invocations"}


def openapi_document(monkeypatch: pytest.MonkeyPatch, plugins: str) -> dict[str, Any]:
    """Return the OpenAPI document of vLLM's complete app with these endpoint plugins."""
    from vllm.entrypoints.launchers.app import build_app

    monkeypatch.setenv("VLLM_PLUGINS", plugins)
    args, _ = VllmCommand().parse(["model", "--enable-scale-out"])
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    document = build_app(args, ("generate",)).openapi()
    # SageMaker's library configures the root logger of the process, which would affect other tests.
    root.setLevel(level)
    root.handlers[:] = handlers
    return document


def posts_with_a_model(document: dict[str, Any]) -> Iterator[str]:
    """Yield the paths that accept JSON with a `model`."""

    def has_model(part: dict, *seen: str) -> bool:
        if (name := part.get("$ref", "").rpartition("/")[2]) and name not in seen:
            return has_model(document["components"]["schemas"][name], *seen, name)
        alternatives = [schema for key in ("anyOf", "oneOf", "allOf") for schema in part.get(key, ())]
        return "model" in part.get("properties", {}) or any(has_model(schema, *seen) for schema in alternatives)

    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        if has_model(content.get("application/json", {}).get("schema", {})):
            yield path


def test_routes_table_contains_every_vllm_route_with_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = set(posts_with_a_model(openapi_document(monkeypatch, "")))
    assert "/v1/chat/completions" in paths and "/v1/messages/render" in paths
    assert paths <= ROUTES.keys(), "protocols/routes.py does not contain these paths"
    # The table also contains paths of other releases, and one that needs an optional library.
    not_in_this_release = {"/v1/decisions", "/cohere/v2/chat", "/cohere/v2/chat/render"}
    assert ROUTES.keys() - paths == WITHOUT_SCHEMA | not_in_this_release


def test_router_adds_no_error_to_the_openapi_document_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    document, without_router = openapi_document(monkeypatch, "lora_router"), openapi_document(monkeypatch, "")
    # vLLM adds SageMaker's routes in some processes, and one of them does not declare its path parameter.
    errors, errors_of_vllm = (
        {str(error) for error in OpenAPIV31SpecValidator(each).iter_errors()} for each in (document, without_router)
    )
    assert errors == errors_of_vllm
    router_paths = document["paths"].keys() - without_router["paths"].keys()
    assert len(router_paths) == 7 and all(path.startswith("/v1/router/") for path in router_paths)
    assert document["components"]["schemas"].items() >= without_router["components"]["schemas"].items()


def test_api_key_guards_the_expected_prefixes() -> None:
    from vllm.entrypoints.serve.middleware.authenticate import GUARDED_PREFIX

    assert {prefix.rstrip("/") for prefix in API_KEY_PREFIXES} == set(GUARDED_PREFIX)


def test_flags_in_the_documentation_exist() -> None:
    parser = VllmCommand()._serve
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert VLLM_OPTIONS - flags == set()
