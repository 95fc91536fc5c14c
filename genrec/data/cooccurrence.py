"""Item vectors from who is consumed near whom, to stand beside the vectors of their texts.

Semantic IDs made from texts alone put items together that read alike; users often move between items that do not.
Vectors of co-occurrence carry that: positive pointwise mutual information of the items of a training sequence,
factorised by a truncated SVD (Levy and Goldberg 2014, section 3.3). Only training items are counted.

Letters: N items, E width of the text vectors, D width of the co-occurrence vectors.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from genrec.baselines import pair_counts

WINDOW = 10
"places between two items of a sequence that still count as a pair, weighted by 1/distance"
SMOOTHING = 0.75
"power of an item's frequency as a context: without it rare items have the largest values"


def cooccurrence_vectors(offsets: np.ndarray, items: np.ndarray, num_items: int, dim: int) -> np.ndarray:
    """(N, D) float32 rows of length 1, or 0 for an item without a neighbour in any training sequence.

    Args:
        offsets: (U+1,) bounds of every user's training sequence in `items`.
        items: internal item ids.
        dim: D; columns that the catalogue has no directions for are 0.
    """
    from sklearn.decomposition import TruncatedSVD

    information_NN = _positive_information(pair_counts(offsets, items, num_items, WINDOW))
    svd = TruncatedSVD(n_components=max(1, min(dim, num_items - 1)), random_state=0)
    vectors_ND = svd.fit_transform(information_NN) / np.sqrt(np.maximum(svd.singular_values_, 1e-12))
    norm_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND = np.divide(vectors_ND, norm_N1, out=np.zeros_like(vectors_ND), where=norm_N1 > 1e-9)
    return pad_vectors(unit_ND.astype(np.float32), dim)


def join_vectors(text_NE: np.ndarray, cooccurrence_ND: np.ndarray, weight: float) -> np.ndarray:
    """(N, E + D): the texts' vectors as they are, then the other part, centred, its spread `weight` times the texts'.

    An item without neighbours gets zeros in the second part, the mean, so that its text alone places it; the same
    holds for an item that joins the catalogue later (`pad_vectors`).
    """
    known_N = cooccurrence_ND.any(axis=1)
    centred_ND = np.zeros_like(cooccurrence_ND)
    if known_N.any():
        centred_ND[known_N] = cooccurrence_ND[known_N] - cooccurrence_ND[known_N].mean(axis=0)
    scale = weight * _spread(text_NE - text_NE.mean(axis=0)) / max(_spread(centred_ND), 1e-12)
    return np.ascontiguousarray(np.concatenate([text_NE, scale * centred_ND], axis=1), dtype=np.float32)


def pad_vectors(x_ME: np.ndarray, width: int) -> np.ndarray:
    """(M, width): rows with zeros behind them; text vectors of items that nobody has consumed yet, as if joined."""
    return np.pad(x_ME, ((0, 0), (0, width - x_ME.shape[1])))


def _positive_information(counts_NN: sparse.csr_array) -> sparse.csr_array:
    """max(0, log p(i, j) / (p(i) p'(j))) with p' the smoothed frequency."""
    pairs = sparse.coo_array(counts_NN + counts_NN.T)
    frequency_N = np.asarray(pairs.sum(axis=1)).ravel()
    smoothed_N = frequency_N**SMOOTHING
    expected = frequency_N[pairs.row] * smoothed_N[pairs.col] / max(smoothed_N.sum(), 1e-12)
    information = np.log(np.maximum(pairs.data, 1e-12) / np.maximum(expected, 1e-12))
    positive = information > 0
    where = (pairs.row[positive], pairs.col[positive])
    return sparse.csr_array((information[positive], where), shape=counts_NN.shape)


def _spread(x_ND: np.ndarray) -> float:
    """Root of the mean squared length of centred rows."""
    return float(np.sqrt(np.square(x_ND).sum(axis=1).mean()))
