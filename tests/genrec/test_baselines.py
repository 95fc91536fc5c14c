"""Most popular and item-to-item against a slow, obvious reference in plain Python."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from pathlib import Path

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
    fit_baselines,
    pair_counts,
    tune_item_to_item,
)
from genrec.data.filtering import split_in_time
from genrec.data.interactions import Histories, Interactions
from genrec.data.sources import load_dataset
from genrec.data.synthetic import SyntheticTruth, make_synthetic, oracle
from genrec.ranking import best_items
from genrec.settings import DatasetConfig, SyntheticConfig

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
        candidates = [j for j in range(len(scores)) if scores[j] > 0 and not (exclude and j in history)]
        best = sorted(candidates, key=lambda j, scores=scores: (-scores[j], j))[:k]
        if target in best:
            hits += 1
            gains += 1 / math.log2(best.index(target) + 2)
    return hits / len(targets), gains / len(targets)


def split_lists(data: Interactions, split: str, fit: str) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Sequences to fit on, histories and targets as lists, of a leave-one-out split."""
    users = [data.history(u).tolist() for u in range(len(data))]
    withheld, back = {"train": 2, "train+validation": 1}[fit], {"validation": 2, "test": 1}[split]
    return [u[:-withheld] for u in users], [u[:-back] for u in users], [u[-back] for u in users]


@pytest.mark.parametrize("settings", [EXACT, ItemToItemSettings(5, 0.8, True, 0.25), ItemToItemSettings(10, 0.3)])
def test_item_to_item_scores_equal_the_definition(settings):
    sequences, histories, _ = split_lists(DATA, "test", "train")
    model = ItemToItem.fit(*DATA.training_sequences(), NUM_ITEMS, settings)
    expected = [slow_scores(sequences, history, settings) for history in histories]
    np.testing.assert_allclose(model.scores(DATA.histories("test"), 10).toarray(), expected, rtol=1e-10)


@pytest.mark.parametrize("seen", ["keep", "exclude"])
@pytest.mark.parametrize(("split", "fit"), [("validation", "train"), ("test", "train"), ("test", "train+validation")])
def test_evaluation_equals_ranking_every_user_by_sorting(split, fit, seen):
    sequences, histories, targets = split_lists(DATA, split, fit)
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
@pytest.mark.parametrize("k", [1, 4, NUM_ITEMS])
def test_most_popular_lists_the_first_items_that_a_user_may_get(k, seen):
    sequences, histories, _ = split_lists(DATA, "test", "train")
    counts = [sum(sequence.count(j) for sequence in sequences) for j in range(NUM_ITEMS)]
    model = fit_baselines(DATA, "train", EXACT)["most_popular"]
    items_BK, scores_BK = best_items(model.scores(DATA.histories("test"), k, seen), k)
    for row, history in enumerate(histories):
        allowed = [j for j in range(NUM_ITEMS) if counts[j] and not (seen == "exclude" and j in history)]
        best = sorted(allowed, key=lambda j: (-counts[j], j))[:k]
        assert items_BK[row].tolist() == best + [-1] * (k - len(best))
        assert scores_BK[row, : len(best)].tolist() == [counts[j] for j in best]


def test_an_item_without_any_interaction_is_not_popular():
    assert MostPopular(np.array([0, 2, 0])).scores(Histories.from_lists([[0]]), 3).toarray().tolist() == [[0, 2, 0]]


def test_recommendations_for_given_histories_leave_out_what_was_seen():
    model = ItemToItem.fit(*DATA.training_sequences(), NUM_ITEMS, EXACT)
    lists, _ = best_items(model.scores(Histories.from_lists([[3, 7], [1]]), 5, seen="exclude"), 5)
    assert lists.shape == (2, 5)
    assert not {3, 7} & set(lists[0].tolist())
    assert 1 not in lists[1]


def test_new_items_change_no_score_and_have_none():
    model = ItemToItem.fit(*DATA.training_sequences(), NUM_ITEMS, EXACT)
    histories = DATA.histories("test")
    before, after = (ranker.scores(histories, 5).toarray() for ranker in (model, model.with_new_items(3)))
    np.testing.assert_array_equal(after, np.pad(before, ((0, 0), (0, 3))))
    assert not model.with_new_items(1).scores(Histories.from_lists([[NUM_ITEMS]]), 5).nnz


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
    assert values[best] == max(values.values())


def test_tuning_does_not_read_the_test_items():
    items = DATA.items.copy()
    items[DATA.offsets[1:] - 1] = 0
    changed = Interactions(DATA.users, DATA.offsets, items, DATA.catalogue)
    assert tune_item_to_item(changed) == tune_item_to_item(DATA)


@pytest.mark.parametrize("fit", ["train", "train+validation"])
def test_under_a_temporal_split_only_users_with_a_target_count(fit):
    """The periods, not the last two items of a user, decide what is counted."""
    rng = np.random.default_rng(0)
    times = np.concatenate([np.sort(rng.integers(0, 10_000, length)) for length in DATA.lengths])
    data = split_in_time(Interactions(DATA.users, DATA.offsets, DATA.items, DATA.catalogue, times), 0.2, 0.2)
    users = data.users_of("test").tolist()
    before = data.periods.test if fit == "train+validation" else data.periods.validation
    spans = [slice(data.offsets[u], data.offsets[u + 1]) for u in range(len(data))]
    sequences = [[i for i, t in zip(data.items[s].tolist(), times[s], strict=True) if t < before] for s in spans]
    histories = [data.items[spans[u]][times[spans[u]] < data.periods.test].tolist() for u in users]
    targets = [data.items[spans[u]][times[spans[u]] >= data.periods.test].tolist()[0] for u in users]
    assert 0 < len(users) < len(data)
    found = evaluate_baselines(data, "test", [5], "keep", fit, EXACT)
    scores = [slow_scores(sequences, history, EXACT) for history in histories]
    recall, ndcg = slow_metrics(scores, histories, targets, 5, exclude=False)
    assert found["item_to_item"]["recall@5"] == pytest.approx(recall)
    assert found["item_to_item"]["ndcg@5"] == pytest.approx(ndcg)
    assert found["item_to_item"]["users"] == len(users)
    assert tune_item_to_item(data).window in WINDOWS


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


@pytest.fixture
def beauty() -> Interactions:
    folder = Path(os.environ.get("GENREC_DATA", Path(__file__).parents[3] / "shared" / "data")) / "beauty"
    if not (folder / "sequential_data.txt").is_file():
        pytest.skip(f"no Amazon Beauty in {folder}: name the folder that holds beauty/ in GENREC_DATA")
    return load_dataset(DatasetConfig(source="sequential", dataset_folder=str(folder)))


@pytest.mark.slow
def test_the_figures_of_beauty_are_those_that_were_measured_elsewhere(beauty):
    """Item-to-item by the field's settings; equal scores, of which there are many, may be ordered in another way."""
    expected = {
        ("train", "exclude"): {"recall@5": 0.0613, "recall@10": 0.0827, "ndcg@5": 0.0448, "ndcg@10": 0.0517},
        ("train", "keep"): {"recall@5": 0.0570, "recall@10": 0.0788, "ndcg@5": 0.0410, "ndcg@10": 0.0480},
        ("train+validation", "exclude"): {"recall@5": 0.0707, "recall@10": 0.0952, "ndcg@10": 0.0599},
        ("train+validation", "keep"): {"recall@5": 0.0669, "recall@10": 0.0906, "ndcg@10": 0.0555},
    }
    for (fit, seen), values in expected.items():
        found = evaluate_baselines(beauty, "test", [5, 10], seen, fit, ItemToItemSettings())["item_to_item"]
        assert {name: found[name] for name in values} == pytest.approx(values, abs=0.0006)
        assert found["users"] == 22_363
