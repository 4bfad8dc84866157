"""Embeddings made by chance: categories are places on a sphere, and what is asked of them lies around."""

from collections.abc import Callable

import numpy as np
import pytest

from vllm_lora_router.classifiers.heads.kernel_ridge import Labelled

Around = Callable[..., np.ndarray]
DIMENSIONS = 16


@pytest.fixture
def around() -> Around:
    """Unit vectors around the place of a category; the same for the same seed."""

    def vectors(category: int, count: int, seed: int = 0, spread: float = 0.15) -> np.ndarray:
        place = np.random.default_rng(category).normal(size=DIMENSIONS)
        noise = np.random.default_rng([seed, category]).normal(size=(count, DIMENSIONS))
        found = place / np.linalg.norm(place) + spread * noise
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    return vectors


@pytest.fixture
def three(around: Around) -> Labelled:
    """Eight examples each of three categories, the second of which has two intents."""
    vectors = np.concatenate([around(place, 8) for place in range(4)])
    names, categories = ("a", "b one", "b two", "c"), ("a", "b", "b", "c")
    return Labelled(vectors, np.repeat(np.arange(4), 8), names, categories)
