"""Static encoders: what model2vec gives, for texts of any length, in a row of length 1."""

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
from vllm_lora_router.classifiers.models import Network
from vllm_lora_router.classifiers.models.static_embeddings import StaticNetwork, is_static, load_static
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
    """Writes a static encoder of six known words as model2vec does."""

    def write(*, dtype: Any = np.float32, normalize: bool = True, framed: bool = False, **more: Any) -> Path:
        from model2vec import StaticModel
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        vocabulary = {token: number for number, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.enable_padding(length=32)
        tokenizer.enable_truncation(8)
        if framed:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
            )
        vectors = np.random.default_rng(3).normal(size=(len(vocabulary), 5)).astype(dtype)
        if "token_mapping" in more:
            vectors = vectors[: max(more["token_mapping"]) + 1]
        config = {"model_type": "model2vec"}
        StaticModel(vectors, tokenizer, config, normalize=normalize, **more).save_pretrained(tmp_path / "static")
        return tmp_path / "static"

    return write


def model2vec(folder: Path) -> Any:
    """The package's own encoding, of texts of any length."""
    from model2vec import StaticModel

    model = StaticModel.from_pretrained(folder, normalize=True)
    model.tokenizer.no_padding()  # versions before 0.10 leave it to others to turn these off
    model.tokenizer.no_truncation()
    return lambda texts: model.encode(texts, max_length=None)


@installed
@pytest.mark.parametrize(("dtype", "within"), [(np.float32, 1e-6), (np.float16, 1e-3)])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("framed", [True, False])
def test_rows_are_what_model2vec_gives(make: Make, dtype: Any, within: float, normalize: bool, framed: bool) -> None:
    folder = make(dtype=dtype, normalize=normalize, framed=framed)
    rows = load_static(folder)(TEXTS, 1_000_000)
    assert (rows.dtype, rows.shape) == (np.float32, (len(TEXTS), 5))
    assert rows == pytest.approx(model2vec(folder)(TEXTS).astype(np.float32), abs=within)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-6)


@installed
def test_a_quantized_vocabulary_gives_what_model2vec_gives(make: Make) -> None:
    from model2vec import StaticModel

    if "token_mapping" not in StaticModel.__init__.__annotations__:
        pytest.skip("this model2vec knows no quantized vocabularies")
    folder = make(token_mapping=np.array([0, 0, 0, 0, 1, 1, 2, 2, 3, 3]), weights=np.linspace(0.1, 1.0, 10))
    network = load_static(folder)
    rows = network(TEXTS, 1_000_000)
    assert rows == pytest.approx(model2vec(folder)(TEXTS).astype(np.float32), abs=1e-6)
    # Two words of one vector are not one word: their weights differ.
    assert not np.allclose(*network(["fever court", "cough court"], 16))


@installed
def test_a_text_without_a_known_word_is_a_row_of_zeros(make: Make) -> None:
    rows = load_static(make())(["", " \n", "nothing known, here!", "🦄", "fever"], 512)
    assert rows[:4].tolist() == [[0.0] * 5] * 4
    assert np.linalg.norm(rows[4]) == pytest.approx(1)


@installed
def test_no_text_is_no_row(make: Make) -> None:
    assert load_static(make())([], 512).shape == (0, 5)


@installed
def test_unknown_words_do_not_count(make: Make) -> None:
    known, mixed = load_static(make())(["fever judge", "the fever of unknown judges and a judge"], 512)
    assert known == pytest.approx(mixed, abs=1e-6)


@installed
def test_a_text_is_cut_at_the_number_of_tokens_and_not_before(make: Make) -> None:
    network = load_static(make())
    cut, whole, head = (
        network([text], most)[0] for text, most in (("fever court", 1), ("fever court", 2), ("fever", 2))
    )
    assert cut == pytest.approx(head, abs=1e-6)
    assert not np.allclose(whole, head)


@installed
def test_a_hundred_thousand_words_are_read_to_the_last(make: Make) -> None:
    network = load_static(make())
    long = "fever " * 50_000 + "court " * 50_000
    assert network.longest >= 100_000
    assert network([long], network.longest) == pytest.approx(network(["fever court"], 2), abs=1e-4)
    assert network([long], 50_000) == pytest.approx(network(["fever"], 1), abs=1e-4)


@installed
@pytest.mark.parametrize("framed", [True, False])
def test_windows_of_a_long_text_are_its_head_and_its_tail(make: Make, framed: bool) -> None:
    network = load_static(make(framed=framed))
    long = "fever " * 50_000 + "court " * 49_999 + "judge"
    special = 2 if framed else 0
    assert network.tokenizer.num_special_tokens_to_add() == special
    head, tail = windows(long, network.tokenizer, 3 + special, 2)
    assert (head, tail) == ("fever fever fever", "court court judge")
    everything = network.tokenizer(long, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    assert len(everything["offset_mapping"]) == 100_000
    network([long], 4)
    assert windows(long, network.tokenizer, 3 + special, 2) == [head, tail]


@installed
def test_it_says_what_it_is(make: Make) -> None:
    network: Network = load_static(make())
    assert network.runs_on == "static, cpu"
    assert isinstance(network, StaticNetwork)
    assert network.dimensions == 5


@installed
def test_the_folder_of_a_static_encoder_is_told_from_others(make: Make, tmp_path: Path) -> None:
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
def test_a_torn_config_is_not_a_static_encoder(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert not is_static(tmp_path)


def shorten_table(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"embeddings": np.zeros((3, 5), np.float32)}, folder / "model.safetensors")


def spread_numbers(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"loop":9', '"loop":99'))


@installed
@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"torn"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        shorten_table,
        spread_numbers,
    ],
)
def test_a_folder_that_cannot_be_read_is_named_with_the_way_out(make: Make, spoil: Callable[[Path], Any]) -> None:
    folder = make()
    spoil(folder)
    with pytest.raises(ClassifierError) as error:
        load_static(folder)
    assert str(error.value).startswith(f"{folder}: cannot be read as a static encoder (")
    assert str(error.value).endswith("vllm-lora-router distill MODEL FOLDER makes one of any encoder")


@installed
def test_what_is_not_a_static_encoder_is_not_looked_for_on_a_hub(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ClassifierError, match=r"its config\.json is missing or does not say model_type"):
            load_static(folder)


def test_without_model2vec_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model2vec", None)
    with pytest.raises(ClassifierError, match=r"pip install 'vllm-lora-router\[static\]'"):
        load_static(tmp_path)


def test_nothing_that_is_optional_is_imported_with_it() -> None:
    check = (
        "import sys, vllm_lora_router.classifiers.models.static_embeddings\n"
        "print([name for name in ('model2vec', 'transformers', 'tokenizers', 'torch') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout == "[]\n"
