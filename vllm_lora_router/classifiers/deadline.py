"""The deadline for all methods together, measured on this machine if the configuration sets none."""

import logging
from collections.abc import Mapping

from vllm_lora_router.classifiers.model_classifier import ModelClassifier
from vllm_lora_router.config.schema import Config
from vllm_lora_router.types import Method

logger = logging.getLogger("vllm_lora_router.classifiers")

MIN_DEADLINE_MS = 50.0
# A slow CPU gets a longer deadline: while the engine is busy, a text takes up to three times as long as on an idle
# machine, and it may have to wait for the text before it.
DEADLINE_FACTOR = 4
MAX_DEADLINE_MS = 1000.0  # with a longer wait for its adapter, a client is better served by the base model


def deadline_ms(config: Config, classifiers: Mapping[Method, ModelClassifier]) -> float:
    """Return `router.deadline_ms`, or a deadline from the time that the models need for one short text."""
    if config.router.deadline_ms is not None:
        return config.router.deadline_ms
    return min(max(MIN_DEADLINE_MS, _single_text_ms(classifiers) * DEADLINE_FACTOR), MAX_DEADLINE_MS)


def log_deadline(config: Config, classifiers: Mapping[Method, ModelClassifier], within_ms: float) -> None:
    """Log a deadline that was measured, and each model that is too slow for the deadline."""
    if config.router.deadline_ms is None and within_ms > MIN_DEADLINE_MS:
        single_ms = _single_text_ms(classifiers)
        text = (
            "router.deadline_ms: not set; using %.0f ms for all methods together, because their models take %.0f ms "
            "for one short text on this machine; use a GPU, runtime: onnx or a smaller model to shorten it"
        )
        level = logging.WARNING if single_ms > MIN_DEADLINE_MS else logging.INFO
        logger.log(level, text, within_ms, single_ms)
    for method, classifier in classifiers.items():
        if (took_ms := classifier.single_text_s * 1000) > within_ms:
            text = (
                "%s classifier: one short text takes %.0f ms on this machine, but router.deadline_ms is %g; this "
                "method will route almost no request; raise the deadline, or use a GPU or a smaller model"
            )
            logger.warning(text, method, took_ms, within_ms)


def _single_text_ms(classifiers: Mapping[Method, ModelClassifier]) -> float:
    return 1000 * sum(classifier.single_text_s for classifier in classifiers.values())
