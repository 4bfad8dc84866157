"""The classifier that calls an MCP tool."""

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_lora_router.classifiers import UnavailableError
from vllm_lora_router.classifiers.mcp.answer_cache import AnswerCache
from vllm_lora_router.classifiers.mcp.answers import Answer, CachePolicy, InvalidAnswerError, KnownNames, read_answer
from vllm_lora_router.classifiers.mcp.arguments import arguments
from vllm_lora_router.classifiers.mcp.circuit_breaker import CircuitBreaker, CircuitOpenError
from vllm_lora_router.classifiers.mcp.server import InvalidCallError, ToolCallError
from vllm_lora_router.classifiers.mcp.session import CONNECT_TIMEOUT_S, Session, ToolInfo
from vllm_lora_router.classifiers.mcp.transports import build_transport
from vllm_lora_router.classifiers.thresholds import SCORE_DIGITS
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.config.schema import Config, McpCategoryModel
from vllm_lora_router.types import Classification, Method, Overrides, Query

logger = logging.getLogger("vllm_lora_router.classifiers")

MAX_DESCRIPTION_CHARACTERS = 200  # of a category's description in the evidence


@dataclass
class McpTool:
    """The session with a tool and its state. Configurations with the same tool settings share it."""

    settings: McpCategoryModel
    session: Session
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    calls: int = 0
    # Each configuration has its own cache, because another configuration may interpret answers differently.
    answer_cache: AnswerCache = field(default_factory=AnswerCache)

    def status(self) -> dict[str, Any]:
        """Return the state as JSON for /v1/router/health."""
        info, breaker = self.session.info, self.breaker
        return {
            "server": self.session.name,
            "tool": info and info.tool.name,
            "connected": self.session.is_connected,
            "problem": self.session.failure,
            "calls": self.calls,
            "consecutive_failures": breaker.failures,
            "circuit_open_s": round(breaker.remaining_s, 1),
            "cache": {"entries": len(self.answer_cache), "hits": self.answer_cache.hits},
        }


def open_tool(loaded: LoadedConfig, before: McpTool | None) -> McpTool:
    """Return a tool after one attempt to connect. An unreachable tool does not prevent the server from starting.

    Args:
        before: The tool in effect. Its session is kept if the settings are the same.

    Raises:
        ClassifierError: The settings can never work.
    """
    settings = loaded.config.classifier.mcp_category_model
    if before is not None and before.settings == settings:
        return replace(before, answer_cache=AnswerCache())
    session = Session(build_transport(settings, loaded.file.parent), settings.tool_name)
    if session.wait(CONNECT_TIMEOUT_S) and (info := session.info) is not None:
        count = len(info.category_names)
        logger.info("mcp classifier: ready (%s: %s, %d categories)", session.name, info.tool.name, count)
    return McpTool(settings, session)


class McpClassifier:
    """Calls the tool once for each request, with the last user message, and applies the overrides that it returns."""

    method: Method = "mcp"
    reads = frozenset({"text", "client", "model"})

    def __init__(self, config: Config, tool: McpTool, served_name: str | None = None) -> None:
        settings = config.classifier.mcp_category_model
        self.tool = tool
        self.fingerprint = hashlib.sha256(repr(settings).encode()).hexdigest()
        self._threshold = settings.threshold
        self._timeout_s = settings.timeout_seconds
        self._known = KnownNames.from_config(config, served_name)
        self._with_own_prompt = frozenset(category.name for category in config.categories if category.system_prompt)

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        """Return one classification for each query. Queries that may not call tools are answered from the cache only.

        Raises:
            UnavailableError: The tool is not reachable, its answer is invalid, or the circuit breaker is open.
            TimeoutError: The tool did not answer within its timeout.
        """
        if len(queries) == 1:
            return [await self._classify_query(queries[0])]
        return list(await asyncio.gather(*map(self._classify_query, queries)))

    async def _classify_query(self, query: Query) -> Classification:
        if (cached := self.tool.answer_cache.get(query)) is not None:
            return cached
        if not query.may_call_tools:
            return self._no_category({"not_called": "tools are not called for this kind of request"})
        info = self.tool.session.info
        if not query.has_text and not (info is not None and "tenant" in info.tool.properties):
            return self._no_category({"not_called": "the request has no text"})
        return await self._call_tool(query)

    async def _call_tool(self, query: Query) -> Classification:
        breaker = self.tool.breaker
        try:
            period = breaker.acquire()
        except CircuitOpenError as circuit:
            text = (
                f"the circuit breaker is open for {circuit.remaining_s:.1f} s more after {breaker.failures} "
                "consecutive failures"
            )
            raise UnavailableError(text) from None
        self.tool.calls += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                classification, policy = await self.tool.session.call(
                    lambda info: arguments(query, info.tool), self._read
                )
        except TimeoutError:
            text = f"no answer within classifier.mcp_category_model.timeout_seconds ({self._timeout_s:g} s)"
            if self._record_failure(period, text):
                self.tool.session.reconnect()  # the tool may never answer again
            raise TimeoutError(text) from None
        except (UnavailableError, ToolCallError) as error:
            self._record_failure(period, str(error))
            raise UnavailableError(str(error)) from None
        except InvalidCallError as error:
            breaker.record_cancelled(period)
            raise UnavailableError(str(error)) from None
        except InvalidAnswerError as invalid:
            text = f"the tool's answer is invalid: {invalid}"
            self._record_failure(period, text)
            raise UnavailableError(text) from None
        except BaseException:
            breaker.record_cancelled(period)
            raise
        if breaker.record_success(period):
            logger.info("mcp: %s: answers again; the circuit breaker is closed", self.tool.session.name)
        self.tool.answer_cache.put(query, classification, policy)
        return classification

    def _read(self, info: ToolInfo, content: str | Mapping[str, Any]) -> tuple[Classification, CachePolicy | None]:
        """Return the classification in an answer and how long it may be kept. Runs on the session's thread."""
        answer, category = read_answer(content, self._known, info.category_names)
        return self._classification(answer, category, info), answer.keep

    def _record_failure(self, period: int, why: str) -> bool:
        """Record a failed call and return whether it opened the circuit breaker."""
        pause_s = self.tool.breaker.record_failure(period)
        if pause_s is not None:
            text = (
                "mcp: %s: circuit breaker open for %g s after %d consecutive failures; requests use the next method "
                "meanwhile; last failure: %s"
            )
            logger.warning(text, self.tool.session.name, pause_s, self.tool.breaker.failures, why)
        return pause_s is not None

    def _classification(self, answer: Answer, category: str, info: ToolInfo) -> Classification:
        evidence = _evidence(answer, category, info)
        if category in self._known.excluded_categories:
            return self._no_category({**evidence, "excluded": f"the methods of {category!r} do not include mcp"})
        score = round(answer.confidence, SCORE_DIGITS)
        scores = {category: score, **_other_scores(answer, category, info, score)}
        return Classification(
            category,
            score,
            scores,
            "probability",
            self._threshold,
            score >= self._threshold,
            evidence,
            thresholds=dict.fromkeys(scores, self._threshold),
            overrides=self._overrides(answer, category, info),
        )

    def _overrides(self, answer: Answer, category: str, info: ToolInfo) -> Overrides | None:
        prompt = answer.system_prompt
        if prompt is None and category not in self._with_own_prompt and info.categories is not None:
            prompt = info.categories.category_system_prompts.get(category)
        models = {requested.model: requested.score for requested in answer.models}
        overrides = Overrides(answer.model, models, answer.use_reasoning, answer.reasoning_effort, prompt)
        return None if overrides == Overrides() else overrides

    def _no_category(self, evidence: Mapping[str, object]) -> Classification:
        return Classification(None, 0.0, {}, "probability", self._threshold, False, evidence)


def _other_scores(answer: Answer, category: str, info: ToolInfo, score: float) -> dict[str, float]:
    # Probabilities that give another category a higher score contradict `class`, so they are ignored.
    probabilities = answer.probabilities
    if isinstance(probabilities, list):
        probabilities = dict(zip(info.category_names, probabilities, strict=True))
    rounded = {name: round(value, SCORE_DIGITS) for name, value in (probabilities or {}).items() if name != category}
    return rounded if all(value <= score for value in rounded.values()) else {}


def _evidence(answer: Answer, category: str, info: ToolInfo) -> dict[str, object]:
    """Return the answer for reports, with the tool's own description of the category."""
    fields = answer.model_dump(
        mode="json", by_alias=True, exclude_unset=True, exclude={"probabilities", "system_prompt"}
    )
    if answer.system_prompt is not None:
        fields["system_prompt"] = f"{len(answer.system_prompt)} characters"
    if info.categories is not None and (text := info.categories.category_descriptions.get(category)):
        fields["description"] = text[:MAX_DESCRIPTION_CHARACTERS]
    return {"tool": info.tool.name, **fields, "class": category}
