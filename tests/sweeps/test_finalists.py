"""Which runs a re-evaluation makes, and what its numbers are said to mean."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

import numpy as np
import pytest
from made_up_trials import finished_sweep

from genrec.config import validate_config
from sweeps.finalists import (
    BASE,
    compare_finalists,
    current_runs,
    failed_seeds,
    finalists_of,
    metric_per_user,
    note_plan,
    plan_finalists,
    rank_finalists,
    spread,
    summarise,
    verdict,
    without_result,
)
from sweeps.leaderboard import _finalist_tables
from sweeps.ledger import FinalistQueue, Ledger
from sweeps.records import FinalistRun
from sweeps.report.document import Table
from sweeps.report.summary import summary
from sweeps.significance import Ranked
from sweeps.spec import FinalistsSpec, SweepSpec
from sweeps.spec_file import load_spec
from sweeps.status import sweep_status


@pytest.fixture
def spec(tmp_path: Path) -> SweepSpec:
    path = tmp_path / "s.yaml"
    path.write_text(
        "space: {train.learning_rate: {type: grid, values: [1e-3, 2e-3]}}\n"
        "finalists: {top_k: 1, seeds: 3, set: {train.epochs: 7}}\nseed: 5\n"
    )
    return load_spec(path)


def run(finalist: int | str, seed: int, validation: float, test: float, status: str = "completed") -> FinalistRun:
    result = {"validation": {"ndcg@10": validation, "epoch": 3}, "test": {"ndcg@10": test, "users": 9}}
    return FinalistRun(finalist, seed, status, result)  # type: ignore[arg-type]


def test_trials_and_base_get_the_same_seeds_and_the_finalists_settings(spec: SweepSpec) -> None:
    plans = plan_finalists(spec, [(4, spec.base_config())])
    assert [(plan.finalist, plan.seed) for plan in plans] == [
        (4, 5), (BASE, 5), (4, 6), (BASE, 6), (4, 7), (BASE, 7)
    ]  # fmt: skip
    assert {plan.config["train"]["epochs"] for plan in plans} == {7}
    assert all(plan.config["seed"] == plan.seed for plan in plans)


def test_mean_and_sample_deviation_are_over_the_completed_seeds() -> None:
    rows = summarise([run(4, 0, 0.3, 0.2), run(4, 1, 0.5, 0.4), run(4, 2, 0.9, 0.9, status="failed")])
    assert rows[0]["trial"] == "trial-0004"
    assert rows[0]["seeds"] == [0, 1]
    assert rows[0]["test"]["ndcg@10"] == {
        "mean": pytest.approx(0.3),
        "std": pytest.approx(statistics.stdev([0.2, 0.4])),
    }
    assert "users" not in rows[0]["test"]


def test_who_failed_with_a_seed_comes_behind_those_that_did_not_and_is_named_with_its_reason() -> None:
    lucky = [run(1, 0, 0.0, 0.0, "failed"), run(1, 1, 0.0, 0.0, "failed"), run(1, 2, 0.9, 0.9)]
    steady = [run(2, seed, 0.4, 0.3) for seed in range(3)]
    lost = [FinalistRun(BASE, seed, "failed", {"reason": "out of memory\n..."}) for seed in range(3)]
    runs = [*lucky, *steady, *lost]
    rows = rank_finalists(summarise(runs), "ndcg@10", "max")
    assert [(row["trial"], failed_seeds(row)) for row in rows] == [("trial-0002", ()), ("trial-0001", (0, 1))]
    said = verdict(rows, [], {}, "ndcg@10", without_result(runs))
    assert said == [
        "trial-0001 failed with seeds 0, 1 (no reason was recorded); its numbers are without them, and it comes behind "
        "those that failed with fewer.",
        "base has no result, it failed with every seed, seeds 0, 1, 2 (out of memory); nothing is compared with it.",
        "Failed seeds are tried again by `sweeps reevaluate`.",
    ]


def test_a_re_evaluation_under_way_is_not_a_failed_one() -> None:
    runs = [run(1, 0, 0.4, 0.3), FinalistRun(BASE, 0, "running"), FinalistRun(BASE, 1, "failed")]
    assert without_result(runs) == []


def test_what_is_left_of_a_finalist_that_failed_with_a_seed_beats_nobody() -> None:
    whole, part = ranked("whole", 300), ranked("part", 500)
    part = dataclasses.replace(part, failed=(1,))
    [found] = compare_finalists(["part", "whole"], {"part": part, "whole": whole}, "recall@10")
    assert (found.ahead, found.winner) == ("part", None)
    assert found.verdict.startswith("part is ahead of whole in test recall@10 (p < 0.001)")
    assert found.verdict.endswith(
        "It is not called better: part failed with seed 1, which nobody knows the numbers of."
    )
    part = dataclasses.replace(ranked("part", 100), failed=(1,))
    [found] = compare_finalists(["whole", "part"], {"part": part, "whole": whole}, "recall@10")
    assert found.winner == "whole"


def test_the_base_is_not_said_to_be_best_of_all_when_trials_failed() -> None:
    runs = [run(1, 0, 0.0, 0.0, "failed"), run(1, 1, 0.9, 0.9), run(BASE, 0, 0.4, 0.3), run(BASE, 1, 0.4, 0.3)]
    said = verdict(rank_finalists(summarise(runs), "ndcg@10", "max"), [], {}, "ndcg@10")
    assert said[0].startswith("No trial that came to its end with every seed is better on validation")


def test_failed_seeds_stand_in_status_report_and_table(spec: SweepSpec, tmp_path: Path) -> None:
    failing = {"finalist-0000-s6", *(f"finalist-base-s{seed}" for seed in (5, 6, 7))}
    finished_sweep(tmp_path / "sweep", spec, failing=failing)
    ledger = Ledger.read(tmp_path / "sweep")
    status = sweep_status(ledger)
    assert [failure["seed"] for failure in status["finalists"][0]["failed"]] == [6]
    assert [row["trial"] for row in status["finalists_without_result"]] == [BASE]
    [section] = [section for section in summary(ledger, tmp_path) if section.id == "numbers"]
    table = section.blocks[0]
    assert isinstance(table, Table)
    assert [[row[0], row[-2]] for row in table.rows[:2]] == [["trial-0000", "2 of 3"], [BASE, "0 of 3"]]
    printed = "\n".join(_finalist_tables(status))
    assert "trial-0000 (2 of 3 seeds, failed: 6)" in printed
    assert "base (failed: 3 seeds)" in printed
    assert "base has no result" in " ".join(status["verdict"])
    assert "its numbers are without" in " ".join(status["verdict"])


def test_one_seed_has_no_spread() -> None:
    assert summarise([run(4, 0, 0.3, 0.2)])[0]["test"]["ndcg@10"]["std"] == 0


def test_the_winner_is_chosen_on_validation_although_another_is_better_on_test() -> None:
    rows = summarise([run(1, 0, 0.3, 0.9), run(2, 0, 0.4, 0.1), run(BASE, 0, 0.4, 0.1)])
    assert [row["trial"] for row in rank_finalists(rows, "ndcg@10", "max")] == ["trial-0002", BASE, "trial-0001"]
    assert rank_finalists(rows, "ndcg@10", "min")[0]["trial"] == "trial-0001"


def test_with_a_single_seed_a_trial_keeps_its_own_and_with_it_its_trained_model(spec: SweepSpec) -> None:
    trial = validate_config(spec.base_values | {"seed": 987})
    plans = plan_finalists(spec, [(4, trial)], FinalistsSpec(top_k=1, seeds=1))
    assert [(plan.finalist, plan.seed, plan.config["seed"]) for plan in plans] == [(4, 987, 987), (BASE, 5, 5)]


def ranked(name: str, found: int, users: int = 900) -> Ranked:
    """Three seeds that find the targets of about so many users."""
    rng = np.random.default_rng(found)
    return Ranked(name, np.arange(users), np.where(np.arange(users) < found + rng.integers(0, 5, (3, 1)), 0, -1))


def test_the_winner_meets_runner_up_and_base_once_each_and_the_ensemble_meets_the_winner() -> None:
    measured = {name: ranked(name, n) for name, n in (("x", 500), ("y", 480), ("z", 470), (BASE, 300))}

    def pairs(*names: str, ensemble: Ranked | None = None) -> list[tuple[str, str]]:
        return [(c.a, c.b) for c in compare_finalists(names, measured, "recall@10", ensemble)]

    assert pairs("x", "y", "z", BASE) == [("x", "y"), ("x", BASE)]
    assert pairs("x", BASE, "y") == [("x", BASE)]
    assert pairs(BASE, "x", "y") == [(BASE, "x")]
    assert pairs("x", "y", BASE, ensemble=ranked("both", 510)) == [("x", "y"), ("x", BASE), ("both", "x")]
    assert pairs(BASE) == []


def test_a_metric_that_is_no_mean_over_users_is_replaced_by_the_longest_ndcg() -> None:
    names = ["recall@5", "ndcg@5", "recall@10", "ndcg@10", "coverage@10", "tuple_ndcg@50"]
    assert metric_per_user("recall@5", names) == "recall@5"
    assert metric_per_user("loss", names) == "ndcg@10"
    assert metric_per_user("coverage@10", names) == "ndcg@10"


def test_metrics_that_a_seed_lacks_have_no_mean() -> None:
    found = spread([{"ndcg@10": 0.1, "loss": 2.0, "users": 9}, {"ndcg@10": 0.3, "epoch": 3, "loss": 1.0}])
    assert found.keys() == {"ndcg@10", "loss"}
    assert found["ndcg@10"]["mean"] == pytest.approx(0.2)


def two(validation: float) -> list[dict[str, object]]:
    rows = summarise([run(1, 0, validation, 0.3), run(BASE, 0, 0.2, 0.1)])
    return rank_finalists(rows, "ndcg@10", "max")


def test_the_verdict_names_the_better_one_and_says_plainly_that_a_baseline_is_better() -> None:
    rows = two(0.4)
    comparisons = compare_finalists(
        ["trial-0001", BASE], {"trial-0001": ranked("trial-0001", 500), BASE: ranked(BASE, 300)}, "ndcg@10"
    )
    baselines = {"item_to_item": {"ndcg@10": 0.5, "fit": "train"}, "most_popular": {"ndcg@10": 0.01, "fit": "train"}}
    said = " ".join(verdict(rows, comparisons, baselines, "ndcg@10"))
    assert "trial-0001 beats base in test ndcg@10 (p < 0.001)" in said
    assert "BELOW the baseline item_to_item (fit: train): 0.3000 against 0.5000" in said
    assert "most_popular" not in said


def test_the_verdict_says_when_no_trial_beats_the_base() -> None:
    assert verdict(two(0.1), [], {}, "ndcg@10")[0].startswith("No trial is better")


def test_the_opening_of_the_test_split_is_noted_and_another_plan_is_another_reading(
    spec: SweepSpec, tmp_path: Path
) -> None:
    with Ledger.create(tmp_path / "sweep", spec) as ledger:
        assert finalists_of(ledger) == spec.finalists
        three = plan_finalists(spec, [(4, spec.base_config())])
        for _ in range(2):  # a resumed re-evaluation reads for the same purpose
            note_plan(ledger, three)
        opened = ledger.fact("test_opened")
        assert opened
        queue = FinalistQueue(ledger, three)
        while task := queue.next():
            result = {"test": {"ndcg@10": 0.1}, "validation": {"ndcg@10": 0.1}}
            queue.finish(task.id, "completed", result)
        assert len(current_runs(ledger)) == 6

        ledger.set_fact("reevaluation", {"seeds": 1})
        assert finalists_of(ledger).seeds == 1
        trial = validate_config(spec.base_values | {"seed": 987})
        note_plan(ledger, plan_finalists(spec, [(4, trial)], finalists_of(ledger)))
        assert [(run.finalist, run.seed) for run in current_runs(ledger)] == [(BASE, 5)]
        assert ledger.fact("test_opened") == opened
        assert [len(reading["runs"]) for reading in ledger.fact("test_readings")] == [6, 2]
