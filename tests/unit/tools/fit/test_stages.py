"""Batches and augmentation of the training stages."""

from itertools import islice
from random import Random

import pytest

torch = pytest.importorskip("torch")

from vllm_lora_router.tools.fit.finetune import stages  # noqa: E402

COUNT, SIZE = 1500, 8
LENGTHS = [(index * 37) % 90 for index in range(COUNT)]


def one_epoch(batches: object) -> list[list[int]]:
    return [batch.tolist() for batch in islice(batches, -(-COUNT // SIZE))]  # type: ignore[call-overload]


def test_batches_by_length_contain_each_example_once_per_epoch() -> None:
    batches = stages._batches_by_length(LENGTHS, SIZE, torch.Generator().manual_seed(1))
    first, second = one_epoch(batches), one_epoch(batches)
    for epoch in (first, second):
        assert sorted(index for batch in epoch for index in batch) == list(range(COUNT))
        assert max(map(len, epoch)) == SIZE
    assert first != second

    def padded_length(epoch: list[list[int]]) -> int:
        return sum(max(LENGTHS[index] for index in batch) * len(batch) for batch in epoch)

    random = one_epoch(stages._random_batches(COUNT, SIZE, torch.Generator().manual_seed(1)))
    assert padded_length(first) < 0.7 * padded_length(random)
    lengths = [max(LENGTHS[index] for index in batch) for batch in first]
    assert lengths != sorted(lengths)


def test_texts_are_augmented_with_typos() -> None:
    text, random = "what fever is too high for a small child", Random(1)
    never, always = (stages.Recipe(0, 0, 1, 1e-4, rephrased=0, mistyped=share) for share in (0.0, 1.0))
    assert {stages._augment(text, never, random) for _ in range(50)} == {text}
    mistyped = {stages._augment(text, always, random) for _ in range(50)}
    assert len(mistyped - {text}) > 20
    assert all(abs(len(variant) - len(text)) <= 2 for variant in mistyped)
    assert stages.choose_recipe(stages.MANY_EXAMPLES).mistyped > 0


def test_states_are_in_the_order_of_the_texts() -> None:
    texts = ["x" * length for length in LENGTHS[: 2 * stages._FORWARD_BATCH_SIZE + 5]]
    batch_sizes: list[int] = []

    def model(batch: list[str]) -> tuple[None, object]:
        batch_sizes.append(len(batch))
        return None, torch.tensor([[float(len(text))] for text in batch])

    states = stages._first_token_states(model, texts)  # type: ignore[arg-type]
    assert states.flatten().tolist() == [len(text) for text in texts]
    assert batch_sizes == [stages._FORWARD_BATCH_SIZE, stages._FORWARD_BATCH_SIZE, 5]
