"""How long all methods together may take, where the configuration does not say."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vllm_lora_router.config.schema import Config
from vllm_lora_router.types import Method

if TYPE_CHECKING:
    from vllm_lora_router.classifiers.model_classifier import ScoredClassifier

logger = logging.getLogger("vllm_lora_router.classifiers")

LEAST_MS = 50.0
# A slow CPU gets more: beside a busy engine a question takes up to three times what it takes alone, and it may have to
# wait for the one before.
TIMES_ALONE = 4
MOST_MS = 1000.0  # a client that waits longer for its adapter is served worse than by the base


def deadline_ms(config: Config, scored: "Mapping[Method, ScoredClassifier]") -> float:
    """What the configuration says, else by what a short question takes the models on this machine."""
    if config.router.deadline_ms is not None:
        return config.router.deadline_ms
    return min(max(LEAST_MS, _alone_ms(scored) * TIMES_ALONE), MOST_MS)


def tell(config: Config, scored: "Mapping[Method, ScoredClassifier]", within_ms: float) -> None:
    """Logs a deadline that was chosen, and which models it is too short for."""
    if config.router.deadline_ms is None and within_ms > LEAST_MS:
        alone_ms = _alone_ms(scored)
        text = (
            "router.deadline_ms is not set: methods have %.0f ms together, since a short question takes their models "
            "%.0f ms here; a GPU, runtime: onnx or a smaller model takes less"
        )
        logger.log(logging.WARNING if alone_ms > LEAST_MS else logging.INFO, text, within_ms, alone_ms)
    for method, classifier in scored.items():
        if (took_ms := classifier.lone_s * 1000) > within_ms:
            text = (
                "the %s classifier takes %.0f ms for one short question here, router.deadline_ms is %g: hardly any "
                "request will be routed by it; raise the deadline, use a GPU or a smaller model"
            )
            logger.warning(text, method, took_ms, within_ms)


def _alone_ms(scored: "Mapping[Method, ScoredClassifier]") -> float:
    return 1000 * sum(classifier.lone_s for classifier in scored.values())
