"""Which trials come first and which are re-evaluated, by what the ledger has of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweeps.ledger import Ledger
from sweeps.spec_file import load_spec

TINY = Path(__file__).with_name("tiny.yaml")


def ledger_of(folder: Path, trials: list[tuple[str, list[float]]], **overrides: Any) -> Ledger:
    """A search whose trials ended like this, each with these values after its epochs."""
    settings = {key.replace("__", "."): value for key, value in overrides.items()}
    with Ledger.create(folder / "x", load_spec(TINY, {"budget.trials": len(trials), **settings})) as ledger:
        for status, values in trials:
            task = ledger.next()
            for epoch, value in enumerate(values, start=1):
                ledger.report(task.id, {"epoch": epoch, "step": 10 * epoch, "ndcg@10": value})
            by, status = ("target", "stopped") if status == "target" else ("asha", status)
            ledger.finish(task.id, status, {"stopped_by": by} if status == "stopped" else {})
    return Ledger.read(folder / "x")


def numbers(records: list[Any]) -> list[int]:
    return [record.number for record in records]


def test_stopped_trials_come_after_completed_ones_and_fill_up_the_finalists(tmp_path: Path) -> None:
    ledger = ledger_of(
        tmp_path,
        [("stopped", [0.5]), ("stopped", [0.9]), ("failed", [0.95]), ("completed", [0.1, 0.2]), ("stopped", [])],
    )
    assert numbers(ledger.select(1)) == [3]
    assert numbers(ledger.select(2)) == [3, 1]
    assert numbers(ledger.select(9)) == [3, 1, 0], "who failed or has no value is no finalist"
    assert numbers(ledger.leaderboard()) == [3, 1, 0]
    assert ledger.best().number == 3


def test_stopped_trials_are_compared_after_equal_training(tmp_path: Path) -> None:
    """The second was behind at epoch 1 and is ahead only because it was trained on."""
    trials = [("stopped", [0.3]), ("stopped", [0.2, 0.4, 0.5]), ("stopped", [0.1, 0.6]), ("stopped", [0.25, 0.45])]
    assert numbers(ledger_of(tmp_path, trials).select(3)) == [0, 2, 3]


def test_with_a_loss_the_smaller_one_comes_first(tmp_path: Path) -> None:
    trials = [("completed", [0.5, 0.4]), ("completed", [0.3]), ("stopped", [0.2]), ("stopped", [0.1, 0.05])]
    assert numbers(ledger_of(tmp_path, trials, mode="min").leaderboard()) == [1, 0, 3, 2]


def test_a_trial_that_reached_the_target_ranks_among_the_completed_ones(tmp_path: Path) -> None:
    trials = [("completed", [0.2, 0.25]), ("stopped", [0.1]), ("target", [0.28, 0.31]), ("completed", [0.3])]
    ledger = ledger_of(tmp_path, trials, budget__target=0.31)
    assert numbers(ledger.select(1)) == [2], "it wins"
    assert numbers(ledger.select(9)) == [2, 3, 0, 1]
    assert ledger.best().number == 2
