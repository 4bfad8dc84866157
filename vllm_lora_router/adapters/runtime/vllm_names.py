"""Under which names vLLM finds the versions that may be leased."""

import secrets

from vllm_lora_router.adapters.runtime.loader import Engine
from vllm_lora_router.adapters.runtime.version_log import Version


class Registry:
    """vLLM answers every request whose `model` stands in its registry, whoever says it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._secret = secrets.token_hex(8)
        self._versions: dict[str, int] = {}  # what stands in the registry

    def listed(self, version: Version) -> str:
        """The `model` of requests that this version answers: its own name, which from now on everybody may say."""
        plain = str(version.key)
        if plain not in self._versions:
            # What reaches vLLM around us, such as a form with a file, names the adapter plainly.
            self._register(plain, version)
        return self._register(version.engine_name, version)

    def unlisted(self, version: Version) -> str:
        """A `model` of requests that this version answers which nobody can guess."""
        return self._register(f"{version.engine_name}#{self._secret}", version)

    def is_listed(self, version: Version) -> bool:
        return self._versions.get(version.engine_name) == version.id

    def unlist(self, version: Version) -> None:
        """From now on only who was told the name that nobody can guess gets this version."""
        for model in (version.engine_name, str(version.key)):
            if self._versions.get(model) == version.id:
                self._unregister(model)

    def forget(self, version: Version, successor: Version | None) -> None:
        """Takes a version out that must not be answered by any more; its plain name goes to the one that took over."""
        for model in [model for model, identifier in self._versions.items() if identifier == version.id]:
            if successor is not None and model == str(version.key):
                self._register(model, successor)
            else:
                self._unregister(model)

    def _register(self, model: str, version: Version) -> str:
        if self._versions.get(model) != version.id:
            self._versions[model] = version.id
            self._engine.register(model, version)
        return model

    def _unregister(self, model: str) -> None:
        del self._versions[model]
        self._engine.unregister(model)
