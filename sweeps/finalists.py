"""Re-evaluation: the best trials and the base, each trained with several seeds, measured on the test split.

The winner is the finalist with the best mean of the sweep's metric on *validation*; the test split only tells how good
it is. Statistics are the mean and the sample standard deviation over seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from genrec.config import RunConfig
from sweeps.records import FinalistRun, PlannedRun
from sweeps.spec import SweepSpec

BASE = "base"


def plan_finalists(spec: SweepSpec, best: Sequence[tuple[int, RunConfig]]) -> list[PlannedRun]:
    """Every finalist and the base with every seed; the first seed of all comes first, so that a re-evaluation that is
    interrupted has compared everyone once. All get the same seeds, from the sweep's own on."""
    runs = []
    for seed in range(spec.seed, spec.seed + spec.finalists.seeds):
        contenders: list[tuple[int | str, RunConfig]] = [*best, (BASE, spec.base_config())]
        for finalist, config in contenders:
            values = spec.finalist_config(config).to_dict() | {"seed": seed}
            runs.append(PlannedRun(finalist, values, seed))
    return runs


def summarise(runs: Sequence[FinalistRun]) -> list[dict[str, Any]]:
    """One row a finalist from its completed runs: seeds, and mean and std of every metric."""
    rows: dict[int | str, list[FinalistRun]] = {}
    for run in runs:
        if run.status == "completed":
            rows.setdefault(run.finalist, []).append(run)
    return [
        {
            "trial": finalist_name(finalist),
            "seeds": sorted(run.seed for run in found),
            "test": _spread([run.result["test"] for run in found]),
            "validation": _spread([run.result["validation"] for run in found]),
        }
        for finalist, found in rows.items()
    ]


def rank_finalists(summary: list[dict[str, Any]], metric: str, mode: str) -> list[dict[str, Any]]:
    """Best first by the mean of `metric` on validation; the base last among equals."""
    sign = -1 if mode == "max" else 1
    return sorted(summary, key=lambda row: (sign * row["validation"][metric]["mean"], row["trial"] == BASE))


def verdict(ranked: list[dict[str, Any]], baselines: dict[str, Any], metric: str) -> list[str]:
    """What the numbers say, in sentences; where the winner is below a baseline they say that too."""
    winner = ranked[0]
    base = next((row for row in ranked if row["trial"] == BASE), None)
    value = winner["test"][metric]
    sentences = []
    if winner["trial"] == BASE:
        sentences.append("No trial is better on validation than the base config, which stays the winner.")
    elif base is not None:
        other = base["test"][metric]
        gap = value["mean"] - other["mean"]
        spread = max(value["std"], other["std"])
        words = "above" if gap > 0 else "below"
        clear = "more" if abs(gap) > 2 * spread else "less"
        sentences.append(
            f"{winner['trial']} is {abs(gap):.4f} {words} the base config in test {metric} "
            f"({_plus_minus(value)} against {_plus_minus(other)}), {clear} than twice the larger spread over seeds."
        )
    for name, row in baselines.items():
        if metric in row and row[metric] > value["mean"]:
            sentences.append(
                f"The winner is BELOW the baseline {name} (fit: {row['fit']}): "
                f"{value['mean']:.4f} against {row[metric]:.4f}."
            )
    return sentences


def _spread(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    names = [name for name in rows[0] if "@" in name]
    values = {name: [float(row[name]) for row in rows if name in row] for name in names}
    return {
        name: {"mean": statistics.fmean(found), "std": statistics.stdev(found) if len(found) > 1 else 0.0}
        for name, found in values.items()
    }


def _plus_minus(value: dict[str, float]) -> str:
    return f"{value['mean']:.4f} ± {value['std']:.4f}"


def finalist_name(finalist: int | str) -> str:
    """`trial-0007`, or `base`."""
    return f"trial-{finalist:04d}" if isinstance(finalist, int) else finalist
