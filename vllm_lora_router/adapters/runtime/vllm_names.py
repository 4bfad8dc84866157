"""Register versions in vLLM under the names that requests may use for them."""

import secrets

from vllm_lora_router.adapters.runtime.loader import Engine
from vllm_lora_router.adapters.runtime.version_log import Version


class VllmNames:
    """The names of versions in vLLM's registry.

    vLLM answers every request whose `model` is in its registry, whichever client sends it. So a version that not all
    clients may use is registered under a secret name only.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._secret = secrets.token_hex(8)
        self._versions: dict[str, int] = {}  # version id by registered name

    def public_name(self, version: Version) -> str:
        """Register the version under its own name, which all clients may use from now on, and return that name."""
        plain = str(version.key)
        if self._versions.get(plain, version.id) == version.id:
            # Requests that reach vLLM around the router, such as file uploads by form, use the adapter's plain name.
            self._register(plain, version)
        return self._register(version.engine_name, version)

    def private_name(self, version: Version) -> str:
        """Register the version under a name that no client can guess, and return that name."""
        return self._register(f"{version.engine_name}#{self._secret}", version)

    def is_public(self, version: Version) -> bool:
        """Return whether the version is registered under its own name."""
        return self._versions.get(version.engine_name) == version.id

    def is_overwritten(self, version: Version) -> bool:
        """Return whether vLLM's own route has loaded other files into the engine under the id of this version."""
        registrations = map(self._engine.registration, {version.engine_name, str(version.key)})
        return any(
            registration is not None and registration[0] == version.id and registration[1] != version.content.folder
            for registration in registrations
        )

    def withdraw_public_names(self, version: Version) -> None:
        """Unregister the names of the version that all clients can use; its private name stays registered."""
        for model in (version.engine_name, str(version.key)):
            if self._versions.get(model) == version.id:
                self._unregister(model)

    def forget(self, version: Version, successor: Version | None) -> None:
        """Unregister all names of a version. Its plain name passes to `successor` if there is one."""
        for model in [model for model, identifier in self._versions.items() if identifier == version.id]:
            if successor is not None and model == str(version.key):
                self._register(model, successor)
            else:
                self._unregister(model)

    def _register(self, model: str, version: Version) -> str:
        registration = version.id, version.content.folder
        if self._versions.get(model) != version.id or self._engine.registration(model) != registration:
            self._versions[model] = version.id
            self._engine.register(model, version)
        return model

    def _unregister(self, model: str) -> None:
        del self._versions[model]
        self._engine.unregister(model)
