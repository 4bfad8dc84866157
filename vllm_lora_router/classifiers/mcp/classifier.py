"""The classifier that asks a tool."""

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_lora_router.classifiers import Unavailable
from vllm_lora_router.classifiers.mcp.answer_cache import Kept
from vllm_lora_router.classifiers.mcp.answers import Answer, BadAnswer, Known, read_answer
from vllm_lora_router.classifiers.mcp.circuit_breaker import Breaker, Open
from vllm_lora_router.classifiers.mcp.server import Refused
from vllm_lora_router.classifiers.mcp.session import CONNECT_S, Found, Session
from vllm_lora_router.classifiers.mcp.transports import transport_of
from vllm_lora_router.classifiers.thresholds import DIGITS
from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.config.schema import Config, McpCategoryModel
from vllm_lora_router.types import Classification, Method, Overrides, Query

logger = logging.getLogger("vllm_lora_router.classifiers")

MOST_TEXT = 65_536  # characters that a tool is sent of a message: half from its beginning, half from its end


@dataclass
class Tool:
    """What outlives a configuration that leaves the tool as it is: the session with it, and how it did."""

    settings: McpCategoryModel
    session: Session
    breaker: Breaker = field(default_factory=Breaker)
    calls: int = 0
    kept: Kept = field(default_factory=Kept)  # under the configuration in force: another may read answers otherwise

    def status(self) -> dict[str, Any]:
        """What can be said of it, for JSON."""
        found, breaker = self.session.found, self.breaker
        return {
            "server": self.session.name,
            "tool": found and found.tool.name,
            "connected": self.session.is_connected,
            "problem": self.session.failure,
            "calls": self.calls,
            "failures_in_a_row": breaker.failures,
            "left_alone_s": round(breaker.left_s, 1),
            "kept": {"entries": len(self.kept), "hits": self.kept.hits},
        }


def open_tool(loaded: Loaded, before: Tool | None) -> Tool:
    """A tool with its session, tried once: a tool that is away is no reason not to serve.

    Args:
        before: the one in force, which is kept where the settings are the same.

    Raises:
        ClassifierError: the settings can never lead to a tool.
    """
    settings = loaded.config.classifier.mcp_category_model
    if before is not None and before.settings == settings:
        return replace(before, kept=Kept())
    session = Session(transport_of(settings, loaded.file.parent), settings.tool_name)
    if session.wait(CONNECT_S) and (found := session.found) is not None:
        logger.info("mcp classifier ready (%s: %s, %d categories)", session.name, found.tool.name, len(found.listed))
    return Tool(settings, session)


class ToolClassifier:
    """Asks the tool about what is said now, once a request, and obeys what it wishes."""

    method: Method = "mcp"
    reads = frozenset({"text", "client", "model"})

    def __init__(self, config: Config, tool: Tool, served_name: str | None = None) -> None:
        settings = config.classifier.mcp_category_model
        self.tool = tool
        self.fingerprint = hashlib.sha256(repr(settings).encode()).hexdigest()
        self._threshold = settings.threshold
        self._timeout_s = settings.timeout_seconds
        self._known = Known.of(config, served_name)
        self._prompted = frozenset(category.name for category in config.categories if category.system_prompt)

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        """One classification a query; a query that may not call is answered by what is known.

        Raises:
            Unavailable: the tool cannot be reached, answers what it must not, or is left alone for a while.
            TimeoutError: it does not answer in its time.
        """
        if len(queries) == 1:
            return [await self._one(queries[0])]
        return list(await asyncio.gather(*map(self._one, queries)))

    async def _one(self, query: Query) -> Classification:
        if (kept := self.tool.kept.get(query)) is not None:
            return kept
        if not query.may_call_tools:
            return self._unsure({"not_asked": "no tool is called for such a request"})
        found = self.tool.session.found
        if not query.has_text and not (found is not None and "tenant" in found.tool.properties):
            return self._unsure({"not_asked": "there are no words in it"})
        return await self._ask(query)

    async def _ask(self, query: Query) -> Classification:
        breaker = self.tool.breaker
        try:
            breaker.enter()
        except Open as is_open:
            text = f"the tool is left alone for {is_open.left_s:.1f} s more after {breaker.failures} failures in a row"
            raise Unavailable(text) from None
        self.tool.calls += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                found, said = await self.tool.session.call(lambda found: arguments(query, found))
            answer, category = read_answer(said, self._known, found.listed)
        except TimeoutError:
            text = f"no answer within classifier.mcp_category_model.timeout_seconds ({self._timeout_s:g} s)"
            if self._failed(text):
                self.tool.session.renew()  # it may hang for good
            raise TimeoutError(text) from None
        except (Unavailable, Refused) as error:
            self._failed(str(error))
            raise Unavailable(str(error)) from None
        except BadAnswer as bad:
            text = f"the tool's answer cannot be used: {bad}"
            self._failed(text)
            raise Unavailable(text) from None
        except BaseException:
            breaker.gave_up()
            raise
        if breaker.succeeded():
            logger.info("mcp: %s answers again", self.tool.session.name)
        classification = self._classification(answer, category, found)
        self.tool.kept.put(query, classification, answer.keep)
        return classification

    def _failed(self, why: str) -> bool:
        """Whether the tool is left alone now."""
        pause_s = self.tool.breaker.failed()
        if pause_s is not None:
            text = "mcp: %s is left alone for %g s, %d failures in a row, the last: %s"
            logger.warning(text, self.tool.session.name, pause_s, self.tool.breaker.failures, why)
        return pause_s is not None

    def _classification(self, answer: Answer, category: str, found: Found) -> Classification:
        evidence = _evidence(answer, category, found)
        if category in self._known.not_by_tool:
            return self._unsure({**evidence, "not_by": f"the methods of {category!r} leave mcp out"})
        score = round(answer.confidence, DIGITS)
        scores = {category: score, **_others(answer, category, found, score)}
        return Classification(
            category,
            score,
            scores,
            "probability",
            self._threshold,
            score >= self._threshold,
            evidence,
            thresholds=dict.fromkeys(scores, self._threshold),
            overrides=self._wish(answer, category, found),
        )

    def _wish(self, answer: Answer, category: str, found: Found) -> Overrides | None:
        prompt = answer.system_prompt
        if prompt is None and category not in self._prompted and found.categories is not None:
            prompt = found.categories.category_system_prompts.get(category)
        models = {one.model: one.score for one in answer.models}
        wish = Overrides(answer.model, models, answer.use_reasoning, answer.reasoning_effort, prompt)
        return None if wish == Overrides() else wish

    def _unsure(self, evidence: Mapping[str, object]) -> Classification:
        return Classification(None, 0.0, {}, "probability", self._threshold, False, evidence)


def arguments(query: Query, found: Found) -> dict[str, Any]:
    """What the tool is told: what its schema has room for, of what is known."""
    text = query.text
    if len(text) > MOST_TEXT:
        text = text[: MOST_TEXT // 2] + text[-MOST_TEXT // 2 :]
    client = query.client
    known: dict[str, Any] = {
        # Half of an emoji, which a client can send, is no text to any JSON writer.
        "text": text.encode("utf-8", "replace").decode(),
        "with_probabilities": True,
        "tenant": client.tenant,
        "user": client.user,
        "headers": dict(client.headers),
        "model": query.model,
    }
    properties = found.tool.properties or {"text": {}, "with_probabilities": {}}
    taken = {name: value for name, value in known.items() if name in properties and value is not None}
    # A tool that insists on what is not known is told that it is empty.
    return {**{name: "" for name in found.tool.required if name in known}, **taken}


def _others(answer: Answer, category: str, found: Found, score: float) -> dict[str, float]:
    # A tool that gives another category more than the one it names contradicts itself: then the name counts.
    said = answer.probabilities
    if isinstance(said, list):
        said = dict(zip(found.listed, said, strict=True))
    rounded = {name: round(value, DIGITS) for name, value in (said or {}).items() if name != category}
    return rounded if all(value <= score for value in rounded.values()) else {}


def _evidence(answer: Answer, category: str, found: Found) -> dict[str, object]:
    said = answer.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"probabilities", "system_prompt"})
    if answer.system_prompt is not None:
        said["system_prompt"] = f"{len(answer.system_prompt)} characters"
    return {"tool": found.tool.name, **said, "class": category}
