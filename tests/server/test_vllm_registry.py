"""vLLM's own routes that load and unload adapters, and versions of the router in the same registry."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest

from vllm_lora_router.adapters.runtime.version_log import FIRST_ID, AdapterContent, Version
from vllm_lora_router.adapters.runtime.vllm_names import VllmNames
from vllm_lora_router.server.vllm.engine import VllmEngine


class EngineClient:
    """The part of the engine's client that the registry uses."""

    model_config = SimpleNamespace(max_model_len=2048)
    renderer = input_processor = None

    async def add_lora(self, request: Any) -> bool:
        return True


@pytest.fixture
def models() -> OpenAIServingModels:
    client: Any = EngineClient()
    return OpenAIServingModels(client, [BaseModelPath("base", "base")])


VERSION = Version(FIRST_ID, "medical", None, "medical", AdapterContent("0" * 64, "/snapshots/0", "", 8, 1))


async def test_version_that_vllm_has_unloaded_is_registered_again(models: OpenAIServingModels) -> None:
    engine = VllmEngine(models.engine_client, models)
    names = VllmNames(engine)
    assert names.public_name(VERSION) == "medical"
    registered = models.lora_requests["medical"]
    assert "Success" in str(await models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name="medical")))
    assert engine.registration("medical") is None and not names.is_overwritten(VERSION)
    assert names.public_name(VERSION) == "medical" and models.lora_requests["medical"] == registered


async def test_files_that_vllm_has_loaded_under_the_name_of_a_version_are_noticed(models: OpenAIServingModels) -> None:
    engine = VllmEngine(models.engine_client, models)
    names = VllmNames(engine)
    names.public_name(VERSION)
    request = LoadLoRAAdapterRequest(lora_name="medical", lora_path="/elsewhere", load_inplace=True)
    assert "Success" in str(await models.load_lora_adapter(request))
    # vLLM keeps the id, so the engine has the weights of these files for the version.
    assert engine.registration("medical") == (FIRST_ID, "/elsewhere") and names.is_overwritten(VERSION)
    names.public_name(VERSION)
    assert engine.registration("medical") == (FIRST_ID, "/snapshots/0") and not names.is_overwritten(VERSION)


async def test_adapter_that_vllm_has_loaded_after_it_unloaded_a_version_has_another_id(
    models: OpenAIServingModels,
) -> None:
    engine = VllmEngine(models.engine_client, models)
    names = VllmNames(engine)
    names.public_name(VERSION)
    await models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name="medical"))
    await models.load_lora_adapter(LoadLoRAAdapterRequest(lora_name="medical", lora_path="/elsewhere"))
    assert engine.registration("medical") == (1, "/elsewhere") and not names.is_overwritten(VERSION)
    names.public_name(VERSION)
    assert engine.registration("medical") == (FIRST_ID, "/snapshots/0")
