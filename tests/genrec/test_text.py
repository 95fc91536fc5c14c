"""Item vectors: LSA of texts, sentence encoders, precomputed arrays with their refusals, and what vectors depend on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from genrec.data import text
from genrec.data.interactions import DataError, Items
from genrec.data.synthetic import SyntheticTruth, make_synthetic
from genrec.data.text import embed_items, embeddings_identity
from genrec.settings import EmbeddingsConfig, SyntheticConfig

NPY = EmbeddingsConfig(encoder="npy", path="vectors.npy")


def make_items(texts: list[str]) -> Items:
    return Items([f"A{i}" for i in range(len(texts))], texts, texts)


THREE = make_items(["red lamp", "blue lamp", "wool scarf"])


def test_lsa_puts_items_of_one_category_together():
    config = SyntheticConfig(num_users=10)
    items, truth = make_synthetic(config).catalogue, SyntheticTruth.from_config(config)
    vectors = embed_items(items, EmbeddingsConfig(dim=32))
    assert vectors.shape == (300, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -1)
    assert (truth.category_N[cosine.argmax(axis=1)] == truth.category_N).mean() > 0.9


def test_lsa_gives_the_same_bits_twice():
    items = make_synthetic(SyntheticConfig(num_users=10)).catalogue
    assert np.array_equal(embed_items(items, EmbeddingsConfig(dim=16)), embed_items(items, EmbeddingsConfig(dim=16)))


def test_lsa_width_is_capped_by_the_catalogue_and_equal_texts_have_equal_vectors():
    items = make_items(["red lamp", "blue lamp", "red lamp", "wool scarf"])
    vectors = embed_items(items, EmbeddingsConfig(dim=64))
    assert vectors.shape == (4, 3)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[3]


def test_an_item_without_words_has_a_zero_vector_and_a_catalogue_without_words_is_refused():
    vectors = embed_items(make_items(["red lamp", "", "blue lamp", "wool scarf"]), EmbeddingsConfig(dim=2))
    assert np.isfinite(vectors).all()
    assert not vectors[1].any()
    with pytest.raises(DataError, match="no words in the texts of 2 items"):
        embed_items(make_items(["", "!"]), EmbeddingsConfig(dim=2))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_npy_rows_are_read_as_float32(tmp_path, dtype):
    array = np.array([[1, 0.5], [0, 2], [3, 4]], dtype=dtype)
    np.save(tmp_path / "vectors.npy", array)
    vectors = embed_items(THREE, NPY, tmp_path)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, array.astype(np.float32))
    absolute = EmbeddingsConfig(encoder="npy", path=str(tmp_path / "vectors.npy"))
    assert np.array_equal(embed_items(THREE, absolute), vectors)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 4), np.float32), r"shape must be \(3, E\), one row an item, got \(2, 4\)"),
        (np.ones(3, np.float32), r"shape must be \(3, E\)"),
        (np.ones((3, 4), np.int64), "values must be float16, float32 or float64, got int64"),
        (np.full((3, 4), 1e300), r"row 0 \(item 'A0'\): every value must be finite"),  # in float32 it is not
        (np.array([[1, 1], [1, np.nan], [1, 1]], np.float32), r"row 1 \(item 'A1'\): every value must be finite"),
        (np.array([[1, 1], [1, 1], [np.inf, 1]], np.float16), r"row 2 \(item 'A2'\): every value must be finite"),
        (np.array([[1, 1], [0, 0], [0, 0]], np.float32), r"row 1 \(item 'A1'\): a row must not be all zero \(2 such"),
        (np.array([[{}], [{}], [{}]], dtype=object), "cannot be read as an array of numbers"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "vectors.npy", array)
    with pytest.raises(DataError, match=message):
        embed_items(THREE, NPY, tmp_path)


def test_a_missing_or_broken_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"vectors.npy: cannot be read"):
        embed_items(THREE, NPY, tmp_path)
    (tmp_path / "vectors.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"vectors.npy: cannot be read"):
        embed_items(THREE, NPY, tmp_path)
    np.savez(tmp_path / "vectors", a=np.ones((3, 2)))
    (tmp_path / "vectors.npz").rename(tmp_path / "vectors.npy")
    with pytest.raises(DataError, match="expected one array"):
        embed_items(THREE, NPY, tmp_path)


# ---------------------------------------------------------- sentence encoders

WORDS = ["red", "blue", "lamp", "scarf", "wool"]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> Path:
    """A sentence encoder of one layer and five words, in the files of the real ones."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("sentence_transformers")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tiny") / "model"
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": False}))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def sentence_encoder(model: Path | str, **settings) -> EmbeddingsConfig:
    return EmbeddingsConfig(encoder="sentence_transformer", model=str(model), **settings)


@pytest.mark.slow
def test_a_sentence_encoder_gives_the_mean_of_its_tokens_whatever_the_batch(tiny_model):
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["red lamp", "wool scarf red", "blue", "red lamp", ""]
    found = embed_items(make_items(texts), sentence_encoder(tiny_model))
    assert found.shape == (5, 16)
    assert found.dtype == np.float32
    model, tokenizer = AutoModel.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    for row, words in list(zip(found, texts, strict=True))[:4]:
        with torch.no_grad():
            tokens = model(**tokenizer(words, return_tensors="pt")).last_hidden_state[0]
        np.testing.assert_allclose(row, tokens.mean(0).numpy(), atol=1e-5)
    one_by_one = embed_items(make_items(texts[:4]), sentence_encoder(tiny_model, batch_size=1))
    np.testing.assert_allclose(one_by_one, found[:4], atol=1e-5)


@pytest.mark.slow
def test_a_model_that_is_neither_there_nor_to_be_had_is_named(tiny_model, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("nobody/no-such-model", str(tmp_path)):
        with pytest.raises(DataError, match=rf"embeddings.model '{name}': neither a folder .* nor one that can be dow"):
            embed_items(THREE, sentence_encoder(name))


def test_without_the_extra_the_line_that_installs_it_is_shown(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(DataError, match=r"needs the extra 'text'.*pip install 'genrec-sweeps\[text\]'"):
        embed_items(THREE, sentence_encoder("any"))


# -------------------------------------------------------------------- identity


def content(path: Path) -> str:
    return path.read_bytes().hex()


def test_vectors_are_known_by_their_encoder_and_the_settings_that_it_reads(tmp_path):
    lsa, npy = EmbeddingsConfig(dim=8), EmbeddingsConfig(encoder="npy", path="vectors.npy")
    np.save(tmp_path / "vectors.npy", np.ones((2, 2)))

    def identity(config: EmbeddingsConfig) -> dict:
        return embeddings_identity(config, tmp_path, content)

    assert identity(lsa) == identity(EmbeddingsConfig(dim=8, batch_size=7, model="other"))
    found = [lsa, EmbeddingsConfig(dim=9), npy, sentence_encoder("one"), sentence_encoder("two")]
    assert len({json.dumps(identity(config)) for config in found}) == len(found)


def test_an_array_is_known_by_its_content_and_not_by_its_place(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "vectors.npy", np.ones((2, 2)))
    first = embeddings_identity(NPY, tmp_path / "here", content)
    assert embeddings_identity(NPY, tmp_path / "there", content) == first
    np.save(tmp_path / "here" / "vectors.npy", np.zeros((2, 2)))
    assert embeddings_identity(NPY, tmp_path / "here", content) != first


def test_a_model_in_a_folder_is_known_by_its_files(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name / "1_Pooling").mkdir(parents=True)
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "1_Pooling" / "config.json").write_text("{}")
    first = embeddings_identity(sentence_encoder(tmp_path / "here"), None, content)
    (tmp_path / "here" / "README.md").write_text("a model")
    assert embeddings_identity(sentence_encoder(tmp_path / "here"), None, content) == first
    assert embeddings_identity(sentence_encoder(tmp_path / "there"), None, content) == first
    (tmp_path / "here" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert embeddings_identity(sentence_encoder(tmp_path / "here"), None, content) != first


@pytest.mark.parametrize("config", [EmbeddingsConfig(), sentence_encoder("one"), NPY])
def test_another_form_of_the_texts_makes_other_vectors_of_texts_alone(tmp_path, monkeypatch, config):
    np.save(tmp_path / "vectors.npy", np.ones((2, 2)))
    first = embeddings_identity(config, tmp_path, content)
    monkeypatch.setattr(text, "TEXT_TEMPLATE", text.TEXT_TEMPLATE + 1)
    assert (embeddings_identity(config, tmp_path, content) == first) == (config.encoder == "npy")
