"""Recall, NDCG, MRR and coverage against hand-worked values; rankings against sorting; the guide's accumulator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from genrec.decoding import beam_search
from genrec.errors import InputError
from genrec.modules.metrics import (
    Coverage,
    MetricSums,
    TopKAccumulator,
    place_metric_names,
    ranking_metrics,
    ranks_in_lists,
    top_k_items,
)
from genrec.trie import Trie

LEVELS = (3, 3, 2)


def test_the_metrics_equal_hand_worked_values():
    # Targets at places 1, 2, 4 and not found: gains 1, 1/log2(3) = .6309, 1/log2(5) = .4307, 0.
    sums = ranking_metrics(np.array([0, 1, 3, -1]), ks=[1, 2, 5], list_length=10)
    assert sums.count == 4
    assert list(sums.sums) == place_metric_names([1, 2, 5])
    assert sums.result() == pytest.approx(
        {
            "recall@1": 0.25, "ndcg@1": 0.25, "mrr@1": 0.25,
            "recall@2": 0.5, "ndcg@2": 0.40773, "mrr@2": 0.375,
            "recall@5": 0.75, "ndcg@5": 0.51540, "mrr@5": 0.4375,
        },
        abs=1e-5,
    )  # fmt: skip


def test_a_miss_scores_nothing_at_any_k():
    assert set(ranking_metrics(np.array([-1, -1]), ks=[1, 10], list_length=10).result().values()) == {0.0}


@pytest.mark.parametrize("k", [0, 6])
def test_k_outside_the_list_is_an_error(k):
    with pytest.raises(ValueError, match=r"every K must be in 1..5"):
        ranking_metrics(np.array([0]), ks=[1, k], list_length=5)


def test_torch_ranks_give_the_same_sums():
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


# ------------------------------------------------------------------- coverage


def test_coverage_counts_every_listed_item_once_whatever_the_batches():
    lists = np.array([[0, 1, 2], [1, 0, 3], [4, -1, -1]])
    whole, parts = Coverage([1, 3], 10).add(lists), Coverage([1, 3], 10)
    for row in lists:
        parts.add(row[None])
    assert whole.result() == parts.result() == {"coverage@1": 0.3, "coverage@3": 0.5}


# ---------------------------------------------------------------- accumulator


def test_the_accumulator_counts_batches_of_items_and_leaves_padding_out():
    found = TopKAccumulator(k=[1, 2], num_items=8)
    found.accumulate(torch.tensor([3, 5]), torch.tensor([[3, 1], [0, 5]]))
    found.accumulate(torch.tensor([7, -1]), torch.tensor([[1, 2], [-1, -1]]))
    result = found.reduce()
    assert result["users"] == 3
    assert result == pytest.approx(
        {
            "recall@1": 1 / 3, "ndcg@1": 1 / 3, "mrr@1": 1 / 3,
            "recall@2": 2 / 3, "ndcg@2": (1 + 1 / math.log2(3)) / 3, "mrr@2": 1.5 / 3,
            "coverage@1": 3 / 8, "coverage@2": 5 / 8, "users": 3,
        }
    )  # fmt: skip


def test_semantic_ids_are_counted_under_their_own_name():
    found = TopKAccumulator(k=[2])
    found.accumulate([[1, 2], [0, 0]], [[[1, 3], [1, 2]], [[0, 1], [1, 0]]])
    assert found.reduce() == {
        "tuple_recall@2": 0.5, "tuple_ndcg@2": pytest.approx(0.5 / math.log2(3)), "tuple_mrr@2": 0.25, "users": 2,
    }  # fmt: skip


def test_the_accumulator_starts_anew_after_reset_and_has_no_mean_of_nobody():
    found = TopKAccumulator(k=[1])
    found.accumulate([0], [[0]])
    found.reset()
    with pytest.raises(ValueError, match="no users were counted"):
        found.reduce()
    found.accumulate([0], [[1]])
    assert found.reduce()["recall@1"] == 0


def test_lists_that_are_too_short_or_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"every K must be in 1..2"):
        TopKAccumulator(k=[5]).accumulate([0], [[0, 1]])
    with pytest.raises(ValueError, match="lists must be"):
        TopKAccumulator(k=[1]).accumulate([0, 1], [[0, 1]])


@pytest.fixture
def model(make_codes, make_tiger):
    return make_tiger(make_codes(12, LEVELS), LEVELS)


def loader(rows, size=3):
    """A torch loader of (history padded with -1, target) whose last batch is short."""
    histories = torch.full((len(rows), 6), -1)
    for place, (history, _) in enumerate(rows):
        histories[place, : len(history)] = torch.tensor(history)
    data = torch.utils.data.TensorDataset(histories, torch.tensor([target for _, target in rows]))
    return torch.utils.data.DataLoader(data, batch_size=size)


ROWS = [([1, 2, 3], 4), ([5], 6), ([7, 8, 0, 11, 2, 2], 3), ([9, 1], 1), ([4, 4, 4], 10)]


def plain_lists(model):
    """All items, best first, for every row of `ROWS` alone."""

    return [
        beam_search(model, Trie(model.codes_NC), torch.tensor([history]), 12).item_BW[0].tolist() for history, _ in ROWS
    ]


def test_evaluate_measures_a_model_on_a_padded_loader(model):
    lists = plain_lists(model)
    expected = TopKAccumulator(k=[1, 5, 10], num_items=12)
    expected.accumulate([target for _, target in ROWS], [found[:10] for found in lists])
    model.train()
    found = TopKAccumulator(k=[1, 5, 10]).evaluate(model, loader(ROWS), beam_size=12)
    assert model.training
    assert found == pytest.approx(expected.reduce())
    assert found["users"] == len(ROWS)
    assert 0 < found["recall@5"] < 1


def test_evaluate_takes_dicts_semantic_ids_and_wrapped_models_and_skips_padding_rows(model):
    expected = TopKAccumulator(k=[5]).evaluate(model, loader(ROWS), beam_size=12)
    padding = [(torch.full((2, 6), -1), torch.tensor([-1, -1]))]
    dicts = [{"history": history, "target": target} for history, target in [*loader(ROWS), *padding]]
    coded = []
    for history, target in loader(ROWS):
        codes = model.codes_NC[history.clamp(min=0)].masked_fill(history.unsqueeze(2) < 0, -1)
        coded.append((codes, model.codes_NC[target]))
    wrapped = torch.nn.Module()
    wrapped.module = model
    for given, batches in ((model, dicts), (model, coded), (wrapped, loader(ROWS))):
        assert TopKAccumulator(k=[5]).evaluate(given, batches, beam_size=12) == pytest.approx(expected)


def test_semantic_ids_that_items_share_do_not_count_as_items(make_tiger):
    codes = torch.tensor([[0, 0], [0, 0], [1, 2], [2, 1]])
    model = make_tiger(codes, (3, 3))
    batch = (torch.tensor([[2, 3]]), codes[[0]])
    found = TopKAccumulator(k=[1, 4]).evaluate(model, [batch], beam_size=4)
    assert found["tuple_recall@4"] == 1
    assert "recall@4" not in found


def test_users_of_a_model_with_user_tokens_are_ids_or_indices(make_codes, make_tiger):
    model = make_tiger(make_codes(12, LEVELS), LEVELS, num_user_embeddings=50)
    history, target = torch.tensor([[1, 2], [3, 4]]), torch.tensor([5, 6])
    named = TopKAccumulator(k=[12]).evaluate(model, [(history, target, ["anna", "bob"])])

    class Numbered(list):
        """Batches with a data set, as a DataLoader has one."""

    batches = Numbered([(history, target, torch.tensor([1, 0]))])
    with pytest.raises(InputError, match="users must be ids"):
        TopKAccumulator(k=[12]).evaluate(model, batches)
    batches.dataset = type("Data", (), {"interactions": type("Interactions", (), {"users": ["bob", "anna"]})})
    assert TopKAccumulator(k=[12]).evaluate(model, batches) == named
    other = TopKAccumulator(k=[12]).evaluate(model, [(history, target, ["bob", "anna"])])
    assert other["mrr@12"] != named["mrr@12"]
    with pytest.raises(InputError, match="its batches must have users"):
        TopKAccumulator(k=[12]).evaluate(model, [(history, target)])


def test_a_cut_off_beyond_the_beam_and_a_batch_without_targets_are_refused(model):
    with pytest.raises(InputError, match=r"k \(20\) must be at most the beam_size \(10\)"):
        TopKAccumulator(k=[5, 20]).evaluate(model, loader(ROWS), beam_size=10)
    with pytest.raises(InputError, match="target is not among"):
        TopKAccumulator(k=[5]).evaluate(model, [{"history": torch.tensor([[1]])}])
