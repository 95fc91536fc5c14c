"""The tests behind a verdict: values worked out by hand, plain loops beside the fast code, and errors that are rare
as often as they say."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from genrec.modules.metrics import ranking_metrics
from sweeps.significance import (
    Comparison,
    Ranked,
    compare,
    compare_all,
    holm,
    holm_level,
    standard_error,
    user_values,
)


def ranked(name: str, ranks_SU: list[list[int]] | np.ndarray, users: list[int] | None = None) -> Ranked:
    ranks = np.asarray(ranks_SU)
    return Ranked(name, np.arange(ranks.shape[1]) if users is None else np.asarray(users), ranks)


def many(name: str, hit_rate: float, seed: int, seeds: int = 3, users: int = 1500, noise: float = 0.0) -> Ranked:
    """Places under a model that finds a share of the targets, a share that other seeds change."""
    rng = np.random.default_rng(seed)
    rates = hit_rate + noise * rng.standard_normal(seeds)
    ease_U = np.random.default_rng(0).random(users)  # the same users are easy for every model
    hit_SU = ease_U * 0.7 + rng.random((seeds, users)) * 0.3 < rates[:, None]
    return ranked(name, np.where(hit_SU, rng.integers(0, 10, (seeds, users)), -1))


@pytest.mark.parametrize("metric", ["recall@5", "ndcg@5", "mrr@5", "ndcg@10"])
def test_the_users_values_add_up_to_the_librarys_metrics(metric: str) -> None:
    ranks = np.array([0, 1, 4, 5, 9, 10, -1])
    expected = ranking_metrics(ranks, [int(metric.split("@")[1])], 20).result()[metric]
    assert user_values(ranks, metric).mean() == pytest.approx(expected)


def test_the_permutation_p_value_is_the_share_of_sign_patterns_at_least_as_far_from_zero() -> None:
    a = ranked("a", [[0, 0, 1, 3, -1, 0, 2, 0, 5]])
    b = ranked("b", [[0, 1, 3, -1, 0, 4, 2, -1, 6]])
    differences = user_values(a.ranks_SU[0], "ndcg@10") - user_values(b.ranks_SU[0], "ndcg@10")
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in itertools.product([1, -1], repeat=9)
    ]
    share = sum(abs(total) >= abs(differences.sum()) - 1e-12 for total in sums) / len(sums)
    assert compare(a, b, "ndcg@10").p_users == pytest.approx(share)


def test_the_interval_of_a_single_seed_is_that_of_resampled_users() -> None:
    a, b = many("a", 0.3, 1, seeds=1, users=500), many("b", 0.28, 2, seeds=1, users=500)
    differences = (a.values("ndcg@10") - b.values("ndcg@10")).mean(axis=0)
    rng = np.random.default_rng(5)
    means = [rng.choice(differences, len(differences)).mean() for _ in range(3000)]
    found = compare(a, b, "ndcg@10")
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=6e-4)
    assert found.low < found.difference < found.high
    assert found.interval_over == "users"


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_interval_of_several_seeds_holds_the_true_difference_as_often_as_it_says(
    seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides are one config whose seeds scatter by more than the users' luck does."""
    monkeypatch.setattr("sweeps.significance.RESAMPLES", 1)  # the permutation test has no part in the interval
    held = 0
    for trial in range(250):
        rng = np.random.default_rng(trial)
        rates = 0.2 + 0.02 * rng.standard_normal(2 * seeds)
        hit = rng.random((2 * seeds, 800)) < rates[:, None]
        found = compare(
            ranked("a", np.where(hit[:seeds], 0, -1)), ranked("b", np.where(hit[seeds:], 0, -1)), "recall@1"
        )
        held += found.low <= 0 <= found.high
        assert (found.low <= 0 <= found.high) == (found.p_seeds is not None and found.p_seeds >= 0.05)
    assert 0.9 < held / 250 < 0.995


def test_users_are_paired_by_their_index_whatever_the_order() -> None:
    a = ranked("a", [[0, -1, 2]], users=[3, 7, 9])
    b = ranked("b", [[2, 0, -1]], users=[9, 3, 8])
    found = compare(a, b, "recall@10")
    assert (found.users, found.difference, found.better, found.worse) == (2, 0.0, 0, 0)


def test_effect_size_is_the_mean_difference_over_its_deviation() -> None:
    found = compare(ranked("a", [[0, 0, -1, 0]]), ranked("b", [[-1, 0, 0, -1]]), "recall@1")
    differences = [1, 0, -1, 1]
    assert found.effect == pytest.approx(np.mean(differences) / np.std(differences, ddof=1))
    assert (found.better, found.worse) == (2, 1)


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_several_comparisons_are_corrected_together() -> None:
    a, b, c = many("a", 0.3, 1), many("b", 0.2, 2), many("c", 0.29, 3)
    alone = [compare(a, b, "ndcg@10").p, compare(a, c, "ndcg@10").p]
    assert [one.p for one in compare_all([(a, b), (a, c)], "ndcg@10")] == pytest.approx(holm(alone))


def test_the_level_that_holms_correction_leaves_is_the_largest_p_that_it_decides() -> None:
    for others in ([], [0.001], [0.03], [0.001, 0.04], [0.01, 0.2], [0.5, 0.6, 0.7], [0.001, 0.002, 0.003]):
        level = holm_level(others)
        assert holm([0.999 * level, *others])[0] < 0.05
        assert holm([1.001 * level, *others])[0] >= 0.05


def test_what_would_be_found_is_as_strict_as_the_correction_and_the_verdict_says_when_that_decides() -> None:
    a, b, c = many("a", 0.3, 1), many("b", 0.3, 2), many("c", 0.3, 3)
    alone = compare(a, b, "ndcg@10")
    together = compare_all([(a, b), (a, c)], "ndcg@10")[0]
    assert together.detectable > alone.detectable
    beside_a_clear_one = compare_all([(a, b), (a, many("d", 0.05, 4))], "ndcg@10")[0]
    assert beside_a_clear_one.detectable == pytest.approx(alone.detectable)
    close = dataclasses.replace(together, p_users=0.01, p_seeds=0.03, p=0.06)
    assert close.winner is None
    assert "alone it would be a difference (p = 0.03), as one of 2 it is not" in close.verdict


def test_a_clear_difference_is_said_with_its_numbers_from_either_side() -> None:
    good, bad = many("A", 0.35, 1), many("B", 0.25, 2)
    for found in (compare(good, bad, "ndcg@10"), compare(bad, good, "ndcg@10")):
        assert found.winner == "A"
        assert found.verdict.startswith("A beats B in test ndcg@10 (p")
        assert "over 1,500 users and 3 + 3 seeds, effect size 0." in found.verdict
        low, high = map(float, found.verdict.split("difference ")[1].split(" over")[0].split(" to "))
        assert 0 < low < abs(found.difference) < high


def test_equal_models_cannot_be_told_apart_and_the_verdict_says_what_could() -> None:
    found = compare(many("A", 0.3, 1), many("B", 0.3, 2), "ndcg@10")
    assert found.winner is None
    assert found.verdict.startswith("A and B can't be told apart with this much data (test ndcg@10 ")
    assert f"a difference of about {found.detectable:.4f} would be found" in found.verdict
    assert f"95 % interval of the difference {found.low:.4f} to {found.high:.4f} over 1,500 users" in found.verdict
    assert f"effect size {found.effect:.3f}" in found.verdict


def test_the_same_lists_have_no_difference_to_test() -> None:
    a = many("A", 0.3, 1)
    found = compare(a, Ranked("B", a.users, a.ranks_SU), "ndcg@10")
    assert (found.difference, found.p, found.effect) == (0, 1, 0)
    assert found.low == -found.high
    assert found.verdict.endswith("no user's value differs.")


def test_what_another_seed_would_change_is_no_victory() -> None:
    """Both configs are the same; their seeds scatter by more than users do."""
    found = compare(many("A", 0.33, 1, noise=0.04), many("B", 0.30, 9, noise=0.04), "recall@10")
    assert found.p_users < 0.001
    assert found.winner is None
    assert "not by more than other seeds of one config do" in found.verdict


def test_one_seed_is_tested_over_users_and_says_so() -> None:
    found = compare(many("A", 0.35, 1, seeds=1), many("B", 0.25, 2, seeds=1), "ndcg@10")
    assert found.p_seeds is None
    assert found.winner == "A"
    assert found.verdict.endswith("A single seed cannot tell what another would change.")


def test_configs_that_are_equal_are_seldom_called_different() -> None:
    """200 experiments without a difference, seeds scattering: the false verdicts stay near 5 of 100 or below."""
    wrong = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        rates = 0.2 + 0.02 * rng.standard_normal(6)
        hit = rng.random((6, 300)) < rates[:, None]
        a, b = ranked("a", np.where(hit[:3], 0, -1)), ranked("b", np.where(hit[3:], 0, -1))
        wrong += _quick_p(a, b) < 0.05
    assert wrong <= 18


def _quick_p(a: Ranked, b: Ranked) -> float:
    """The p-value over users and seeds alone: what decides here, without the resampling."""
    from sweeps.significance import _t_p

    values_a, values_b = a.values("recall@1"), b.values("recall@1")
    difference = values_a.mean(axis=0) - values_b.mean(axis=0)
    return _t_p(float(difference.mean()), *standard_error(difference, [values_a, values_b]))


def test_numbers_are_the_same_every_time_and_finite() -> None:
    a, b = many("A", 0.3, 1), many("B", 0.29, 2)
    first, second = compare(a, b, "ndcg@10"), compare(a, b, "ndcg@10")
    assert first == second
    assert all(math.isfinite(v) for v in first.to_dict().values() if isinstance(v, float))


def test_a_comparison_as_json_holds_verdict_and_winner() -> None:
    found: Comparison = compare(many("A", 0.3, 1), many("B", 0.3, 2), "ndcg@10")
    assert found.to_dict().keys() >= {"a", "b", "p", "p_users", "p_seeds", "low", "high", "effect", "verdict", "winner"}


def test_no_common_user_is_an_error() -> None:
    with pytest.raises(ValueError, match="no user in common"):
        compare(ranked("a", [[0]], users=[1]), ranked("b", [[0]], users=[2]), "ndcg@10")
