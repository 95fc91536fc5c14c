"""Blends and ensembles against dense arithmetic, and their weight against trying all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import sparse

from genrec.baselines import ItemToItemSettings, fit_baselines
from genrec.blending import Blend, Ensemble, choose_weight
from genrec.data.interactions import Histories, Interactions
from genrec.data.synthetic import make_synthetic
from genrec.ranking import Ranker, Seen, measure_rankers, without_seen
from genrec.settings import SyntheticConfig

NUM_ITEMS = 25
DATA = make_synthetic(SyntheticConfig(num_users=60, num_items=NUM_ITEMS, num_categories=3, category_fanout=1, seed=1))
ITEM_TO_ITEM = fit_baselines(DATA, "train", ItemToItemSettings(window=2))["item_to_item"]


class Fixed:
    """A few random scores for every last item of a history."""

    def __init__(self, seed: int, num_items: int = NUM_ITEMS):
        rng = np.random.default_rng(seed)
        self.table = rng.random((num_items, num_items)) * (rng.random((num_items, num_items)) < 0.5)

    def scores(
        self, histories: Histories, k: int, seen: Seen = "keep", users: Sequence[str] | None = None
    ) -> sparse.csr_array:
        scores_BN = sparse.csr_array(self.table[histories.last()])
        return without_seen(scores_BN, histories) if seen == "exclude" else scores_BN


def dense(ranker: Ranker, seen: Seen = "keep") -> np.ndarray:
    return ranker.scores(DATA.histories("test"), 5, seen).toarray()


def shares(scores: np.ndarray) -> np.ndarray:
    total = scores.sum(axis=1, keepdims=True)
    return np.divide(scores, total, out=np.zeros_like(scores), where=total > 0)


@pytest.mark.parametrize("seen", ["keep", "exclude"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_blend_adds_shares_of_what_both_list(weight, seen):
    model = Fixed(0)
    expected = weight * shares(dense(model, seen)) + (1 - weight) * shares(dense(ITEM_TO_ITEM, seen))
    found = Blend(model, ITEM_TO_ITEM, weight).scores(DATA.histories("test"), 5, seen)
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-12)
    assert (found.data > 0).all()


def test_where_item_to_item_knows_nothing_the_model_alone_decides():
    nothing = Fixed(0)
    nothing.table[:] = 0
    ranks = np.argsort(-dense(Blend(Fixed(1), nothing, 0.4)), axis=1, kind="stable")
    assert (ranks == np.argsort(-dense(Fixed(1)), axis=1, kind="stable")).all()


def test_a_weight_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match="weight must be from 0 to 1, got 1.5"):
        Blend(Fixed(0), ITEM_TO_ITEM, 1.5)


def test_an_ensemble_is_the_mean_of_its_models():
    models = [Fixed(0), Fixed(1), Fixed(2)]
    np.testing.assert_allclose(dense(Ensemble(models)), sum(dense(model) for model in models) / 3)
    np.testing.assert_array_equal(dense(Ensemble(models[:1])), dense(models[0]))


def test_models_of_different_catalogues_and_no_models_are_no_ensemble():
    with pytest.raises(ValueError, match="catalogues of 25 and of 30 items"):
        dense(Ensemble([Fixed(0), Fixed(1, num_items=30)]))
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])


@pytest.mark.parametrize("seen", ["keep", "exclude"])
def test_the_weight_is_the_best_of_all_on_validation(seen):
    model, weights = Fixed(3), (0.0, 0.2, 0.5, 1.0)
    users = np.arange(0, 60, 2)
    best, values = choose_weight(model, ITEM_TO_ITEM, DATA, seen, 5, users, weights)
    for weight in weights:
        found = measure_rankers({"": Blend(model, ITEM_TO_ITEM, weight)}, DATA, "validation", [5], seen, users)
        assert values[weight] == pytest.approx(found[""]["ndcg@5"])
    assert values[best] == max(values.values())


def test_choosing_a_weight_reads_no_test_item():
    items = DATA.items.copy()
    items[DATA.offsets[1:] - 1] = 0
    changed = Interactions(DATA.users, DATA.offsets, items, DATA.catalogue)
    assert choose_weight(Fixed(3), ITEM_TO_ITEM, changed) == choose_weight(Fixed(3), ITEM_TO_ITEM, DATA)
