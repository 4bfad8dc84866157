"""The methods in their order: the first that is sure answers, within the deadline."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from cachetools import TTLCache

from vllm_lora_router.classifiers import AtOnce, Classifier, Overload, Unavailable
from vllm_lora_router.types import Classification, Method, Query, Reason, Step

logger = logging.getLogger("vllm_lora_router.classifiers")

SAY_AGAIN_S = 60.0
# A tool has a time of its own, beside the one that all the others share.
OWN_TIME: frozenset[Method] = frozenset({"mcp"})


class Cascade:
    """Asks classifiers one after the other. It never raises: what fails or takes too long is a step that says so."""

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        deadline_ms: float,
        failures: Counter[tuple[Method, Reason]] | None = None,
    ) -> None:
        """`failures` are counted on, where others count there too."""
        self.classifiers = tuple(classifiers)
        self.deadline_ms = deadline_ms
        self.failures: Counter[tuple[Method, Reason]] = Counter() if failures is None else failures
        self._now: dict[Method, Callable[[Query], Classification | None]] = {
            one.method: one.now for one in self.classifiers if isinstance(one, AtOnce)
        }
        self._said: TTLCache[Method, bool] = TTLCache(maxsize=16, ttl=SAY_AGAIN_S)

    def without(self, method: Method) -> "Cascade":
        """The same without one method."""
        others = [classifier for classifier in self.classifiers if classifier.method != method]
        return Cascade(others, self.deadline_ms, self.failures)

    async def ask(self, query: Query) -> tuple[Step, ...]:
        """The steps taken; only the last one's classification can be sure."""
        steps: list[Step] = []
        now = asyncio.get_running_loop().time
        deadline = now() + self.deadline_ms / 1000
        for classifier in self.classifiers:
            if classifier.method in OWN_TIME:
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
            # Most can say at once: then there is nothing to limit, and nothing to wait for.
            now = self._now.get(classifier.method)
            classification = None if now is None else now(query)
            if classification is None:
                async with asyncio.timeout_at(deadline):
                    (classification,) = await classifier.classify([query])
            return Step(classifier.method, _ms_since(began), classification)
        except TimeoutError as timeout:
            failure = "timeout"
            error = str(timeout) or f"no answer within router.deadline_ms ({self.deadline_ms:g} ms)"
        except Overload as overload:
            failure, error = "overload", str(overload)
        except Unavailable as unavailable:
            failure, error = "error", str(unavailable)
            self._say(classifier.method, error)
        except Exception as exception:
            failure, error = "error", f"{type(exception).__name__}: {exception}"
            self._say(classifier.method, error, exception)
        self.failures[classifier.method, failure] += 1
        return Step(classifier.method, _ms_since(began), failure=failure, error=error)

    def _say(self, method: Method, error: str, exception: Exception | None = None) -> None:
        """Once a minute: a model that fails does so for every request."""
        if method not in self._said:
            self._said[method] = True
            failed = self.failures[method, "error"] + 1
            text = "the %s classifier failed (%d times so far): %s; such requests take the next candidate"
            logger.error(text, method, failed, error, exc_info=exception)


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
