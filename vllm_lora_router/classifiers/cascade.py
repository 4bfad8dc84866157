"""The methods in their order: the first that is sure answers, within the deadline."""

import asyncio
import logging
import time
from collections.abc import Sequence

from vllm_lora_router.classifiers import Classifier, Overload
from vllm_lora_router.values import Query, Reason, Step

logger = logging.getLogger("vllm_lora_router.classifiers")


class Cascade:
    """Asks classifiers one after the other. It never raises: what fails or takes too long is a step that says so."""

    def __init__(self, classifiers: Sequence[Classifier], deadline_ms: float) -> None:
        self.classifiers = tuple(classifiers)
        self.deadline_ms = deadline_ms

    async def ask(self, query: Query) -> tuple[Step, ...]:
        """The steps taken; only the last one's classification can be sure."""
        steps: list[Step] = []
        deadline = asyncio.get_running_loop().time() + self.deadline_ms / 1000
        for classifier in self.classifiers:
            step = await self._step(classifier, query, deadline)
            steps.append(step)
            if step.classification is not None and step.classification.sure:
                break
        return tuple(steps)

    async def _step(self, classifier: Classifier, query: Query, deadline: float) -> Step:
        began = time.perf_counter()
        failure: Reason
        try:
            async with asyncio.timeout_at(deadline):
                (classification,) = await classifier.classify([query])
            return Step(classifier.method, _ms_since(began), classification)
        except TimeoutError:
            failure, error = "timeout", f"no answer within router.deadline_ms ({self.deadline_ms:g} ms)"
        except Overload as overload:
            failure, error = "overload", str(overload)
        except Exception as exception:
            # The class and text of an error may hold the user's words; they go into the log, not into a response.
            logger.exception("the %s classifier failed; the request takes the next candidate", classifier.method)
            failure, error = "error", f"{type(exception).__name__}: {exception}"
        return Step(classifier.method, _ms_since(began), failure=failure, error=error)


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
