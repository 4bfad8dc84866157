"""Under which names vLLM finds the versions that may be leased."""

import secrets

from vllm_lora_router.pool.ledger import Version
from vllm_lora_router.pool.loading import Engine


class Registry:
    """vLLM answers every request whose `model` stands in its registry, whoever says it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._secret = secrets.token_hex(8)
        self._models: dict[int, str] = {}
        self._versions: dict[str, int] = {}  # what stands in the registry

    def model(self, version: Version, *, everybody: bool) -> str:
        """The `model` that a request must have to be answered by this version; only where `everybody` may say it, it
        is the version's own name."""
        model = self._models.get(version.id)
        if model is None:
            model = version.engine_name if everybody else f"{version.engine_name}#{self._secret}"
            self._models[version.id] = model
            self._register(model, version)
        return model

    def forget(self, version: Version, successor: Version | None) -> None:
        """Takes a version out that must not be answered by any more; its plain name goes to the one that took over."""
        self._models.pop(version.id, None)
        for model in [model for model, identifier in self._versions.items() if identifier == version.id]:
            if successor is not None and model == str(version.key):
                # What reaches vLLM around us, such as a form with a file, names the adapter plainly.
                self._register(model, successor)
            else:
                del self._versions[model]
                self._engine.unregister(model)

    def _register(self, model: str, version: Version) -> None:
        self._versions[model] = version.id
        self._engine.register(model, version)
