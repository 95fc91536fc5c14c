"""Item text -> (N, E) float32 vectors: TF-IDF with truncated SVD, or an array computed elsewhere.

`lsa` needs no download and is deterministic; `npy` reads vectors of any encoder, row r for internal item id r.
The only module that knows a text encoder; scikit-learn is imported when it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from genrec.config import EmbeddingsConfig
from genrec.data.interactions import DataError, Items

SMALL_CATALOGUE = 1000
"below this many items a word that occurs once is kept: there are few others"


def embed_items(items: Items, config: EmbeddingsConfig, base: str | Path | None = None) -> np.ndarray:
    """(N, E) float32 vectors of a catalogue.

    Args:
        base: the folder that a relative `config.path` starts from.

    `lsa`: E is `config.dim`, or less where the catalogue has not as many directions; rows have length 1, or 0 where a
    text holds no word that another item has too. `npy`: raises `DataError` unless the array has one finite row,
    not zero, an item.
    """
    if config.encoder == "npy":
        return _load_vectors(items, Path(base or ".") / str(config.path))
    return _lsa(items, config.dim)


def _lsa(items: Items, dim: int) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    min_df = 1 if len(items) < SMALL_CATALOGUE else 2
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=min_df)
    try:
        tfidf_NV = vectorizer.fit_transform(items.texts)
    except ValueError as error:
        raise DataError(f"encoder 'lsa' found no words in the texts of {len(items)} items ({error})") from None
    dim = max(1, min(dim, min(tfidf_NV.shape) - 1))
    vectors_NE = TruncatedSVD(n_components=dim, random_state=0).fit_transform(tfidf_NV)
    norm_N1 = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    vectors_NE = np.divide(vectors_NE, norm_N1, out=np.zeros_like(vectors_NE), where=norm_N1 > 1e-12)
    return np.ascontiguousarray(vectors_NE, dtype=np.float32)


def _load_vectors(items: Items, path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as an array of numbers ({error})") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: expected one array (.npy), got an archive of several")
    if array.ndim != 2 or array.shape[1] < 1 or len(array) != len(items):
        raise DataError(f"{path}: shape must be ({len(items)}, E), one row an item, got {array.shape}")
    if array.dtype.kind != "f":
        raise DataError(f"{path}: values must be float16 or float32, got {array.dtype}")
    vectors_NE = np.array(array, dtype=np.float32)
    _refuse_row(
        ~np.isfinite(vectors_NE).all(axis=1),
        "every value must be finite, but it has NaN or inf",
        items,
        path,
    )
    _refuse_row(~vectors_NE.any(axis=1), "a row must not be all zero", items, path)
    return vectors_NE


def _refuse_row(bad_N: Any, rule: str, items: Items, path: Path) -> None:
    if bad_N.any():
        row = int(bad_N.argmax())
        raise DataError(f"{path}: row {row} (item {items.ids[row]!r}): {rule} ({int(bad_N.sum())} such rows)")
