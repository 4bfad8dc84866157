"""The parts of vLLM that this package uses. A test fails when a release of vLLM changes one."""

import hashlib
import inspect
import logging
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import httpx
import pytest
import uvicorn
import vllm
from fastapi import FastAPI
from openapi_spec_validator import OpenAPIV31SpecValidator
from vllm import plugins
from vllm.entrypoints.cli.serve import run_multi_api_server
from vllm.entrypoints.launchers import launcher
from vllm.entrypoints.launchers.api_server import entry as api_server
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin
from vllm.v1.utils import APIServerProcessManager

from vllm_lora_router.protocols.routes import API_KEY_PREFIXES, ROUTES
from vllm_lora_router.server.anthropic_key import AnthropicKeyMiddleware
from vllm_lora_router.server.guard import unauthorized_response
from vllm_lora_router.server.vllm import TESTED_RELEASES
from vllm_lora_router.server.vllm.api_keys import api_keys_of
from vllm_lora_router.server.vllm.command import VllmCommand
from vllm_lora_router.server.vllm.lifecycle import STOP_S
from vllm_lora_router.server.vllm.parent_watch import load_plugin
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


def test_plugin_watches_the_parent_in_engine_and_worker_processes() -> None:
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    (entry,) = entry_points(group=plugins.DEFAULT_PLUGINS_GROUP, name="lora_router")
    assert entry.load() is load_plugin
    assert "load_general_plugins()" in inspect.getsource(EngineCore.__init__)
    assert "load_general_plugins()" in inspect.getsource(WorkerWrapperBase)


def test_api_server_shuts_down_as_the_drain_needs() -> None:
    """`ShutdownMiddleware` replaces the signal handlers in the lifespan, and stops the HTTP server after the drain."""
    serve = inspect.getsource(launcher.serve_http)
    assert "app.state.server = server" in serve and "engine_client = app.state.engine_client" in serve
    assert serve.index("loop.add_signal_handler(signal.SIGTERM") < serve.index("await server_task")
    assert issubclass(launcher.NoSignalServer, uvicorn.Server)
    assert "app.state.args = args" in inspect.getsource(build_app)
    # The engine is stopped after the HTTP server, within the time in the configuration.
    engine_client = inspect.getsource(api_server.build_async_engine_client_from_engine_args)
    assert "async_llm.shutdown(timeout=vllm_config.shutdown_timeout)" in engine_client


def test_main_process_of_several_api_servers_gives_them_the_shutdown_timeout() -> None:
    source = inspect.getsource(run_multi_api_server)
    assert "timeout = vllm_config.shutdown_timeout" in source
    assert "api_server_manager.shutdown(timeout=timeout)" in source
    assert 'name=f"ApiServer_{i}"' in inspect.getsource(APIServerProcessManager.__init__)


@pytest.mark.parametrize(
    ("flags", "timeout"), [([], 12 + STOP_S), (["--shutdown-timeout", "40"], 40 + STOP_S)], ids=["drain_s", "flag"]
)
def test_shutdown_timeout_covers_the_drain_and_the_stop(flags: list[str], timeout: int) -> None:
    command = VllmCommand()
    args, _ = command.parse(["model", *flags])
    assert command.set_shutdown_timeout(args, 11.5).startswith(f"--shutdown-timeout {timeout}: ")
    assert args.shutdown_timeout == timeout


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


def built_app(monkeypatch: pytest.MonkeyPatch, plugins: str, *flags: str) -> FastAPI:
    """Return vLLM's complete app with these endpoint plugins, without an engine."""
    monkeypatch.setenv("VLLM_PLUGINS", plugins)
    args, _ = VllmCommand().parse(["model", "--enable-scale-out", *flags])
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    app = build_app(args, ("generate",))
    # SageMaker's library configures the root logger of the process, which would affect other tests.
    root.setLevel(level)
    root.handlers[:] = handlers
    return app


def openapi_document(monkeypatch: pytest.MonkeyPatch, plugins: str) -> dict[str, Any]:
    """Return the OpenAPI document of vLLM's complete app with these endpoint plugins."""
    return built_app(monkeypatch, plugins).openapi()


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


@pytest.mark.parametrize("variable", [False, True], ids=["--api-key", "VLLM_API_KEY"])
async def test_open_paths_are_guarded_by_the_api_keys_of_vllm(monkeypatch: pytest.MonkeyPatch, variable: bool) -> None:
    accepted = ["secret"] if variable else ["secret", "schlüssel"]
    if variable:
        monkeypatch.setenv("VLLM_API_KEY", "secret")
    app = built_app(monkeypatch, "lora_router", *([] if variable else ["--api-key", *accepted]))
    api_keys = api_keys_of(app)
    assert api_keys is not None
    assert {*api_keys.digests} == {hashlib.sha256(key.encode()).digest() for key in accepted}
    for value, is_valid in (
        ("Bearer secret", True),
        ("bEARER secret", True),
        ("Bearer  secret", False),
        ("Bearer other", False),
        ("secret", False),
        ("", False),
    ):
        assert api_keys.accept({"type": "http", "headers": [(b"authorization", value.encode())]}) == is_valid
    assert not api_keys.accept({"type": "http", "headers": [(b"x-api-key", b"secret")]})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        response = await client.post("/v1/chat/completions")
    expected = unauthorized_response()
    assert (response.status_code, response.content) == (expected.status_code, expected.body)
    names = {"content-type", "content-length"}
    assert {name: response.headers[name] for name in names} == {name: expected.headers[name] for name in names}


def test_server_without_an_api_key_has_none_to_guard_with(monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_keys_of(built_app(monkeypatch, "lora_router")) is None
    assert api_keys_of(built_app(monkeypatch, "lora_router", "--api-key", "")) is None


KEY, OTHER = {"x-api-key": "secret"}, {"x-api-key": "other"}


@pytest.mark.parametrize(
    ("path", "headers", "accepted"),
    [
        ("/v1/messages", KEY, True),
        ("/v1/messages/count_tokens", KEY, True),
        ("/proxy/v1/messages", KEY, True),  # the root path
        ("/v1/messages", {**OTHER, "authorization": "Bearer secret"}, True),
        ("/v1/messages", {**KEY, "authorization": "Bearer other"}, False),
        ("/v1/messages", {**KEY, "authorization": ""}, False),
        ("/v1/messages", OTHER, False),
        ("/v1/messages", {"x-api-key": ""}, False),
        ("/v1/messages", {}, False),
        ("/v1/messages/", KEY, False),
        ("/v1/messages/render", KEY, False),
        ("/v1/chat/completions", KEY, False),
        ("/v1/router/classify", KEY, False),
    ],
)
async def test_anthropic_key_is_accepted_on_the_messages_routes_only(
    monkeypatch: pytest.MonkeyPatch, path: str, headers: dict[str, str], accepted: bool
) -> None:
    app = built_app(monkeypatch, "lora_router", "--api-key", "secret", "--root-path", "/proxy")
    # Without an engine, vLLM cannot answer a request that it has accepted.
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, root_path="/proxy")
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        response = await client.post(path, headers=headers, json={})
    assert (response.status_code != 401) == accepted


def test_anthropic_key_is_not_read_by_a_server_without_an_api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in [((), 0), (("--api-key", "secret"), 1)]:
        app = built_app(monkeypatch, "lora_router", *flags)
        assert sum(middleware.cls is AnthropicKeyMiddleware for middleware in app.user_middleware) == expected


def test_flags_in_the_documentation_exist() -> None:
    parser = VllmCommand()._serve
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert VLLM_OPTIONS - flags == set()
