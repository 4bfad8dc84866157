"""In what order examples are learnt."""

from itertools import islice
from random import Random

import pytest

torch = pytest.importorskip("torch")

from vllm_lora_router.tools.fit.finetune import stages  # noqa: E402

COUNT, SIZE = 1500, 8
LENGTHS = [(place * 37) % 90 for place in range(COUNT)]


def a_pass(batches: object) -> list[list[int]]:
    return [batch.tolist() for batch in islice(batches, -(-COUNT // SIZE))]  # type: ignore[call-overload]


def test_a_pass_by_length_has_each_example_once_and_batches_of_like_lengths() -> None:
    batches = stages._alike(LENGTHS, SIZE, torch.Generator().manual_seed(1))
    first, second = a_pass(batches), a_pass(batches)
    for found in (first, second):
        assert sorted(place for batch in found for place in batch) == list(range(COUNT))
        assert max(map(len, found)) == SIZE
    assert first != second

    def filled_up(found: list[list[int]]) -> int:
        return sum(max(LENGTHS[place] for place in batch) * len(batch) for batch in found)

    mixed = a_pass(stages._any(COUNT, SIZE, torch.Generator().manual_seed(1)))
    assert filled_up(first) < 0.7 * filled_up(mixed)
    lengths = [max(LENGTHS[place] for place in batch) for batch in first]
    assert lengths != sorted(lengths)


def test_texts_are_learnt_with_the_slips_that_people_make() -> None:
    text, chance = "what fever is too high for a small child", Random(1)
    never, always = (stages.Recipe(0, 0, 1, 1e-4, changed=0, mistyped=share) for share in (0.0, 1.0))
    assert {stages._said(text, never, chance) for _ in range(50)} == {text}
    slipped = {stages._said(text, always, chance) for _ in range(50)}
    assert len(slipped - {text}) > 20
    assert all(abs(len(one) - len(text)) <= 2 for one in slipped)
    assert stages.recipe(stages.MANY).mistyped > 0


def test_states_come_in_the_order_of_the_texts_whatever_their_lengths() -> None:
    texts = ["x" * length for length in LENGTHS[: 2 * stages._FORWARD + 5]]
    asked: list[int] = []

    def model(some: list[str]) -> tuple[None, object]:
        asked.append(len(some))
        return None, torch.tensor([[float(len(text))] for text in some])

    states = stages._states(model, texts)  # type: ignore[arg-type]
    assert states.flatten().tolist() == [len(text) for text in texts]
    assert asked == [stages._FORWARD, stages._FORWARD, 5]
