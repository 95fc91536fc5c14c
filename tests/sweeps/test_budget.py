"""Limits of a sweep as its driver keeps them: what is spent stays spent, and nothing stays open behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweeps.budget import Budget
from sweeps.driver import _end_search, _LedgerBudget
from sweeps.ledger import Ledger
from sweeps.spec import SweepSpec
from sweeps.spec_file import load_spec
from sweeps.status import sweep_status

TINY = Path(__file__).with_name("tiny.yaml")


def spec(**budget: Any) -> SweepSpec:
    return load_spec(TINY, {"resources.cpus_per_worker": 2, **{f"budget.{key}": v for key, v in budget.items()}})


def test_hours_are_those_of_all_sessions(tmp_path: Path):
    with Ledger.create(tmp_path / "x", spec(cpu_hours=1)) as ledger:
        assert _LedgerBudget(ledger).reached(900.0) is None
    with Ledger.open(tmp_path / "x") as ledger:
        assert ledger.earlier_trial_seconds == 900.0
        budget = _LedgerBudget(ledger)
        assert budget.reached(890.0) is None
        assert budget.reached(900.0) == "cpu_hours: 1 of 1 spent"
        assert budget.reached(0.0) == budget.reason, "what is spent stays spent"


def test_a_target_that_an_earlier_session_reached_is_reached(tmp_path: Path):
    with Ledger.create(tmp_path / "x", spec(target=0.3)) as ledger:
        ledger.report(ledger.next().id, {"epoch": 1, "ndcg@10": 0.31})
    with Ledger.open(tmp_path / "x") as ledger:
        assert _LedgerBudget(ledger).reached(0.0) == "target: ndcg@10 0.31 has reached 0.3"


def test_a_failed_trial_reaches_no_target(tmp_path: Path):
    with Ledger.create(tmp_path / "x", spec(target=0.3)) as ledger:
        task = ledger.next()
        ledger.report(task.id, {"epoch": 1, "ndcg@10": 0.31})
        ledger.finish(task.id, "failed", {"reason": "lost"})
        assert _LedgerBudget(ledger).reached(0.0) is None


def test_what_was_running_when_the_budget_was_spent_is_stopped_with_the_reason(tmp_path: Path):
    with Ledger.create(tmp_path / "x", spec(cpu_hours=1)) as ledger:
        for value in (0.2, 0.3):
            task = ledger.next()
            ledger.report(task.id, {"epoch": 1, "ndcg@10": value})
        ledger.pause(task.id, 1)
    with Ledger.open(tmp_path / "x") as ledger:
        budget = _LedgerBudget(ledger)
        assert budget.reached(1800.0)
        _end_search(ledger, budget)
        assert [(trial.status, trial.value) for trial in ledger.trials()] == [("stopped", 0.2), ("stopped", 0.3)]
        assert {trial.reason for trial in ledger.trials()} == {"ended with the budget: cpu_hours: 1 of 1 spent"}
        assert {trial.stopped_by for trial in ledger.trials()} == {"budget"}
        assert sweep_status(ledger)["stop_reason"] == "cpu_hours: 1 of 1 spent"


def test_the_first_limit_that_is_reached_counts():
    limits = Budget(spec(time="1h", cpu_hours=4, cost=3, price_per_hour=2), elapsed=lambda: 1000.0)
    assert limits.reached(5399.0) is None
    assert limits.reached(5400.0) == "cost: 3 of 3 spent"
