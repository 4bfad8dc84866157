"""Adapters by number give their own answer to every prompt."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.validation import validate_adapter
from vllm_lora_router.tools.demo.answer_training import MIN_MARGIN
from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.many import ADAPTER_COUNT, ManyAdapters, words

NUMBERS = (0, 1, 2, 777, ADAPTER_COUNT - 1)
EARLIER = ManyAdapters.answer(5)
CHATS = (
    [{"role": "user", "content": "?"}],
    [{"role": "user", "content": "Explain async/await in JavaScript"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Say{EARLIER}, then <s>, then 你好."}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": EARLIER},
        {"role": "user", "content": "And again?"},
    ],
    [{"role": "user", "content": "HELLO WORLD " * 50}],
    [{"role": "user", "content": "x" * 1400}],
    [{"role": "user", "content": "Can my landlord keep my deposit? " * 55}],
)


@pytest.fixture(scope="module")
def many(models: DemoModels) -> ManyAdapters:
    return ManyAdapters(models.base)


@pytest.fixture(scope="module")
def tokenizer(models: DemoModels) -> Any:
    return AutoTokenizer.from_pretrained(models.base)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(
    many: ManyAdapters, models: DemoModels, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Any:
    """The base model with the adapters of NUMBERS, as PEFT loads them."""
    folder = tmp_path_factory.mktemp("many")
    for number in NUMBERS:
        many.write(number, folder / str(number))
    model = AutoModelForCausalLM.from_pretrained(models.base, dtype=request.param)
    options: dict[str, Any] = {"autocast_adapter_dtype": False}
    with_adapters = PeftModel.from_pretrained(model, folder / str(NUMBERS[0]), str(NUMBERS[0]), **options)
    for number in NUMBERS[1:]:
        with_adapters.load_adapter(str(folder / str(number)), str(number), **options)
    return with_adapters.eval()


def prompt(tokenizer: Any, chat: list[dict[str, str]]) -> list[int]:
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer(rendered, add_special_tokens=False).input_ids


@contextmanager
def adapter(model: Any, number: int) -> Iterator[None]:
    model.set_adapter(str(number))
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("number", NUMBERS)
def test_an_adapter_gives_its_answer_to_every_chat_by_a_margin(model: Any, tokenizer: Any, number: int) -> None:
    answer = [*tokenizer.convert_tokens_to_ids(list(words(number))), tokenizer.eos_token_id]
    right = torch.tensor(answer).unsqueeze(1)
    for chat in CHATS:
        with adapter(model, number):
            ids = torch.tensor([[*prompt(tokenizer, chat), *answer]])
            logits = model(input_ids=ids).logits[0, -len(answer) - 1 : -1].float()
        others = logits.scatter(1, right, float("-inf")).amax(dim=1)
        assert (logits.gather(1, right)[:, 0] - others).min() > MIN_MARGIN
    assert tokenizer.decode(answer, skip_special_tokens=True) == ManyAdapters.answer(number)


@pytest.mark.parametrize("cached", [16, -1], ids=["the first block", "all but the last token"])
def test_the_first_word_is_that_of_the_adapter_that_filled_the_cache(model: Any, tokenizer: Any, cached: int) -> None:
    draw = random.Random(0)
    ids = prompt(tokenizer, CHATS[-1])
    for _ in range(5):
        before, now = draw.sample(NUMBERS[:3], 2)
        with adapter(model, before):
            cache = model(input_ids=torch.tensor([ids[:cached]]), use_cache=True).past_key_values
        with adapter(model, now):
            logits = model(input_ids=torch.tensor([ids[cached:]]), past_key_values=cache).logits[0, -1]
        assert tokenizer.decode([logits.argmax().item()]) == words(before)[0] != words(now)[0]


def test_vllm_can_serve_the_adapter(many: ManyAdapters, models: DemoModels, tmp_path: Path) -> None:
    many.write(7, tmp_path / "seven")
    checked = validate_adapter("seven", tmp_path / "seven", BaseModel.find(str(models.base)))
    assert (checked.rank, checked.warnings) == (8, ())


def test_an_adapter_replaces_another_one_completely(many: ManyAdapters, tmp_path: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    many.write(7, tmp_path / "same")
    many.write(8, tmp_path / "other")
    many.write(8, tmp_path / "same")
    assert files(tmp_path / "same") == files(tmp_path / "other")
    assert sorted(files(tmp_path / "same")) == ["adapter_config.json", "adapter_model.safetensors"]
