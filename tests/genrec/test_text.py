"""Item vectors: LSA of texts, and precomputed arrays with their refusals."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.config import EmbeddingsConfig, SyntheticConfig
from genrec.data.interactions import DataError, Items
from genrec.data.synthetic import SyntheticTruth, make_synthetic
from genrec.data.text import embed_items

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
        (np.ones((3, 4), np.int64), "values must be float16 or float32, got int64"),
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
