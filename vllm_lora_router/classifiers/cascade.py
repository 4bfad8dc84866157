"""The cascade: runs the methods in order until one classification is accepted or the deadline passes."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cachetools import TTLCache

from vllm_lora_router.classifiers import Classifier, ImmediateClassifier, OverloadError, UnavailableError
from vllm_lora_router.text import printable
from vllm_lora_router.types import Classification, Method, Query, Reason, Step

logger = logging.getLogger("vllm_lora_router.classifiers")

LOG_INTERVAL_S = 60.0
MAX_ERROR_CHARACTERS = 500  # of the last failure
# An MCP tool has its own timeout in addition to the deadline that all other methods share.
OWN_TIMEOUT: frozenset[Method] = frozenset({"mcp"})


@dataclass(frozen=True)
class Failure:
    """A failure of a method, for /v1/router/health."""

    reason: Reason  # error, timeout or overload
    error: str
    at: float  # Unix time


class Cascade:
    """Runs classifiers one after the other. It never raises: a failure or a timeout becomes a step with a reason."""

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        deadline_ms: float,
        failures: Counter[tuple[Method, Reason]] | None = None,
    ) -> None:
        """Create a cascade.

        Args:
            deadline_ms: Time limit for all classifiers together.
            failures: Counter to increment for each failure, for cascades that share one.
        """
        self.classifiers = tuple(classifiers)
        self.deadline_ms = deadline_ms
        self.failures: Counter[tuple[Method, Reason]] = Counter() if failures is None else failures
        self.last_failures: dict[Method, Failure] = {}
        self._classify_now: dict[Method, Callable[[Query], Classification | None]] = {
            classifier.method: classifier.classify_now
            for classifier in self.classifiers
            if isinstance(classifier, ImmediateClassifier)
        }
        self._logged: TTLCache[Method, bool] = TTLCache(maxsize=16, ttl=LOG_INTERVAL_S)

    def without(self, method: Method) -> "Cascade":
        """Return a cascade without one method. Both cascades count failures together."""
        others = [classifier for classifier in self.classifiers if classifier.method != method]
        cascade = Cascade(others, self.deadline_ms, self.failures)
        cascade.last_failures = self.last_failures
        return cascade

    async def classify(self, query: Query, deadline: float | None = None) -> tuple[Step, ...]:
        """Return the steps that were run. At most the last step has an accepted classification.

        Args:
            deadline: Time of the event loop's clock; None: `deadline_ms` from now.
        """
        steps: list[Step] = []
        now = asyncio.get_running_loop().time
        if deadline is None:
            deadline = now() + self.deadline_ms / 1000
        for classifier in self.classifiers:
            if classifier.method in OWN_TIMEOUT:
                began = now()
                step = await self._step(classifier, query, None)
                deadline += now() - began
            else:
                step = await self._step(classifier, query, deadline)
            steps.append(step)
            if step.classification is not None and step.classification.accepted:
                break
        return tuple(steps)

    async def _step(self, classifier: Classifier, query: Query, deadline: float | None) -> Step:
        began = time.perf_counter()
        failure: Reason
        try:
            # Most queries are answered without waiting and need no timeout.
            classify_now = self._classify_now.get(classifier.method)
            classification = None if classify_now is None else classify_now(query)
            if classification is None:
                async with asyncio.timeout_at(deadline):
                    (classification,) = await classifier.classify([query])
            return Step(classifier.method, _ms_since(began), classification)
        except TimeoutError as timeout:
            failure = "timeout"
            error = str(timeout) or f"no answer within router.deadline_ms ({self.deadline_ms:g} ms)"
        except OverloadError as overload:
            failure, error = "overload", str(overload)
        except UnavailableError as unavailable:
            failure, error = "error", str(unavailable)
            self._log(classifier.method, error)
        except Exception as exception:
            failure, error = "error", f"{type(exception).__name__}: {exception}"
            self._log(classifier.method, error, exception)
        self.failures[classifier.method, failure] += 1
        self.last_failures[classifier.method] = Failure(failure, printable(error[:MAX_ERROR_CHARACTERS]), time.time())
        return Step(classifier.method, _ms_since(began), failure=failure, error=error)

    def _log(self, method: Method, error: str, exception: Exception | None = None) -> None:
        """Log a failure at most once a minute, because a broken model fails for every request."""
        if method not in self._logged:
            self._logged[method] = True
            count = self.failures[method, "error"] + 1
            text = "%s classifier: failed (%d times so far): %s; affected requests use the next method"
            logger.error(text, method, count, error, exc_info=exception)


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
