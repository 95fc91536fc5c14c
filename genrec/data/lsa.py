"""TF-IDF and truncated SVD that can be kept: fit on a catalogue's texts, saved without code, asked for new texts.

scikit-learn is imported when it is used.

Letters: N items, M new items, V words and pairs of words, E width of the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from genrec.checkpoint import load_checkpoint, save_checkpoint
from genrec.data.interactions import DataError

SMALL_CATALOGUE = 1000
"below this many texts a word that occurs once is kept: there are few others"


class Lsa:
    """The words that are known, each with its weight, and the directions (E, V) of the vectors."""

    def __init__(self, words: list[str], idf_V: np.ndarray, components_EV: np.ndarray):
        self.words, self.idf_V, self.components_EV = words, idf_V, components_EV

    @classmethod
    def fit(cls, texts: Sequence[str], dim: int) -> tuple[Lsa, np.ndarray]:
        """From the texts of a catalogue; also their vectors (N, E) float32.

        E is `dim`, or less where the texts have not as many directions; rows have length 1, or 0 where a text holds no
        word that another has too. Raises `DataError` where there are no words at all.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        min_df = 1 if len(texts) < SMALL_CATALOGUE else 2
        vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=min_df)
        try:
            tfidf_NV = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise DataError(f"encoder 'lsa' found no words in the texts of {len(texts)} items ({error})") from None
        svd = TruncatedSVD(n_components=max(1, min(dim, min(tfidf_NV.shape) - 1)), random_state=0)
        vectors_NE = svd.fit_transform(tfidf_NV)
        words = vectorizer.get_feature_names_out().tolist()
        return cls(words, vectorizer.idf_, svd.components_), _unit_rows(vectors_NE)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (M, E) float32 of any texts; of those it was fit on, what `fit` returned."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), vocabulary=self.words)
        vectorizer.idf_ = self.idf_V
        return _unit_rows(vectorizer.transform(texts) @ self.components_EV.T)

    def save(self, folder: Path) -> None:
        """Write `folder` atomically: the words as JSON, the arrays as safetensors."""
        tensors = {"idf_V": torch.from_numpy(self.idf_V), "components_EV": torch.from_numpy(self.components_EV)}
        save_checkpoint(folder, tensors, {"words": self.words})

    @classmethod
    def load(cls, folder: Path) -> Lsa:
        """What `save` wrote. Raises `CheckpointError`."""
        tensors, facts = load_checkpoint(folder)
        return cls(facts["words"], tensors["idf_V"].numpy(), tensors["components_EV"].numpy())


def _unit_rows(vectors_NE: np.ndarray) -> np.ndarray:
    norm_N1 = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    vectors_NE = np.divide(vectors_NE, norm_N1, out=np.zeros_like(vectors_NE), where=norm_N1 > 1e-12)
    return np.ascontiguousarray(vectors_NE, dtype=np.float32)
