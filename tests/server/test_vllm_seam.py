"""What we touch of vLLM: each of these fails when a release moves it."""

import inspect
from importlib.metadata import entry_points

import vllm
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

from vllm_lora_router.releases import TESTED
from vllm_lora_router.server.engine import VllmCommand
from vllm_lora_router.server.plugin import LoraRouterPlugin


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
