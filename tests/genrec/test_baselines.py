"""Most popular and item-to-item against a slow, obvious reference in plain Python."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest

from genrec.baselines import (
    CORRECTIONS,
    DECAYS,
    WINDOWS,
    ItemToItem,
    ItemToItemSettings,
    MostPopular,
    evaluate_baselines,
    pair_counts,
    top_k,
    tune_item_to_item,
)
from genrec.config import SyntheticConfig
from genrec.data.interactions import Histories, Interactions
from genrec.data.synthetic import SyntheticTruth, make_synthetic, oracle

NUM_ITEMS = 25
DATA = make_synthetic(SyntheticConfig(num_users=60, num_items=NUM_ITEMS, num_categories=3, category_fanout=1, seed=1))
# Weights 1 and 1/2 and decay 1/2 add up without rounding, so that ties are ties in any order of addition.
EXACT = ItemToItemSettings(window=2, decay=0.5)


def slow_scores(
    sequences: list[list[int]], history: list[int], settings: ItemToItemSettings, num_items: int = NUM_ITEMS
) -> list[float]:
    count: dict[tuple[int, int], float] = defaultdict(float)
    popularity = [0] * num_items
    for sequence in sequences:
        for i, item in enumerate(sequence):
            popularity[item] += 1
            for j in range(max(0, i - settings.window), i):
                count[sequence[j], item] += 1 / (i - j)
                if settings.symmetric:
                    count[item, sequence[j]] += 1 / (i - j)
    scores = [0.0] * num_items
    for candidate in range(num_items):
        for age, item in enumerate(reversed(history[-20:])):
            scores[candidate] += settings.decay**age * count[item, candidate]
        scores[candidate] /= max(popularity[candidate], 1) ** settings.correction
    return scores


def slow_metrics(
    all_scores: list[list[float]], histories: list[list[int]], targets: list[int], k: int, exclude: bool
) -> tuple[float, float]:
    hits = gains = 0.0
    for scores, history, target in zip(all_scores, histories, targets, strict=True):
        candidates = [j for j in range(len(scores)) if not (exclude and j in history)]
        best = sorted(candidates, key=lambda j, scores=scores: (-scores[j], j))[:k]
        if target in best:
            hits += 1
            gains += 1 / math.log2(best.index(target) + 2)
    return hits / len(targets), gains / len(targets)


def split_lists(data: Interactions, split: str, withheld: int) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Training sequences, histories and targets as lists."""
    users = [data.history(u).tolist() for u in range(len(data))]
    back = {"validation": 2, "test": 1}[split]
    return [u[:-withheld] for u in users], [u[:-back] for u in users], [u[-back] for u in users]


@pytest.mark.parametrize("settings", [EXACT, ItemToItemSettings(5, 0.8, True, 0.25), ItemToItemSettings(10, 0.3)])
def test_item_to_item_scores_equal_the_definition(settings):
    sequences, histories, _ = split_lists(DATA, "test", withheld=2)
    model = ItemToItem(*DATA.training_sequences(), NUM_ITEMS, settings)
    expected = [slow_scores(sequences, history, settings) for history in histories]
    np.testing.assert_allclose(model.scores(DATA.histories("test")), expected, rtol=1e-10)


@pytest.mark.parametrize("seen", ["keep", "exclude"])
@pytest.mark.parametrize(("split", "fit"), [("validation", "train"), ("test", "train"), ("test", "train+validation")])
def test_evaluation_equals_ranking_every_user_by_sorting(split, fit, seen):
    sequences, histories, targets = split_lists(DATA, split, withheld=1 if "validation" in fit else 2)
    found = evaluate_baselines(DATA, split, [3, 10], seen, fit, EXACT)
    popularity = [float(sum(sequence.count(j) for sequence in sequences)) for j in range(NUM_ITEMS)]
    all_scores = {
        "most_popular": [popularity] * len(histories),
        "item_to_item": [slow_scores(sequences, history, EXACT) for history in histories],
    }
    for name, scores in all_scores.items():
        for k in (3, 10):
            recall, ndcg = slow_metrics(scores, histories, targets, k, seen == "exclude")
            assert found[name][f"recall@{k}"] == pytest.approx(recall)
            assert found[name][f"ndcg@{k}"] == pytest.approx(ndcg)


@pytest.mark.parametrize("seen", ["keep", "exclude"])
def test_ranks_of_targets_are_their_places_in_the_list(seen):
    histories, targets = DATA.histories("test"), DATA.targets("test")
    for model in (
        MostPopular(*DATA.training_sequences(), NUM_ITEMS),
        ItemToItem(*DATA.training_sequences(), NUM_ITEMS, EXACT),
    ):
        ranks = model.target_ranks(histories, targets, seen)
        lists = top_k(model, histories, NUM_ITEMS, seen)
        for u, (rank, target) in enumerate(zip(ranks.tolist(), targets.tolist(), strict=True)):
            if rank < 0:
                assert seen == "exclude"
                assert target in DATA.history(u)[:-1]
            else:
                assert lists[u, rank] == target


def test_recommendations_for_given_histories_leave_out_what_was_seen():
    model = ItemToItem(*DATA.training_sequences(), NUM_ITEMS, EXACT)
    lists = top_k(model, Histories.from_lists([[3, 7], [1]]), 5, seen="exclude")
    assert lists.shape == (2, 5)
    assert not {3, 7} & set(lists[0].tolist())
    assert 1 not in lists[1]


def test_pairs_do_not_cross_users_and_may_repeat():
    offsets, items = np.array([0, 3, 5]), np.array([0, 1, 0, 2, 1])
    counts = pair_counts(offsets, items, 3, window=10).toarray()
    assert counts.tolist() == [[0.5, 1, 0], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("seen", ["keep", "exclude"])
def test_tuning_finds_the_best_of_the_grid_on_validation(seen):
    best = tune_item_to_item(DATA, seen, k=5)
    assert best.window in WINDOWS
    assert best.decay in DECAYS
    assert best.correction in CORRECTIONS
    others = (ItemToItemSettings(), ItemToItemSettings(5, 0.3), ItemToItemSettings(3, 0.9, True, 0.5))
    values = {
        settings: evaluate_baselines(DATA, "validation", [5], seen, settings=settings)["item_to_item"]["ndcg@5"]
        for settings in (best, *others)
    }
    # A small margin for users whom tuning skips: their targets are hit by a low id at most.
    assert values[best] >= max(values.values()) - 0.01


def test_tuning_does_not_read_the_test_items():
    items = DATA.items.copy()
    items[DATA.offsets[1:] - 1] = 0
    changed = Interactions(DATA.users, DATA.offsets, items, DATA.catalogue)
    assert tune_item_to_item(changed) == tune_item_to_item(DATA)


def test_baselines_stand_in_order_below_the_oracle():
    config = SyntheticConfig()
    data = make_synthetic(config)
    found = evaluate_baselines(data, "test", [10], settings=ItemToItemSettings(3, 0.3))
    best = oracle(data, SyntheticTruth.from_config(config), "test", [10])
    assert found["most_popular"]["recall@10"] < found["item_to_item"]["recall@10"] < best["recall@10"]


def test_counts_of_the_validation_targets_are_refused_on_validation():
    with pytest.raises(ValueError, match="use fit 'train'"):
        evaluate_baselines(DATA, "validation", [5], fit="train+validation")
    with pytest.raises(ValueError, match="fit must be one of"):
        evaluate_baselines(DATA, "test", [5], fit="all")  # type: ignore[arg-type]
