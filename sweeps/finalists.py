"""Re-evaluation: the best trials and the base, measured on all users of validation and test, and what that says.

With several seeds everyone is trained anew with each of them; with one, the models that the search kept are measured
as they are. The winner is the finalist with the best mean of the sweep's metric on *validation*; the test split only
tells how good it is. Deviations are sample deviations over seeds, tests are paired over users (`sweeps.significance`).
Who failed with a seed comes behind those that did not: the seeds that are left are those on which it went well.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from genrec.config import RunConfig, validate_config
from sweeps.ledger import Ledger
from sweeps.records import FinalistRun, PlannedRun
from sweeps.significance import Comparison, Ranked, compare_all, seeds_in_words
from sweeps.spec import FinalistsSpec, SweepSpec

BASE = "base"
TEST_COMPARISONS = "test_comparisons"
"fact of the ledger: when `sweeps compare` read the test split, against what and with which seeds"
PER_USER = ("ndcg", "recall", "mrr")
"metrics that are means over users, so that users can be compared; in the order of preference"


def plan_finalists(
    spec: SweepSpec, best: Sequence[tuple[int, RunConfig]], finalists: FinalistsSpec | None = None
) -> list[PlannedRun]:
    """Every finalist and the base with every seed; the first seed of all comes first, so that a re-evaluation that is
    interrupted has compared everyone once. All get the same seeds, from the sweep's own on; with a single seed a trial
    keeps its own, and with it the model that it has trained."""
    finalists = finalists or spec.finalists
    contenders: list[tuple[int | str, RunConfig]] = [(number, spec.finalist_of(config)) for number, config in best]
    contenders.append((BASE, spec.finalist_config(spec.base_config())))
    runs = []
    for seed in range(spec.seed, spec.seed + finalists.seeds):
        for finalist, config in contenders:
            own = config.seed if finalists.seeds == 1 and finalist != BASE else seed
            runs.append(PlannedRun(finalist, config.to_dict() | {"seed": own}, own))
    return runs


def finalists_of(ledger: Ledger) -> FinalistsSpec:
    """How many finalists and seeds: as the sweep's file says, or as the last `reevaluate` did, whichever is later."""
    chosen = dict(ledger.fact("reevaluation") or {})
    later = ledger.revisions[chosen.pop("revisions", 0) :]
    if any(key.startswith("finalists.") for revision in later for key in revision.difference):
        return ledger.spec.finalists
    return ledger.spec.finalists.model_copy(update=chosen)


def note_plan(ledger: Ledger, plans: Sequence[PlannedRun]) -> None:
    """Record what the re-evaluation consists of, and that it opens the test split."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if ledger.fact("test_opened") is None:
        ledger.set_fact("test_opened", now)
    readings = ledger.fact("test_readings") or []
    keys = [[plan.finalist, plan.seed] for plan in plans]
    if not readings or readings[-1]["runs"] != keys:
        ledger.set_fact("test_readings", [*readings, {"at": now, "runs": keys}])


def note_test_comparison(ledger: Ledger, against: str, seeds: Sequence[int]) -> None:
    """Record that the winner was compared with something else on the test split."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known = ledger.fact(TEST_COMPARISONS) or []
    ledger.set_fact(TEST_COMPARISONS, [*known, {"at": now, "against": against, "seeds": list(seeds)}])


def current_runs(ledger: Ledger) -> list[FinalistRun]:
    """The runs of the last re-evaluation; others may have been made before it."""
    readings = ledger.fact("test_readings")
    runs = ledger.finalist_runs()
    if not readings:
        return runs
    wanted = {(finalist, seed) for finalist, seed in readings[-1]["runs"]}
    return [run for run in runs if (run.finalist, run.seed) in wanted]


def config_of_run(ledger: Ledger, run: FinalistRun) -> RunConfig:
    """What a re-evaluation was trained with."""
    spec = ledger.spec
    if run.finalist == BASE:
        config = spec.finalist_config(spec.base_config())
    else:
        config = spec.finalist_of(ledger.config_of(int(run.finalist)))
    return validate_config(config.to_dict() | {"seed": run.seed})


def winning_run(ledger: Ledger) -> FinalistRun | None:
    """The re-evaluation that the bundle was exported from."""
    winner = ledger.fact("winner")
    if winner is None:
        return None
    runs = [run for run in current_runs(ledger) if finalist_name(run.finalist) == winner["trial"]]
    return next((run for run in runs if run.seed == winner["seed"]), None)


def best_config(ledger: Ledger) -> RunConfig | None:
    """The winner's; before there is one, the best trial's; None before any trial has a result."""
    run = winning_run(ledger)
    if run is not None:
        return config_of_run(ledger, run)
    best = ledger.best()
    return None if best is None else ledger.config_of(best.number)


def summarise(runs: Sequence[FinalistRun]) -> list[dict[str, Any]]:
    """One row a finalist from its completed runs: seeds, parameters, and mean and std of every metric; `failed`: the
    seeds that came to no end, each with its reason."""
    rows: dict[int | str, list[FinalistRun]] = {}
    for run in runs:
        if run.status == "completed":
            rows.setdefault(run.finalist, []).append(run)
    failed = _failures(runs)
    return [
        {
            "trial": finalist_name(finalist),
            "seeds": sorted(run.seed for run in found),
            "failed": failed.get(finalist, []),
            "parameters": found[0].result.get("parameters"),
            "test": spread([run.result["test"] for run in found]),
            "validation": spread([run.result["validation"] for run in found]),
        }
        for finalist, found in rows.items()
    ]


def without_result(runs: Sequence[FinalistRun]) -> list[dict[str, Any]]:
    """Finalists that failed with every seed, which `summarise` has no numbers for: `trial` and `failed`."""
    others = {run.finalist for run in runs if run.status != "failed"}
    return [
        {"trial": finalist_name(finalist), "failed": failed}
        for finalist, failed in _failures(runs).items()
        if finalist not in others
    ]


def _failures(runs: Sequence[FinalistRun]) -> dict[int | str, list[dict[str, Any]]]:
    """`seed` and `reason` of every failed run, by finalist."""
    found: dict[int | str, list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if run.status == "failed":
            reason = str(run.result.get("reason") or "no reason was recorded").strip().splitlines()[0]
            found.setdefault(run.finalist, []).append({"seed": run.seed, "reason": reason[:300]})
    return found


def failed_seeds(row: Mapping[str, Any]) -> tuple[int, ...]:
    """Of a row of `summarise`."""
    return tuple(failure["seed"] for failure in row["failed"])


def spread(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and sample deviation of every metric over the seeds; those that not all have are left out."""
    names = [name for name in rows[0] if ("@" in name or name.endswith("loss")) and all(name in row for row in rows)]
    values = {name: [float(row[name]) for row in rows] for name in names}
    return {
        name: {"mean": statistics.fmean(found), "std": statistics.stdev(found) if len(found) > 1 else 0.0}
        for name, found in values.items()
    }


def rank_finalists(summary: list[dict[str, Any]], metric: str, mode: str) -> list[dict[str, Any]]:
    """Best first by the mean of `metric` on validation, those with the fewest failed seeds before the others; the base
    last among equals."""
    sign = -1 if mode == "max" else 1
    return sorted(
        summary, key=lambda row: (len(row["failed"]), sign * row["validation"][metric]["mean"], row["trial"] == BASE)
    )


def metric_per_user(metric: str, measured: Iterable[str]) -> str:
    """The sweep's metric where it is a mean over users, else the one of the longest list by the order of `PER_USER`."""
    if metric.split("@")[0] in PER_USER and "@" in metric:
        return metric
    return min(
        (name for name in measured if name.split("@")[0] in PER_USER),
        key=lambda name: (PER_USER.index(name.split("@")[0]), -int(name.split("@")[1])),
    )


def compare_finalists(
    ranked: Sequence[str], measured: Mapping[str, Ranked], metric: str, ensemble: Ranked | None = None
) -> list[Comparison]:
    """The winner against the runner-up and the base, and the ensemble against the winner, corrected together."""
    winner, *others = ranked
    rivals = list(dict.fromkeys([*others[:1], *(name for name in others if name == BASE)]))
    pairs = [(measured[winner], measured[rival]) for rival in rivals]
    if ensemble is not None:
        pairs.append((ensemble, measured[winner]))
    return compare_all(pairs, metric)


def verdict(
    ranked: list[dict[str, Any]],
    comparisons: Sequence[Comparison],
    baselines: Mapping[str, Any],
    metric: str,
    lost: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """What the numbers say, in sentences; where the winner is below a baseline they say that too. `lost`: finalists
    `without_result`."""
    winner = ranked[0]
    sentences = []
    if winner["trial"] == BASE:
        failed = any(row["failed"] for row in [*ranked[1:], *lost])
        whole = " that came to its end with every seed" if failed else ""
        sentences.append(f"No trial{whole} is better on validation than the base config, which stays the winner.")
    sentences += [comparison.verdict for comparison in comparisons]
    sentences += _about_failures(ranked, lost)
    value = winner["test"][metric]["mean"]
    for name, row in baselines.items():
        if metric in row and row[metric] > value:
            sentences.append(
                f"The winner is BELOW the baseline {name} (fit: {row['fit']}): {value:.4f} against {row[metric]:.4f}."
            )
    return sentences


def _about_failures(ranked: Sequence[Mapping[str, Any]], lost: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who failed with which seeds, why, and what follows from it."""
    sentences = []
    for place, row in enumerate(ranked):
        if row["failed"]:
            behind = "" if place == 0 else ", and it comes behind those that failed with fewer"
            sentences.append(
                f"{row['trial']} failed with {_seeds_and_reason(row)}; its numbers are without them{behind}."
            )
    for row in lost:
        apart = "; nothing is compared with it" if row["trial"] == BASE else ""
        sentences.append(f"{row['trial']} has no result, it failed with every seed, {_seeds_and_reason(row)}{apart}.")
    if sentences:
        sentences.append("Failed seeds are tried again by `sweeps reevaluate`.")
    return sentences


def _seeds_and_reason(row: Mapping[str, Any]) -> str:
    reasons = dict.fromkeys(failure["reason"] for failure in row["failed"])
    return f"{seeds_in_words(failed_seeds(row))} ({'; '.join(reasons)})"


def finalist_name(finalist: int | str) -> str:
    """`trial-0007`, or `base`."""
    return f"trial-{finalist:04d}" if isinstance(finalist, int) else finalist
