import numpy as np
import pytest

from genrec.data.cooccurrence import cooccurrence_vectors, join_vectors


def _flat(sequences):
    return np.cumsum([0, *map(len, sequences)]), np.array([i for s in sequences for i in s])


def test_items_that_are_consumed_together_have_near_vectors():
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(10)[:6] + 10 * (user % 3) for user in range(300)]
    vectors = cooccurrence_vectors(*_flat(sequences), 30, 3)
    similar = vectors @ vectors.T
    group = np.arange(30) // 10
    same = group[:, None] == group[None, :]
    assert similar[same].mean() > 0.9
    assert abs(similar[~same]).mean() < 0.1


def test_values_equal_pointwise_mutual_information_worked_out_pair_by_pair():
    sequences = [[0, 1, 2], [1, 2], [2, 0, 3], [3, 1]]
    counts = np.zeros((4, 4))
    for sequence in sequences:
        for i, a in enumerate(sequence):
            for j, b in enumerate(sequence):
                if i != j:
                    counts[a, b] += 1 / abs(i - j)
    p = counts.sum(1)
    smoothed = p**0.75 / (p**0.75).sum()
    with np.errstate(divide="ignore"):
        expected = np.maximum(0, np.log(counts / (p[:, None] * smoothed[None, :])))
    expected[counts == 0] = 0
    from genrec.baselines import pair_counts
    from genrec.data.cooccurrence import _positive_information

    got = _positive_information(pair_counts(*_flat(sequences), 4, 10)).toarray()
    assert got == pytest.approx(expected)


def test_an_item_without_neighbours_is_placed_by_its_text_alone():
    text = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    cooccurrence = cooccurrence_vectors(*_flat([[0, 1], [1, 2], [3]]), 4, 2)
    assert not cooccurrence[3].any()
    joined = join_vectors(text, cooccurrence, 0.5)
    assert joined.shape == (4, 3 + cooccurrence.shape[1])
    assert not joined[3, 3:].any()


def test_the_weight_is_the_ratio_of_the_parts_lengths():
    rng = np.random.default_rng(1)
    text = rng.normal(size=(50, 6)) * 9 + 4
    joined = join_vectors(text, rng.normal(size=(50, 4)), 0.5)
    assert joined[:, :6] == pytest.approx(text, abs=1e-5)
    text_spread, other_spread = (part.var(axis=0).sum() ** 0.5 for part in (joined[:, :6], joined[:, 6:]))
    assert other_spread == pytest.approx(0.5 * text_spread, rel=1e-5)
