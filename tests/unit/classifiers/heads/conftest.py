"""Random embeddings: each category is a point on a sphere, and its texts are close to that point."""

from collections.abc import Callable

import numpy as np
import pytest

from vllm_lora_router.classifiers.heads.kernel_ridge import LabelledEmbeddings

Around = Callable[..., np.ndarray]
DIMENSIONS = 16


@pytest.fixture
def around() -> Around:
    """Return unit vectors close to the point of a category. The same seed gives the same vectors."""

    def vectors(category: int, count: int, seed: int = 0, spread: float = 0.15) -> np.ndarray:
        center = np.random.default_rng(category).normal(size=DIMENSIONS)
        noise = np.random.default_rng([seed, category]).normal(size=(count, DIMENSIONS))
        points = center / np.linalg.norm(center) + spread * noise
        return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)

    return vectors


@pytest.fixture
def three(around: Around) -> LabelledEmbeddings:
    """Three categories with eight examples for each intent. The second category has two intents."""
    vectors = np.concatenate([around(place, 8) for place in range(4)])
    names, categories = ("a", "b one", "b two", "c"), ("a", "b", "b", "c")
    return LabelledEmbeddings(vectors, np.repeat(np.arange(4), 8), names, categories)
