"""Static encoders give the same embeddings as model2vec, for texts of any length."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models import TextModel
from vllm_lora_router.classifiers.models.static_embeddings import StaticEmbeddingModel, is_static, load_static
from vllm_lora_router.classifiers.models.truncation import windows

installed = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("model2vec", "transformers")),
    reason="needs model2vec and transformers",
)

WORDS = ("fever", "cough", "court", "judge", "code", "loop")
TEXTS = ["fever", "court judge", "fever fever cough", "what does a judge code ?", "code loop " * 200]

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a static encoder with six known words in the format of model2vec."""

    def write(*, dtype: Any = np.float32, normalize: bool = True, special_tokens: bool = False, **options: Any) -> Path:
        from model2vec import StaticModel
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        vocabulary = {token: number for number, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.enable_padding(length=32)
        tokenizer.enable_truncation(8)
        if special_tokens:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
            )
        vectors = np.random.default_rng(3).normal(size=(len(vocabulary), 5)).astype(dtype)
        if "token_mapping" in options:
            vectors = vectors[: max(options["token_mapping"]) + 1]
        config = {"model_type": "model2vec"}
        StaticModel(vectors, tokenizer, config, normalize=normalize, **options).save_pretrained(tmp_path / "static")
        return tmp_path / "static"

    return write


def model2vec(folder: Path) -> Any:
    """Return the encoding function of model2vec itself, without its limit on the length of texts."""
    from model2vec import StaticModel

    model = StaticModel.from_pretrained(folder, normalize=True)
    model.tokenizer.no_padding()  # versions before 0.10 do not turn these off themselves
    model.tokenizer.no_truncation()
    return lambda texts: model.encode(texts, max_length=None)


@installed
@pytest.mark.parametrize(("dtype", "within"), [(np.float32, 1e-6), (np.float16, 1e-3)])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("special_tokens", [True, False])
def test_rows_equal_those_of_model2vec(
    make: Make, dtype: Any, within: float, normalize: bool, special_tokens: bool
) -> None:
    folder = make(dtype=dtype, normalize=normalize, special_tokens=special_tokens)
    rows = load_static(folder)(TEXTS, 1_000_000)
    assert (rows.dtype, rows.shape) == (np.float32, (len(TEXTS), 5))
    assert rows == pytest.approx(model2vec(folder)(TEXTS).astype(np.float32), abs=within)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-6)


@installed
def test_rows_of_a_quantized_vocabulary_equal_those_of_model2vec(make: Make) -> None:
    from model2vec import StaticModel

    if "token_mapping" not in StaticModel.__init__.__annotations__:
        pytest.skip("this version of model2vec does not support quantized vocabularies")
    folder = make(token_mapping=np.array([0, 0, 0, 0, 1, 1, 2, 2, 3, 3]), weights=np.linspace(0.1, 1.0, 10))
    model = load_static(folder)
    rows = model(TEXTS, 1_000_000)
    assert rows == pytest.approx(model2vec(folder)(TEXTS).astype(np.float32), abs=1e-6)
    # Two words with the same vector still differ, because their weights differ.
    assert not np.allclose(*model(["fever court", "cough court"], 16))


@installed
def test_a_text_without_a_known_word_gives_a_zero_row(make: Make) -> None:
    rows = load_static(make())(["", " \n", "nothing known, here!", "🦄", "fever"], 512)
    assert rows[:4].tolist() == [[0.0] * 5] * 4
    assert np.linalg.norm(rows[4]) == pytest.approx(1)


@installed
def test_an_empty_batch_gives_no_rows(make: Make) -> None:
    assert load_static(make())([], 512).shape == (0, 5)


@installed
def test_unknown_words_are_ignored(make: Make) -> None:
    known, mixed = load_static(make())(["fever judge", "the fever of unknown judges and a judge"], 512)
    assert known == pytest.approx(mixed, abs=1e-6)


@installed
def test_a_text_is_truncated_at_max_tokens(make: Make) -> None:
    model = load_static(make())
    cut, complete, head = (
        model([text], limit)[0] for text, limit in (("fever court", 1), ("fever court", 2), ("fever", 2))
    )
    assert cut == pytest.approx(head, abs=1e-6)
    assert not np.allclose(complete, head)


@installed
def test_a_text_of_a_hundred_thousand_words_is_read_completely(make: Make) -> None:
    model = load_static(make())
    long = "fever " * 50_000 + "court " * 50_000
    assert model.max_length >= 100_000
    assert model([long], model.max_length) == pytest.approx(model(["fever court"], 2), abs=1e-4)
    assert model([long], 50_000) == pytest.approx(model(["fever"], 1), abs=1e-4)


@installed
@pytest.mark.parametrize("special_tokens", [True, False])
def test_windows_of_a_long_text_are_its_head_and_tail(make: Make, special_tokens: bool) -> None:
    model = load_static(make(special_tokens=special_tokens))
    long = "fever " * 50_000 + "court " * 49_999 + "judge"
    special = 2 if special_tokens else 0
    assert model.tokenizer.num_special_tokens_to_add() == special
    head, tail = windows(long, model.tokenizer, 3 + special, 2)
    assert (head, tail) == ("fever fever fever", "court court judge")
    everything = model.tokenizer(long, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    assert len(everything["offset_mapping"]) == 100_000
    model([long], 4)
    assert windows(long, model.tokenizer, 3 + special, 2) == [head, tail]


@installed
def test_a_static_encoder_reports_its_runtime_and_dimensions(make: Make) -> None:
    model: TextModel = load_static(make())
    assert model.runs_on == "static, cpu"
    assert isinstance(model, StaticEmbeddingModel)
    assert model.dimensions == 5


@installed
def test_is_static_recognizes_the_folder_of_a_static_encoder(make: Make, tmp_path: Path) -> None:
    assert is_static(make())
    assert not is_static(tmp_path)
    assert not is_static(tmp_path / "nowhere")
    assert not is_static(make() / "model.safetensors")


@pytest.mark.parametrize(
    "config", [{"model_type": "bert"}, {"architectures": ["StaticModel"]}, ["model2vec"], "model2vec", None]
)
def test_other_folders_are_not_static_encoders(config: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not is_static(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"model_type": "model2vec"', b"\xff\xfe\x00"])
def test_a_damaged_config_is_not_a_static_encoder(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert not is_static(tmp_path)


def shorten_table(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"embeddings": np.zeros((3, 5), np.float32)}, folder / "model.safetensors")


def spread_token_ids(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"loop":9', '"loop":99'))


@installed
@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"damaged"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        shorten_table,
        spread_token_ids,
    ],
)
def test_a_damaged_folder_is_reported_with_the_remedy(make: Make, damage: Callable[[Path], Any]) -> None:
    folder = make()
    damage(folder)
    with pytest.raises(ClassifierError) as error:
        load_static(folder)
    assert str(error.value).startswith(f"{folder}: cannot be read as a static encoder (")
    assert str(error.value).endswith("vllm-lora-router distill MODEL FOLDER creates one")


@installed
def test_other_folders_are_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ClassifierError, match=r"its config\.json is missing or does not have model_type"):
            load_static(folder)


def test_without_model2vec_the_error_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model2vec", None)
    with pytest.raises(ClassifierError, match=r"pip install 'vllm-lora-router\[static\]'"):
        load_static(tmp_path)


def test_the_module_imports_no_optional_package() -> None:
    check = (
        "import sys, vllm_lora_router.classifiers.models.static_embeddings\n"
        "print([name for name in ('model2vec', 'transformers', 'tokenizers', 'torch') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout == "[]\n"
