"""The made-up catalogue: its process is exact, its oracle is the best, and it is the same in every process."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from genrec.data.filtering import split_in_time
from genrec.data.interactions import Histories
from genrec.data.synthetic import SyntheticTruth, make_synthetic, oracle
from genrec.settings import SyntheticConfig

SMALL = SyntheticConfig(num_users=200, num_items=30, num_categories=4, category_fanout=2, successors=3, seed=3)


def slow_transition(truth: SyntheticTruth, config: SyntheticConfig) -> np.ndarray:
    """P(next | last) for all pairs by the formula of the module's docstring, one pair at a time."""
    num_items = config.num_items
    matrix = np.zeros((num_items, num_items))
    for i in range(num_items):
        category = truth.category_N[i]
        for f, next_category in enumerate(truth.next_category_GF[category]):
            prob = truth.next_category_prob_GF[category, f]
            members = truth.members_N[truth.bounds[next_category] : truth.bounds[next_category + 1]].tolist()
            weights = [(place + 1) ** -config.zipf for place in range(len(members))]
            for j, weight in zip(members, weights, strict=True):
                assert truth.category_N[j] == next_category
                matrix[i, j] += prob * (1 - config.successor_share) * weight / sum(weights)
            for s, j in enumerate(truth.successors_NFS[i, f]):
                assert j in members
                matrix[i, j] += prob * config.successor_share * truth.successor_prob_S[s]
    return matrix


def slow_oracle(data, matrix: np.ndarray, split: str, k: int, exclude: bool) -> tuple[float, float, float]:
    hits = gains = expected = 0.0
    back = {"validation": 2, "test": 1}[split]
    for u in range(len(data)):
        *history, target = data.history(u).tolist()[: len(data.history(u)) - back + 1]
        row = matrix[history[-1]]
        candidates = [j for j in range(len(row)) if not (exclude and j in history)]
        best = sorted(candidates, key=lambda j: (-row[j], j))[:k]
        expected += sum(row[j] for j in best)
        if target in best:
            hits += 1
            gains += 1 / math.log2(best.index(target) + 2)
    return hits / len(data), gains / len(data), expected / len(data)


def test_transition_equals_the_formula_and_rows_sum_to_one():
    truth = SyntheticTruth.from_config(SMALL)
    matrix = truth.transition(np.arange(SMALL.num_items))
    np.testing.assert_allclose(matrix, slow_transition(truth, SMALL), atol=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("seen", ["keep", "exclude"])
def test_oracle_equals_brute_force_over_the_dense_matrix(split, seen):
    data, truth = make_synthetic(SMALL), SyntheticTruth.from_config(SMALL)
    matrix = truth.transition(np.arange(SMALL.num_items))
    found = oracle(data, truth, split, [3, 5], seen)
    for k in (3, 5):
        recall, ndcg, expected = slow_oracle(data, matrix, split, k, seen == "exclude")
        assert found[f"recall@{k}"] == pytest.approx(recall)
        assert found[f"ndcg@{k}"] == pytest.approx(ndcg)
        assert found[f"expected_recall@{k}"] == pytest.approx(expected)


def test_users_move_as_the_truth_says():
    config = SMALL.model_copy(update={"num_users": 30_000})
    data, truth = make_synthetic(config), SyntheticTruth.from_config(config)
    inside = np.ones(len(data.items), dtype=bool)
    inside[data.offsets[1:] - 1] = False
    at = np.flatnonzero(inside)
    counts = np.zeros((30, 30))
    np.add.at(counts, (data.items[at], data.items[at + 1]), 1)
    matrix = truth.transition(np.arange(30))
    visits = counts.sum(axis=1, keepdims=True)
    assert counts[matrix == 0].sum() == 0
    deviation = (counts - visits * matrix) / np.sqrt(visits * matrix * (1 - matrix) + 1e-9)
    assert np.abs(deviation[matrix > 0]).max() < 5


def test_the_default_catalogue_has_a_signal_far_above_popularity():
    config = SyntheticConfig()
    data, truth = make_synthetic(config), SyntheticTruth.from_config(config)
    best = oracle(data, truth, "test", [10])
    popular = np.argsort(-np.bincount(data.training_sequences()[1], minlength=300), kind="stable")[:10]
    most_popular = np.isin(data.targets("test"), popular).mean()
    assert 0.35 < best["recall@10"] < 0.65
    assert most_popular < 0.4 * best["recall@10"]
    assert best["recall@10"] == pytest.approx(best["expected_recall@10"], abs=0.05)


def test_sizes_lengths_and_texts_are_as_configured():
    config = SyntheticConfig(num_users=4000, num_items=500, num_categories=30, mean_length=8)
    data = make_synthetic(config)
    statistics = data.statistics()
    assert (statistics["users"], statistics["items"], statistics["min_length"]) == (4000, 500, 5)
    assert statistics["mean_length"] == pytest.approx(8, abs=0.3)
    assert len(set(data.catalogue.titles)) == 500
    truth = SyntheticTruth.from_config(config)
    category = [text.rsplit("categories: ", 1)[1] for text in data.catalogue.texts]
    for a, b in ((0, 1), (7, 400), (33, 250)):
        assert (category[a] == category[b]) == (truth.category_N[a] == truth.category_N[b])
    assert len(set(category)) == 30


def test_users_have_a_clock_and_a_temporal_split_that_the_oracle_reads():
    data, truth = make_synthetic(SMALL), SyntheticTruth.from_config(SMALL)
    data = split_in_time(data, 0.2, 0.2)
    assert data.timestamps.min() >= 1_577_836_800
    matrix = truth.transition(np.arange(SMALL.num_items))
    hits = []
    for u in data.users_of("test"):
        end = data.history_ends("test")[u]
        row = matrix[data.items[end - 1]]
        hits.append(data.items[end] in sorted(range(len(row)), key=lambda j: (-row[j], j))[:5])
    assert 20 < len(hits) < len(data)
    assert oracle(data, truth, "test", [5])["recall@5"] == pytest.approx(np.mean(hits))


def test_more_users_leave_the_catalogue_as_it_is():
    few, many = SyntheticConfig(num_users=50), SyntheticConfig(num_users=90)
    assert make_synthetic(few).catalogue.hash == make_synthetic(many).catalogue.hash
    assert make_synthetic(few).data_hash != make_synthetic(few.model_copy(update={"seed": 1})).data_hash


def test_another_process_makes_the_same_data():
    code = (
        "from genrec.settings import SyntheticConfig\nfrom genrec.data.synthetic import make_synthetic\n"
        "print(make_synthetic(SyntheticConfig(num_users=60)).data_hash)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == make_synthetic(SyntheticConfig(num_users=60)).data_hash


@pytest.mark.parametrize(
    "values",
    [
        {"num_categories": 2, "category_fanout": 9},
        {"num_items": 12, "num_categories": 12, "zipf": 0.0},
        {"stay": 1.0, "successor_share": 1.0, "successors": 1},
        {"stay": 0.0, "successor_share": 0.0, "mean_length": 5.0},
        {"seed": -7},
    ],
)
def test_extreme_settings_still_give_a_distribution(values):
    config = SMALL.model_copy(update=values)
    data, truth = make_synthetic(config), SyntheticTruth.from_config(config)
    matrix = truth.transition(np.arange(config.num_items))
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    last, following = data.histories("test").last(), data.targets("test")
    assert (matrix[last, following] > 0).all()


def test_oracle_refuses_more_places_than_items():
    data = make_synthetic(SMALL)
    assert isinstance(data.histories("test"), Histories)
    with pytest.raises(ValueError, match=r"1\.\.30"):
        oracle(data, SyntheticTruth.from_config(SMALL), "test", [31])
