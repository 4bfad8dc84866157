"""Targets of an evaluation: a configuration in this process, or a running server. Both return a plan for a text."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from vllm_lora_router.classifiers.cache import Cache
from vllm_lora_router.classifiers.deadline import deadline_ms
from vllm_lora_router.classifiers.factory import Classifiers, build
from vllm_lora_router.config import LoadedConfig
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.admin_key import HEADER as ADMIN_HEADER
from vllm_lora_router.types import Plan, Query, Reason

if TYPE_CHECKING:
    import httpx

# Concurrent prompts must not time out while they wait for each other. Batches stay far below the limit at which a
# worker counts as stuck.
DEADLINE_MS = 600_000.0
BATCH_S = 1.0
TIMEOUT_S = 60.0  # of one request to a server
RETRIED: frozenset[Reason] = frozenset({"timeout", "overload"})


class TargetError(Exception):
    """A target that does not respond; the message names the reason and the remedy."""


class Target(Protocol):
    """A configuration or server to evaluate."""

    @property
    def name(self) -> str:
        """The configuration's file, or the server's URL."""
        ...

    @property
    def concurrency(self) -> int:
        """The maximum number of concurrent prompts."""
        ...

    @property
    def deadline_ms(self) -> float | None:
        """The deadline of all methods together in operation; None: unknown."""
        ...

    async def plan(self, text: str) -> Plan:
        """Return the plan for a text.

        Raises:
            TargetError: The target returns no plan.
        """
        ...


class ConfigTarget:
    """A configuration in this process, evaluated as if `router.mode` and `router.share` routed all requests."""

    def __init__(self, loaded: LoadedConfig, base: ServedBase, share_models: "ConfigTarget | None" = None) -> None:
        """Load the models, which takes seconds.

        Args:
            share_models: A target whose models are reused. Cached results are not shared.

        Raises:
            ClassifierError: A model is missing, or does not match its settings.
        """
        shared = None
        if share_models is not None:
            shared = dataclasses.replace(share_models.classifiers, cache=Cache())
        without_deadline = _without_deadline(loaded)
        self.name = str(loaded.file)
        self.classifiers: Classifiers = build(without_deadline, shared, base.served_name)
        self.deadline_ms: float | None = deadline_ms(loaded.config, self.classifiers.model_classifiers)
        for classifier in self.classifiers.model_classifiers.values():
            classifier.batcher.budget_s = BATCH_S
        self._router = Router(without_deadline, base, self.classifiers)
        # An MCP server has its own timeout, which must not change here.
        self.concurrency = 4 if self._router.uses_mcp else 64

    async def plan(self, text: str) -> Plan:
        """Return the plan for a text."""
        return await self._router.plan([Query(text, (text,))])


class ServerTarget:
    """A running server, queried at `POST /v1/router/classify`, which calls no MCP server."""

    concurrency = 8

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        admin_key: str | None = None,
        *,
        transport: "httpx.AsyncBaseTransport | None" = None,
    ) -> None:
        """Open a client session.

        Args:
            url: URL of the server such as http://localhost:8000, with or without /v1 at its end.
            api_key: vLLM's API key.
            admin_key: The router's admin key. Without it, plans do not show which results came from the cache.
            transport: Replaces the network.

        Raises:
            TargetError: The URL is invalid.
        """
        import httpx

        self.name = url.rstrip("/").removesuffix("/v1")
        self.deadline_ms: float | None = None
        self.categories: tuple[str, ...] = ()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        if admin_key:
            headers[ADMIN_HEADER] = admin_key
        try:
            self._http = httpx.AsyncClient(base_url=self.name, headers=headers, timeout=TIMEOUT_S, transport=transport)
        except httpx.InvalidURL as error:
            raise TargetError(f"{url!r} is not a URL ({error}); write it as http://localhost:8000") from None

    async def __aenter__(self) -> "ServerTarget":
        """Read the server's configuration.

        Raises:
            TargetError: No router responds.
        """
        response = await self._request("GET", "/v1/router/config")
        try:
            self.categories = tuple(response["categories"])
            self.deadline_ms = float(response["deadline_ms"])
        except (KeyError, TypeError, ValueError):
            raise TargetError(f"{self.name}/v1/router/config: the response is not in this router's format") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def plan(self, text: str) -> Plan:
        """Return the plan for a text.

        Raises:
            TargetError: The request fails, or the server runs another version.
        """
        response = await self._request("POST", "/v1/router/classify", {"text": text})
        try:
            return msgspec.convert(response, Plan)
        except msgspec.ValidationError as error:
            raise TargetError(
                f"{self.name}/v1/router/classify: the response is not a plan of this version ({error}); run evaluate "
                "with the version that the server runs"
            ) from None

    async def _request(self, method: str, path: str, content: Any = None) -> Any:
        import httpx

        try:
            response = await self._http.request(method, path, json=content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise TargetError(
                f"{self.name}: the request failed ({reason}); check that the server runs and the URL is right"
            ) from None
        if ADMIN_HEADER in self._http.headers and response.status_code in (403, 429):
            raise TargetError(f"{self.name}: the admin key is refused: {response.text[:200]}; check --admin-key-env")
        if response.status_code in (401, 403):
            raise TargetError(
                f"{self.name}: requires an API key (status {response.status_code}); name the environment variable that "
                "holds it with --api-key-env"
            )
        if response.status_code == 404:
            raise TargetError(f"{self.name}: has no {path}; check that the server runs this router")
        if not response.is_success:
            raise TargetError(f"{self.name}{path}: status {response.status_code}: {response.text[:200]}")
        try:
            return response.json()
        except ValueError:
            raise TargetError(f"{self.name}{path}: the response is not JSON") from None


async def plan_all(target: Target, texts: Sequence[str], on_plan: Callable[[], None] = lambda: None) -> list[Plan]:
    """Return a plan for each text, in their order.

    Texts whose methods timed out or were overloaded because of the concurrent load are planned again, one at a time.

    Args:
        on_plan: Called after each plan.

    Raises:
        TargetError: The target returns no plan for a text.
    """
    slots = asyncio.Semaphore(target.concurrency)

    async def plan_one(text: str) -> Plan:
        async with slots:
            plan = await target.plan(text)
        on_plan()
        return plan

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(plan_one(text)) for text in texts]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    plans = [task.result() for task in tasks]
    for place, plan in enumerate(plans):
        if any(step.failure in RETRIED for step in plan.steps):
            plans[place] = await target.plan(texts[place])
    return plans


def _without_deadline(loaded: LoadedConfig) -> LoadedConfig:
    settings = loaded.config.router.model_copy(update={"mode": "route", "share": 1.0, "deadline_ms": DEADLINE_MS})
    return dataclasses.replace(loaded, config=loaded.config.model_copy(update={"router": settings}))
