"""Is A better than B, or is it luck? Paired tests over users, from the places of their targets.

Every user is measured with both, so the test is on the differences user by user. Two kinds of luck are told apart:

- which users were drawn: a permutation test, which turns the signs of the differences at random;
- which seeds were drawn as well: Welch's t-test with the variances of users and of seeds added up. A config with one
  seed has no such test.

The larger of the two p-values counts, and Holm's correction makes several comparisons as strict as one. The interval
of a difference is that of the same luck: from the t-test's standard error and degrees of freedom where both have
several seeds, else a bootstrap over users. It is of one comparison alone; Holm's correction does not widen it.
No torch.

Shape letters: S seeds, U users.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

SIGNIFICANT = 0.05
RESAMPLES = 4999
POWER = 0.8
"how surely the difference called detectable is found"
_BATCH_NUMBERS = 4_000_000  # held at once while resampling


@dataclass(frozen=True, eq=False)
class Ranked:
    """The places of the targets of U users under a config trained with S seeds."""

    name: str
    users: np.ndarray
    "(U,) indices of the users, ascending"
    ranks_SU: np.ndarray
    "0-based places; -1 where the target is not in the list"
    failed: tuple[int, ...] = ()
    "further seeds that it was to be trained with, and that came to no end"

    def values(self, metric: str) -> np.ndarray:
        """(S, U) the metric of every user."""
        return user_values(self.ranks_SU, metric)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; `difference` is a - b, larger is better."""

    a: str
    b: str
    split: str
    metric: str
    mean_a: float
    mean_b: float
    difference: float
    low: float
    "95 % interval of the difference, over what `interval_over` names"
    high: float
    p_users: float
    "permutation test over users: are these trained models different?"
    p_seeds: float | None
    "over users and seeds: are the configs different? None where one has a single seed"
    p: float
    "the larger of both, after Holm's correction once that is made"
    effect: float
    "mean difference over its standard deviation (Cohen's d of paired values)"
    better: int
    "users for whom a is better"
    worse: int
    users: int
    seeds_a: int
    seeds_b: int
    error: float
    "standard error of the difference, over what `interval_over` names"
    freedom: float
    "degrees of freedom of that error"
    detectable: float
    "difference that this much data finds four times out of five, as strictly as Holm's correction is here"
    comparisons: int = 1
    "that p is corrected for"
    failed_a: tuple[int, ...] = ()
    "seeds that came to no end; who has any is never called the better one"
    failed_b: tuple[int, ...] = ()

    @property
    def interval_over(self) -> str:
        """Whose luck the interval is about: users, or users and seeds."""
        return "users" if self.p_seeds is None else "users and seeds"

    @property
    def p_alone(self) -> float:
        """Before the correction for several comparisons."""
        return max(self.p_users, self.p_seeds or 0.0)

    @property
    def ahead(self) -> str | None:
        """The one with the better numbers, or None where they can't be told apart."""
        if self.p >= SIGNIFICANT:
            return None
        return self.a if self.difference > 0 else self.b

    @property
    def winner(self) -> str | None:
        """The better one; None where they can't be told apart, and where the one ahead has failed with a seed: the
        seeds that are left are those on which it went well."""
        failed = self.failed_a if self.ahead == self.a else self.failed_b
        return None if failed else self.ahead

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, with the verdict."""
        return dataclasses.asdict(self) | {
            "freedom": self.freedom if math.isfinite(self.freedom) else None,
            "interval_over": self.interval_over,
            "winner": self.winner,
            "verdict": self.verdict,
        }

    @property
    def verdict(self) -> str:
        """The comparison in words."""
        if self.ahead is None:
            return f"{self._undecided()}{self._caveat()}"
        sign = 1 if self.ahead == self.a else -1
        behind = self.b if sign == 1 else self.a
        best, other = (self.mean_a, self.mean_b)[::sign]
        relative = f", +{(best - other) / other:.1%}" if other else ""
        verb = "beats" if self.winner else "is ahead of"
        return (
            f"{self.ahead} {verb} {behind} in {self.split} {self.metric} ({_p(self.p)}): "
            f"{best:.4f} against {other:.4f}{relative}; {self._size(sign)}.{self._caveat()}"
        )

    def _size(self, sign: int = 1) -> str:
        """How large the difference is; `sign` -1: seen from b."""
        low, high = sorted((sign * self.low, sign * self.high))
        seeds = "" if self.p_seeds is None else f" and {self.seeds_a} + {self.seeds_b} seeds"
        return (
            f"95 % interval of the difference {low:.4f} to {high:.4f} over {self.users:,} users{seeds}, "
            f"effect size {sign * self.effect:.3f}"
        )

    def _undecided(self) -> str:
        text = (
            f"{self.a} and {self.b} can't be told apart with this much data "
            f"({self.split} {self.metric} {self.mean_a:.4f} against {self.mean_b:.4f}, {_p(self.p)})"
        )
        if self.difference == 0 and self.better == self.worse == 0:
            return f"{text}: no user's value differs."
        if self.p_users < SIGNIFICANT <= (self.p_seeds or 0):
            text += "; these very models differ, but not by more than other seeds of one config do"
        if self.p_alone < SIGNIFICANT:
            text += f"; alone it would be a difference ({_p(self.p_alone)}), as one of {self.comparisons} it is not"
        text += f"; {self._size()}"
        return f"{text}; with it a difference of about {self.detectable:.4f} would be found."

    def _caveat(self) -> str:
        text = ""
        if self.ahead is not None and self.winner is None:
            failed = seeds_in_words(self.failed_a if self.ahead == self.a else self.failed_b)
            text = f" It is not called better: {self.ahead} failed with {failed}, which nobody knows the numbers of."
        single = "" if self.p_seeds is not None else " A single seed cannot tell what another would change."
        return text + single if self.better or self.worse else text


def seeds_in_words(seeds: Sequence[int]) -> str:
    """`seed 1`, `seeds 1, 2`."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def user_values(ranks: np.ndarray, metric: str) -> np.ndarray:
    """`recall@K`, `ndcg@K` or `mrr@K` of every user from 0-based places, negative where the target is not listed."""
    name, _, cutoff = metric.partition("@")
    hit = (ranks >= 0) & (ranks < int(cutoff))
    place = np.where(hit, ranks, 0)
    gains = {"recall": np.ones(place.shape), "ndcg": 1.0 / np.log2(place + 2.0), "mrr": 1.0 / (place + 1.0)}
    return np.where(hit, gains[name], 0.0)


def compare(a: Ranked, b: Ranked, metric: str, split: str = "test") -> Comparison:
    """Test a against b on the users that both have; the same input gives the same numbers every time."""
    users, in_a, in_b = np.intersect1d(a.users, b.users, assume_unique=True, return_indices=True)
    if not len(users):
        raise ValueError(f"{a.name} and {b.name} have no user in common")
    values_a, values_b = a.values(metric)[:, in_a], b.values(metric)[:, in_b]
    difference_U = values_a.mean(axis=0) - values_b.mean(axis=0)
    difference = float(difference_U.mean())
    if min(len(values_a), len(values_b)) > 1:
        error, freedom = standard_error(difference_U, [values_a, values_b])
        p_seeds = _t_p(difference, error, freedom)
        low, high = t_interval(difference, error, freedom)
    else:
        error, freedom = standard_error(difference_U, [])
        p_seeds = None
        low, high = _bootstrap_interval(difference_U)
    p_users = _permutation_p(difference_U)
    deviation = float(difference_U.std(ddof=1)) if len(users) > 1 else 0.0
    return Comparison(
        a=a.name,
        b=b.name,
        split=split,
        metric=metric,
        mean_a=float(values_a.mean()),
        mean_b=float(values_b.mean()),
        difference=difference,
        low=low,
        high=high,
        p_users=p_users,
        p_seeds=p_seeds,
        p=max(p_users, p_seeds or 0.0),
        effect=difference / deviation if deviation else 0.0,
        better=int((difference_U > 0).sum()),
        worse=int((difference_U < 0).sum()),
        users=len(users),
        seeds_a=len(values_a),
        seeds_b=len(values_b),
        error=error,
        freedom=freedom,
        detectable=detectable(error, freedom, SIGNIFICANT),
        failed_a=a.failed,
        failed_b=b.failed,
    )


def compare_all(pairs: Sequence[tuple[Ranked, Ranked]], metric: str, split: str = "test") -> list[Comparison]:
    """Every pair, with Holm's correction for all of them."""
    found = [compare(a, b, metric, split) for a, b in pairs]
    alone = [comparison.p for comparison in found]
    return [
        dataclasses.replace(
            comparison,
            p=corrected,
            detectable=detectable(comparison.error, comparison.freedom, holm_level(alone[:place] + alone[place + 1 :])),
            comparisons=len(found),
        )
        for place, (comparison, corrected) in enumerate(zip(found, holm(alone), strict=True))
    ]


def detectable(error: float, freedom: float, level: float) -> float:
    """The difference that is found at `level` with the probability `POWER`."""
    return error * float(stats.t.ppf(1 - level / 2, freedom) + stats.t.ppf(POWER, freedom))


def holm_level(others: Sequence[float]) -> float:
    """Below which p-value one more comparison is decided, when the `others` have these p-values."""
    left = len(others) + 1
    for p in sorted(others):
        if p * left >= SIGNIFICANT:
            break
        left -= 1
    return SIGNIFICANT / left


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the smallest of m is multiplied by m, the next by m - 1, and none falls below one
    before it."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def _permutation_p(difference_U: np.ndarray) -> float:
    """Two-sided p-value of the mean under random signs. Users without a difference have no sign to turn."""
    moved = difference_U[difference_U != 0]
    if not len(moved):
        return 1.0
    result = stats.permutation_test(
        (moved,),
        np.sum,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        vectorized=True,
        batch=max(1, _BATCH_NUMBERS // len(moved)),
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def _bootstrap_interval(difference_U: np.ndarray) -> tuple[float, float]:
    if len(difference_U) < 2 or not difference_U.any():
        mean = float(difference_U.mean())
        return mean, mean
    result = stats.bootstrap(
        (difference_U,),
        np.mean,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_NUMBERS // len(difference_U)),
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def standard_error(difference_U: np.ndarray, seeded: Sequence[np.ndarray]) -> tuple[float, float]:
    """Of the mean difference over users and the seeds of `seeded`, (S, U) each, where they have several; with
    Satterthwaite's degrees of freedom.

    The seeds' means contain a little of the users' variance, so that the error is never too small.
    """
    parts = [difference_U, *(values.mean(axis=1) for values in seeded)]
    squares = [(float(part.var(ddof=1)) / len(part), len(part) - 1) for part in parts if len(part) > 1]
    total = sum(square for square, _ in squares)
    if not total:
        return 0.0, math.inf
    return math.sqrt(total), total**2 / sum(square**2 / freedom for square, freedom in squares)


def t_interval(difference: float, error: float, freedom: float) -> tuple[float, float]:
    """95 %: it holds zero exactly when the t-test's p-value is at least .05."""
    reach = error * float(stats.t.ppf(1 - SIGNIFICANT / 2, freedom))
    return difference - reach, difference + reach


def _t_p(difference: float, error: float, freedom: float) -> float:
    if not error:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stats.t.sf(abs(difference) / error, freedom))


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
