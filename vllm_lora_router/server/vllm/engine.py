"""vLLM's engine and the adapter registry of its API server."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from vllm_lora_router.adapters.runtime.factory import EngineLimits
from vllm_lora_router.adapters.runtime.loader import LoadError
from vllm_lora_router.adapters.runtime.version_log import FIRST_ID, Version

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.lora.request import LoRARequest


class VllmEngine:
    """The engine, and the registry in which the API server looks up a request's `model`."""

    def __init__(self, client: "EngineClient", models: "OpenAIServingModels") -> None:
        self._client = client
        self._models = models
        self.served_names: Sequence[str] = [path.name for path in models.base_model_paths]

    @property
    def limits(self) -> EngineLimits | None:
        """The engine's LoRA limits; None without --enable-lora."""
        lora = self._client.vllm_config.lora_config
        if lora is None:
            return None
        return EngineLimits(lora.max_loras, lora.max_cpu_loras or lora.max_loras, lora.max_lora_rank)

    @property
    def is_on_one_node(self) -> bool:
        """Whether all engines read the same disks as this process."""
        parallel = self._client.vllm_config.parallel_config
        several = parallel.data_parallel_size > parallel.data_parallel_size_local or getattr(parallel, "nnodes", 1) > 1
        return not several and parallel.distributed_executor_backend != "ray"

    async def load(self, version: Version) -> None:
        """Load a version into the engine's memory.

        Raises:
            LoadError: vLLM cannot load it.
        """
        try:
            await self._client.add_lora(_request(version))
        except Exception as error:
            # The engine may hold a partly loaded adapter, and would use it after the next attempt.
            with suppress(Exception):
                await self.unload(version.id)
            raise LoadError(f"vLLM cannot load it: {error}") from error

    async def unload(self, identifier: int) -> None:
        """Remove a version from the engine's memory."""
        await self._client.remove_lora(identifier)  # pyright: ignore[reportAttributeAccessIssue]

    async def loaded(self) -> Collection[int]:
        """Return the ids of the versions in the engine's memory."""
        return await self._client.list_loras()  # pyright: ignore[reportAttributeAccessIssue]

    def register(self, key: str, version: Version) -> None:
        """Make vLLM serve requests whose `model` is `key` with this version."""
        self._models.lora_requests[key] = _request(version)

    def registration(self, key: str) -> tuple[int, str] | None:
        """Return the id and the folder of the adapter that vLLM's registry has under `key`."""
        request = self._models.lora_requests.get(key)
        return None if request is None else (request.lora_int_id, request.lora_path)

    def unregister(self, key: str) -> None:
        """Remove `key` from vLLM's registry."""
        self._models.lora_requests.pop(key, None)

    async def unload_command_line_adapters(self) -> None:
        """Unload the adapters that vLLM has loaded from --lora-modules: the router serves them as versions."""
        for key, request in list(self._models.lora_requests.items()):
            if request.lora_int_id < FIRST_ID:
                del self._models.lora_requests[key]
                await self.unload(request.lora_int_id)


def _request(version: Version) -> "LoRARequest":
    from vllm.lora.request import LoRARequest  # vLLM is imported only where it runs

    content = version.content
    request = LoRARequest(version.engine_name, version.id, content.folder)
    if content.is_3d:
        request.is_3d_lora_weight = True
    return request
