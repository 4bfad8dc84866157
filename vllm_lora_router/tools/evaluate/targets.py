"""What is measured: a configuration in this process, or a server at a URL. Both give a plan for a text."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from vllm_lora_router.classifiers.cache import Cache
from vllm_lora_router.classifiers.deadline import deadline_ms
from vllm_lora_router.classifiers.factory import Classifiers, build
from vllm_lora_router.config import Loaded
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import Plan, Query, Reason

if TYPE_CHECKING:
    import httpx

# Prompts that wait for one another must not be late for that; a batch stays far from what counts as stuck.
PATIENCE_MS = 600_000.0
BATCH_S = 1.0
TIMEOUT_S = 60.0  # of one request to a server
HURRIED: frozenset[Reason] = frozenset({"timeout", "overload"})


class SubjectError(Exception):
    """What is to be measured does not answer; the message says why, and what to do."""


class Subject(Protocol):
    """Something that says how it would route a text."""

    name: str
    at_once: int  # prompts that it is asked together
    deadline_ms: float | None  # what its methods have in operation; None: not known

    async def plan(self, text: str) -> Plan:
        """The plan for a text.

        Raises:
            SubjectError: there is none to be had.
        """
        ...


class Configuration:
    """A configuration, with its models in this process; asked as if `router.mode` and `share` routed everybody."""

    def __init__(self, loaded: Loaded, base: ServedBase, before: "Configuration | None" = None) -> None:
        """Loads models, which takes seconds.

        Args:
            before: models are shared with it, and no answers.

        Raises:
            ClassifierError: a model is missing, or does not fit its settings.
        """
        shared = dataclasses.replace(before.classifiers, cache=Cache()) if before is not None else None
        patient = _patient(loaded)
        self.name = str(loaded.file)
        self.classifiers: Classifiers = build(patient, shared, base.served_name)
        self.deadline_ms: float | None = deadline_ms(loaded.config, self.classifiers.scored)
        for scored in self.classifiers.scored.values():
            scored.batcher.budget_s = BATCH_S
        self._router = Router(patient, base, self.classifiers)
        # A tool has a time of its own, which no setting of ours is to change.
        self.at_once = 4 if self._router.asks_tool else 64

    async def plan(self, text: str) -> Plan:
        return await self._router.plan([Query(text, (text,))])


class Server:
    """A running server, asked at `POST /v1/router/classify`; it calls no tool for that."""

    at_once = 8

    def __init__(
        self, url: str, api_key: str | None = None, *, transport: "httpx.AsyncBaseTransport | None" = None
    ) -> None:
        """
        Args:
            url: such as http://localhost:8000, with or without /v1 at its end.
            transport: other than by the network.

        Raises:
            SubjectError: that is no URL.
        """
        import httpx

        self.name = url.rstrip("/").removesuffix("/v1")
        self.deadline_ms: float | None = None
        self.categories: tuple[str, ...] = ()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx.AsyncClient(base_url=self.name, headers=headers, timeout=TIMEOUT_S, transport=transport)
        except httpx.InvalidURL as error:
            raise SubjectError(f"{url!r} is no URL ({error}); write http://localhost:8000") from None

    async def __aenter__(self) -> "Server":
        """Asks what is configured there.

        Raises:
            SubjectError: no router answers.
        """
        said = await self._ask("GET", "/v1/router/config")
        try:
            self.categories = tuple(category["name"] for category in said["config"]["categories"])
            self.deadline_ms = float(said["deadline_ms"])
        except (KeyError, TypeError, ValueError):
            raise SubjectError(f"{self.name}/v1/router/config: is not this router's answer") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def plan(self, text: str) -> Plan:
        said = await self._ask("POST", "/v1/router/classify", {"text": text})
        try:
            return msgspec.convert(said, Plan)
        except msgspec.ValidationError as error:
            raise SubjectError(
                f"{self.name}/v1/router/classify: its answer is no plan of this version ({error}); measure it with "
                "the version that the server runs"
            ) from None

    async def _ask(self, method: str, path: str, content: Any = None) -> Any:
        import httpx

        try:
            response = await self._http.request(method, path, json=content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = str(error) or type(error).__name__
            raise SubjectError(f"{self.name}: cannot be asked ({why}); is the server up, and its URL right?") from None
        if response.status_code in (401, 403):
            raise SubjectError(
                f"{self.name}: wants an API key (status {response.status_code}); name the environment "
                "variable that holds it with --api-key-env"
            )
        if response.status_code == 404:
            raise SubjectError(f"{self.name}: has no {path}; is it a server with this router?")
        if not response.is_success:
            raise SubjectError(f"{self.name}{path}: status {response.status_code}: {response.text[:200]}")
        try:
            return response.json()
        except ValueError:
            raise SubjectError(f"{self.name}{path}: is not answered with JSON") from None


async def plans(subject: Subject, texts: Sequence[str], told: Callable[[], None] = lambda: None) -> list[Plan]:
    """A plan a text, in their order; where a method had no time because we ask so much, it is asked again alone.

    Args:
        told: called when a text has its plan.

    Raises:
        SubjectError: a text gets none.
    """
    room = asyncio.Semaphore(subject.at_once)

    async def one(text: str) -> Plan:
        async with room:
            plan = await subject.plan(text)
        told()
        return plan

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(text)) for text in texts]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    found = [task.result() for task in tasks]
    for place, plan in enumerate(found):
        if any(step.failure in HURRIED for step in plan.steps):
            found[place] = await subject.plan(texts[place])
    return found


def _patient(loaded: Loaded) -> Loaded:
    settings = loaded.config.router.model_copy(update={"mode": "route", "share": 1.0, "deadline_ms": PATIENCE_MS})
    return dataclasses.replace(loaded, config=loaded.config.model_copy(update={"router": settings}))
