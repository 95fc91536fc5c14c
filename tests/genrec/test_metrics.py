"""Recall and NDCG against hand-worked values; rankings against sorting."""

from __future__ import annotations

import math

import numpy as np
import pytest

from genrec.modules.metrics import MetricSums, ranking_metrics, ranks_in_lists, top_k_items


def test_recall_and_ndcg_equal_hand_worked_values():
    # Targets at places 1, 2, 4 and not found: gains 1, 1/log2(3) = .6309, 1/log2(5) = .4307, 0.
    sums = ranking_metrics(np.array([0, 1, 3, -1]), ks=[1, 2, 5], list_length=10)
    assert sums.count == 4
    assert sums.result() == pytest.approx(
        {"recall@1": 0.25, "ndcg@1": 0.25, "recall@2": 0.5, "ndcg@2": 0.40773, "recall@5": 0.75, "ndcg@5": 0.51540},
        abs=1e-5,
    )


def test_a_miss_scores_nothing_at_any_k():
    assert ranking_metrics(np.array([-1, -1]), ks=[1, 10], list_length=10).result() == {
        "recall@1": 0.0, "ndcg@1": 0.0, "recall@10": 0.0, "ndcg@10": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("k", [0, 6])
def test_k_outside_the_list_is_an_error(k):
    with pytest.raises(ValueError, match=r"every K must be in 1..5"):
        ranking_metrics(np.array([0]), ks=[1, k], list_length=5)


def test_torch_ranks_give_the_same_sums():
    torch = pytest.importorskip("torch")
    rank = [0, 4, -1, 2]
    assert ranking_metrics(torch.tensor(rank), [3, 5], 5) == ranking_metrics(np.array(rank), [3, 5], 5)


def test_batches_of_any_size_add_up_to_all_users():
    rank = np.random.default_rng(0).integers(-1, 10, size=37)
    whole = ranking_metrics(rank, [5, 10], 10)
    parts = MetricSums()
    for start in range(0, 37, 16):
        parts.merge(ranking_metrics(rank[start : start + 16], [5, 10], 10))
    parts.merge(MetricSums())
    assert parts.count == 37
    assert parts.result() == pytest.approx(whole.result())


def test_sums_take_torch_and_numpy_scalars_and_refuse_other_metrics():
    torch = pytest.importorskip("torch")
    sums = MetricSums().add({"loss": torch.tensor(1.5)}, torch.tensor(2)).add({"loss": np.float32(0.5)}, np.int64(2))
    assert sums.result() == {"loss": 0.5}
    assert type(sums.count) is int
    with pytest.raises(ValueError, match="metrics differ"):
        sums.add({"other": 1.0}, 1)


def test_no_users_have_no_mean():
    with pytest.raises(ValueError, match="no users"):
        MetricSums().result()


def test_ranks_in_lists_are_places_or_minus_one():
    lists = np.array([[4, 2, 7], [1, 0, 3], [5, 6, 9]])
    assert ranks_in_lists(lists, np.array([7, 1, 2])).tolist() == [2, 0, -1]


@pytest.mark.parametrize("k", [1, 3, 8])
def test_top_k_equals_sorting_by_score_then_id(k):
    scores = np.random.default_rng(k).integers(0, 4, size=(50, 8)).astype(np.float32)
    expected = [sorted(range(8), key=lambda j, row=row: (-row[j], j))[:k] for row in scores]
    assert top_k_items(scores, k).tolist() == expected


def test_top_k_takes_minus_infinity_and_refuses_k_beyond_the_catalogue():
    assert top_k_items(np.array([[-math.inf, -math.inf, 1.0]]), 2).tolist() == [[2, 0]]
    with pytest.raises(ValueError, match=r"1\.\.3"):
        top_k_items(np.zeros((1, 3)), 4)
