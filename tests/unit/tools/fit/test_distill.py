"""Distillation of a sentence encoder into a static one that model2vec reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from vllm_lora_router.classifiers.models.static_embeddings import is_static, load_static
from vllm_lora_router.cli import main
from vllm_lora_router.tools.fit.distill import DistillError, distill, sif_weights

for name in ("torch", "model2vec", "sentence_transformers", "sklearn"):
    pytest.importorskip(name)

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("the", "of", "fever", "cough", "court", "judge", "code", "loop", "##s", "##ing")
HIDDEN = 8


def bert(folder: Path, tokenizer: Any, size: int) -> Path:
    """Write a sentence encoder with random weights and mean pooling."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    torch.manual_seed(5)
    config = AutoConfig.for_model(
        "bert",
        vocab_size=size,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=1.0,
        hidden_dropout_prob=0.1,
        pad_token_id=0,
    )
    AutoModel.from_config(config).save_pretrained(folder / "plain")
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIALS, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder / "plain")
    SentenceTransformer(str(folder / "plain"), device="cpu").save(str(folder / "encoder"))
    return folder / "encoder"


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an encoder with BERT's tokenizer, including unused tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokens = (SPECIALS[0], "[unused0]", "[unused1]", *SPECIALS[1:], "[unused993]", *WORDS)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    return bert(tmp_path_factory.mktemp("wordpiece"), tokenizer, len(tokens))


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an encoder with the tokenizer of multilingual encoders."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [(name, 0.0) for name in SPECIALS] + [(f"▁{word}", -float(n)) for n, word in enumerate(WORDS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return bert(tmp_path_factory.mktemp("unigram"), tokenizer, len(pieces))


def byte_pairs(folder: Path, last: int) -> Path:
    """Write an encoder with the tokenizer of RoBERTa and ModernBERT; `last` is the id of the last token, `code`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens = (*SPECIALS, "c", "o", "d", "e", "co", "de")
    vocabulary = {**{token: number for number, token in enumerate(tokens)}, "code": last}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("c", "o"), ("d", "e"), ("co", "de")], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([*SPECIALS])
    return bert(folder, tokenizer, last + 1)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_pairs(tmp_path_factory.mktemp("bpe"), 10)


def vectors(folder: Path) -> dict[str, np.ndarray]:
    """Return the vector of each token without its weight."""
    from model2vec import StaticModel

    model = StaticModel.from_pretrained(folder)
    rows = model.embedding.astype(np.float64) / sif_weights(len(model.tokens))[:, None]
    return dict(zip(model.tokens, rows, strict=True))


@pytest.mark.parametrize(("kind", "mark"), [("wordpiece", ""), ("unigram", "▁")])
def test_distances_of_words_match_the_encoder(
    kind: str, mark: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    source = request.getfixturevalue(kind)
    result = distill(str(source), tmp_path / "static", dimensions=HIDDEN)
    assert result.variance_kept == pytest.approx(1)
    static = vectors(tmp_path / "static")
    words = WORDS[:8]
    expected = SentenceTransformer(str(source), device="cpu").encode(list(words)).astype(np.float64)
    # All components are kept, so the projection is a rotation, which preserves distances.
    for first, second in zip(range(8), (1, 2, 3, 4, 5, 6, 7, 0), strict=True):
        distance = np.linalg.norm(static[mark + words[first]] - static[mark + words[second]])
        assert distance == pytest.approx(np.linalg.norm(expected[first] - expected[second]), rel=0.01)


def test_fewer_dimensions_are_the_first_components(wordpiece: Path, tmp_path: Path) -> None:
    few = distill(str(wordpiece), tmp_path / "few", dimensions=3)
    distill(str(wordpiece), tmp_path / "all", dimensions=HIDDEN)
    assert 0.3 < few.variance_kept < 1
    many = vectors(tmp_path / "all")
    for token, vector in vectors(tmp_path / "few").items():
        assert np.abs(vector) == pytest.approx(np.abs(many[token][:3]), rel=0.01, abs=0.01)


def test_frequent_words_have_lower_weights() -> None:
    weights = sif_weights(1000)
    assert weights[0] < weights[1] < weights[-1] < 1
    frequency = (1 / 2) / sum(1 / rank for rank in range(2, 1002))
    assert weights[0] == pytest.approx(1e-4 / (1e-4 + frequency))


@pytest.mark.parametrize(("kind", "tokens"), [("wordpiece", 14), ("unigram", 14), ("bpe", 11)])
def test_model2vec_reads_the_result_and_gives_the_same_vectors(
    kind: str, tokens: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from model2vec import StaticModel

    result = distill(str(request.getfixturevalue(kind)), tmp_path / "static", dimensions=4)
    assert is_static(tmp_path / "static")
    plain = StaticModel.from_pretrained(tmp_path / "static")
    texts = ["code", "code loop code", "the fever of the code judge", "", "高"]
    rows = load_static(tmp_path / "static")(texts, 512)
    assert plain.normalize
    assert (result.tokens, result.dimensions) == (len(plain.tokens), plain.dim) == (tokens, 4)
    assert rows == pytest.approx(plain.encode(texts).astype(np.float32), abs=1e-3)
    assert np.linalg.norm(rows[:3], axis=1) == pytest.approx(np.ones(3), abs=1e-6)


def test_unused_tokens_are_left_out(wordpiece: Path, tmp_path: Path) -> None:
    from model2vec import StaticModel

    distill(str(wordpiece), tmp_path / "static", dimensions=4)
    plain = StaticModel.from_pretrained(tmp_path / "static")
    assert tuple(plain.tokens) == (*SPECIALS, *WORDS)
    tokens = plain.tokenizer.encode("Judges unheard coughing", add_special_tokens=True).tokens
    assert tokens == ["judge", "##s", "[UNK]", "cough", "##ing"]


def test_distillation_is_deterministic(wordpiece: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        distill(str(wordpiece), tmp_path / name, dimensions=4)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second


def test_all_files_have_the_same_permissions(wordpiece: Path, tmp_path: Path) -> None:
    distill(str(wordpiece), tmp_path, dimensions=4)
    modes = {file.stat().st_mode for file in tmp_path.iterdir() if file.is_file()}
    assert len(modes) == 1
    assert not (tmp_path / "README.md").exists()


def test_existing_files_are_not_overwritten(wordpiece: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    for folder in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(DistillError, match="exists and is not an empty folder; choose another one"):
            distill(str(wordpiece), folder)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("dimensions", [0, -1, HIDDEN + 1])
def test_too_many_dimensions_are_refused(wordpiece: Path, tmp_path: Path, dimensions: int) -> None:
    with pytest.raises(DistillError, match=f"so {dimensions} dimensions are not possible; choose 1 to {HIDDEN}$"):
        distill(str(wordpiece), tmp_path / "static", dimensions=dimensions)
    assert not (tmp_path / "static").exists()


def test_folder_without_model_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(DistillError) as error:
        distill(str(tmp_path / "model"), tmp_path / "static")
    assert str(error.value).startswith(f"{tmp_path}/model: cannot be loaded by sentence-transformers; ")


def test_token_ids_with_gaps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="its token ids have gaps"):
        distill(str(byte_pairs(tmp_path / "gap", 12)), tmp_path / "static", dimensions=4)


def test_static_encoder_cannot_be_distilled(wordpiece: Path, tmp_path: Path) -> None:
    distill(str(wordpiece), tmp_path / "static", dimensions=4)
    with pytest.raises(DistillError, match="has no fast tokenizer"):
        distill(str(tmp_path / "static"), tmp_path / "again", dimensions=4)


@pytest.mark.parametrize("name", ["model2vec", "sklearn.decomposition", "sentence_transformers"])
def test_missing_package_is_reported_with_its_extras(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DistillError) as error:
        distill(str(tmp_path), tmp_path / "static")
    assert name in str(error.value)
    assert str(error.value).endswith("pip install 'vllm-lora-router[static,train]'")


def test_command_writes_the_encoder_and_prints_its_configuration(
    wordpiece: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a folder: mine"
    assert main(["distill", str(wordpiece), str(folder), "--dimensions", "4"]) == 0
    summary, _, lines = capsys.readouterr().out.partition("\n")
    assert summary.startswith(f"{folder}: 14 tokens with 4 dimensions, which keep ")
    assert yaml.safe_load(lines) == {"classifier": {"embedding_model": {"model_id": str(folder)}}}
    assert json.loads((folder / "config.json").read_text())["hidden_dim"] == 4


def test_command_reports_an_error_and_exits_with_1(
    wordpiece: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "note").touch()
    assert main(["distill", str(wordpiece), str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"{tmp_path}: exists and is not an empty folder; choose another one\n"
