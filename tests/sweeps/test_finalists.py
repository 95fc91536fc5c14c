"""Which runs a re-evaluation makes, and what its numbers are said to mean."""

from __future__ import annotations

import statistics

import pytest

from sweeps.finalists import BASE, plan_finalists, rank_finalists, summarise, verdict
from sweeps.records import FinalistRun
from sweeps.spec import SweepSpec, load_spec


@pytest.fixture
def spec(tmp_path: object) -> SweepSpec:
    path = tmp_path / "s.yaml"  # type: ignore[operator]
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


def test_one_seed_has_no_spread() -> None:
    assert summarise([run(4, 0, 0.3, 0.2)])[0]["test"]["ndcg@10"]["std"] == 0


def test_the_winner_is_chosen_on_validation_although_another_is_better_on_test() -> None:
    rows = summarise([run(1, 0, 0.3, 0.9), run(2, 0, 0.4, 0.1), run(BASE, 0, 0.4, 0.1)])
    assert [row["trial"] for row in rank_finalists(rows, "ndcg@10", "max")] == ["trial-0002", BASE, "trial-0001"]
    assert rank_finalists(rows, "ndcg@10", "min")[0]["trial"] == "trial-0001"


def test_the_verdict_says_plainly_that_a_baseline_is_better() -> None:
    ranked = rank_finalists(summarise([run(1, 0, 0.4, 0.3), run(BASE, 0, 0.2, 0.1)]), "ndcg@10", "max")
    said = " ".join(
        verdict(
            ranked,
            {"item_to_item": {"ndcg@10": 0.5, "fit": "train"}, "most_popular": {"ndcg@10": 0.01, "fit": "train"}},
            "ndcg@10",
        )
    )
    assert "trial-0001 is 0.2000 above the base config" in said
    assert "BELOW the baseline item_to_item (fit: train): 0.3000 against 0.5000" in said
    assert "most_popular" not in said


def test_the_verdict_says_when_no_trial_beats_the_base() -> None:
    ranked = rank_finalists(summarise([run(1, 0, 0.1, 0.3), run(BASE, 0, 0.2, 0.1)]), "ndcg@10", "max")
    assert verdict(ranked, {}, "ndcg@10")[0].startswith("No trial is better")
