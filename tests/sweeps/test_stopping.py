"""Rules without Ray: against Ray's own rule, against definitions written out slowly, and after an interruption."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps.records import TrialRecord
from sweeps.spec import SchedulerSpec
from sweeps.spec_file import load_spec
from sweeps.stopping import (
    BUDGET,
    GATE,
    GO,
    TARGET,
    Asha,
    Curve,
    Median,
    Mode,
    Promotion,
    Rule,
    rule_of,
    rules_in_words,
    stopped_by,
)


def curves(count: int, epochs: int, seed: int = 0) -> dict[str, list[tuple[int, float]]]:
    """Rising values with noise, as learning curves are."""
    rng = random.Random(seed)
    found = {}
    for number in range(count):
        height = rng.random()
        values = [(epoch, height * epoch / (epoch + 2) + 0.05 * rng.random()) for epoch in range(1, epochs + 1)]
        found[f"trial-{number:03d}"] = values
    return found


def asha(mode: Mode = "max", factor: int = 3, longest: int = 20) -> Asha:
    return Asha(grace=1, factor=factor, longest=longest, mode=mode)


def promotion(mode: Mode = "max", longest: int = 9) -> Promotion:
    return Promotion(grace=1, factor=3, longest=longest, mode=mode)


def play(rule: Rule, trial: str, curve: Curve) -> list[str]:
    """The rule's actions until it does not let the trial go on."""
    actions = []
    for epoch, value in curve:
        actions.append(rule.judge(trial, epoch, value).action)
        if actions[-1] != "go":
            break
    return actions


# -- asha -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grace", "factor"), [(1, 3), (2, 2), (4, 5)])
def test_asha_stops_whom_rays_scheduler_stops(grace: int, factor: int):
    bracket_type = pytest.importorskip("ray.tune.schedulers.async_hyperband")._Bracket
    theirs = bracket_type(grace, 30, factor, 0, stop_last_trials=False)
    ours = Asha(grace=grace, factor=factor, longest=30, mode="max")
    stops = 0
    for trial, curve in curves(80, 29).items():
        for epoch, value in curve:
            stopped = theirs.on_result(SimpleNamespace(trial_id=trial), epoch, value) == "STOP"
            assert (ours.judge(trial, epoch, value).action == "stop") == stopped, (trial, epoch)
            stops += stopped
            if stopped:
                break
    assert stops > 20


def test_asha_says_which_rank_was_too_low():
    rule = asha()
    for trial, value in (("a", 0.3), ("b", 0.2), ("c", 0.1)):
        rule.recall(trial, [(1, value)])
    assert rule.judge("d", 1, 0.22).reason == "stopped at epoch 1: rank 2 of 4, the best 1/3 go on"
    assert rule.judge("e", 1, 0.9) == GO


def test_smaller_is_better_with_mode_min():
    rule = asha("min", factor=2)
    rule.recall("a", [(1, 0.1)])
    rule.recall("b", [(1, 0.5)])
    assert rule.judge("c", 1, 0.9).action == "stop"
    assert rule.judge("d", 1, 0.05) == GO


def test_an_epoch_that_is_reported_again_is_not_judged_again():
    for rule in (asha(factor=2), promotion(), Median(grace=1, min_trials=1, mode="max")):
        rule.recall("a", [(1, 0.1)])
        rule.recall("b", [(1, 0.5)])
        assert rule.judge("a", 1, 0.1) == GO, rule


def test_a_failed_trial_is_nobodys_measure():
    for rule in (asha(), promotion(), Median(grace=1, min_trials=1, mode="max")):
        rule.recall("bad", [(1, 0.9), (2, 0.9)])
        rule.forget("bad")
        rule.recall("other", [(1, 0.2)])
        verdict = rule.judge("mine", 1, 0.3)
        assert verdict.action != "stop"
        assert "of 3" not in verdict.reason


def test_no_rung_lies_at_or_after_the_last_epoch():
    assert [rung.at for rung in Asha(grace=2, factor=3, longest=18, mode="max").rungs] == [2, 6]
    assert Asha(grace=5, factor=3, longest=5, mode="max").rungs == []


def test_validations_that_skip_a_rung_are_judged_by_the_next_one():
    rule = promotion()
    assert play(rule, "a", [(2, 0.5)]) == ["pause"]
    assert play(rule, "a", [(2, 0.5), (4, 0.6)]) == ["go", "pause"]
    assert [list(rung.scores) for rung in rule.rungs] == [["a"], ["a"]]


def test_rungs_in_steps_are_reached_in_the_epochs_of_different_batch_sizes():
    rule = rule_of(SchedulerSpec(type="asha", grace_steps=100, reduction_factor=2), "max", longest=3)
    small_batches = [{"epoch": epoch, "step": 100 * epoch} for epoch in (1, 2)]
    large_batches = [{"epoch": epoch, "step": 50 * epoch} for epoch in (1, 2)]
    assert [rule.judge("small", rule.point(row), 0.3).action for row in small_batches] == ["go", "go"]
    assert [rule.judge("large", rule.point(row), 0.1).action for row in large_batches] == ["go", "stop"]


# -- median -----------------------------------------------------------------------------------------------------------


def stops_slowly(curve: Curve, others: list[list[tuple[int, float]]], grace: int, least: int) -> int | None:
    """The definition word for word: the epoch at which a trial is stopped, or None."""
    for epoch, _ in curve:
        before = [[value for at, value in other if at <= epoch] for other in others if other[-1][0] >= epoch]
        averages = [statistics.fmean(values) if values else -math.inf for values in before]
        best = max(value for at, value in curve if at <= epoch)
        if epoch >= grace and len(averages) >= least and best < statistics.median(averages):
            return epoch
    return None


def test_median_stops_by_the_definition():
    rule, seen = Median(grace=2, min_trials=3, mode="max"), []
    expected, found = [], []
    for trial, curve in curves(40, 8).items():
        expected.append(stops_slowly(curve, seen, 2, 3))
        actions = play(rule, trial, curve)
        found.append(len(actions) if actions[-1] == "stop" else None)
        seen.append(curve[: len(actions)])
    assert found == expected
    assert 5 < sum(epoch is not None for epoch in found) < 35


def test_in_steps_median_compares_trials_that_were_validated_at_different_steps():
    def stretched(curve: Curve, steps: int) -> list[tuple[int, float]]:
        return [(epoch * steps, value) for epoch, value in curve]

    rule, seen = Median(grace=25, min_trials=3, mode="max", unit="step"), []
    expected, found = [], []
    for number, curve in enumerate(curves(40, 8).values()):
        curve = stretched(curve, (10, 25, 40)[number % 3])
        expected.append(stops_slowly(curve, seen, 25, 3))
        actions = play(rule, str(number), curve)
        found.append(curve[len(actions) - 1][0] if actions[-1] == "stop" else None)
        seen.append(curve[: len(actions)])
    assert found == expected
    assert 5 < sum(step is not None for step in found) < 35


def test_median_says_what_was_worse_than_what():
    rule = Median(grace=1, min_trials=2, mode="min")
    rule.recall("a", [(1, 0.2)])
    rule.recall("b", [(1, 0.4)])
    expected = "stopped at epoch 1: its best value 0.5 is worse than the median 0.3 of 2 others"
    assert rule.judge("c", 1, 0.5).reason == expected
    assert rule.judge("d", 1, 0.1) == GO


# -- promotion --------------------------------------------------------------------------------------------------------


def test_the_best_third_of_a_rung_is_promoted_and_the_highest_rung_first():
    rule = promotion()
    paused = {f"t{number}" for number in range(6)}
    for number in range(6):
        assert play(rule, f"t{number}", [(1, number / 10)]) == ["pause"]
    assert rule.promoted(paused) == "t5"
    assert rule.promoted(paused - {"t5"}) == "t4"
    assert rule.promoted(paused - {"t5", "t4"}) is None
    for trial, value in (("t5", 0.2), ("t4", 0.3)):
        assert play(rule, trial, [(1, 0.0), (2, 0.1), (3, value)]) == ["go", "go", "pause"]
    assert rule.promoted(paused) is None, "two trials are too few for the upper rung, the lower has no more places"
    assert rule.promoted(paused, last=True) == "t4"
    assert rule.standing("t5") == "epoch 3: rank 2 of 2"
    for number in (6, 7, 8):
        play(rule, f"t{number}", [(1, 0.9)])
    assert rule.promoted({*paused, "t6", "t7", "t8"}) == "t6"
    play(rule, "t6", [(3, 0.9)])
    assert rule.promoted({*paused, "t6", "t7", "t8"}) == "t6", "the highest rung comes first"


def test_recorded_curves_put_a_rule_where_it_was():
    """What was interrupted: c is paused at 3 epochs, b waits at 1, a was promoted and is under way."""
    rule = promotion()
    rule.recall("a", [(1, 0.9), (2, 0.9)])
    rule.recall("b", [(1, 0.2)])
    rule.recall("c", [(1, 0.8), (2, 0.8), (3, 0.8)])
    assert [rule.is_paused(trial) for trial in "abcd"] == [False, True, True, False]
    assert play(rule, "a", [(1, 0.9), (2, 0.9), (3, 0.1)]) == ["go", "go", "pause"]
    assert rule.standing("b") == "epoch 1: rank 3 of 3"
    assert rule.standing("a") == "epoch 3: rank 2 of 2"


@pytest.mark.parametrize("rule_type", [Asha, Promotion])
def test_rungs_do_not_depend_on_an_interruption(rule_type: type[Asha | Promotion]):
    undisturbed = rule_type(grace=1, factor=3, longest=20, mode="max")
    recorded = {}
    for trial, curve in curves(30, 12).items():
        recorded[trial] = curve[: len(play(undisturbed, trial, curve))]
    resumed = rule_type(grace=1, factor=3, longest=20, mode="max")
    for trial, curve in reversed(recorded.items()):
        resumed.recall(trial, curve)
    for one, other in zip(resumed.rungs, undisturbed.rungs, strict=True):
        assert one.scores == other.scores
        assert one.best(99) == other.best(99)


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["median", "asha"])
def test_a_reason_is_known_by_the_rule_that_gave_it(kind: str):
    scheduler = SchedulerSpec(type=kind, min_trials=1, reduction_factor=2)
    rule = rule_of(scheduler, "max", 9)
    verdicts = [rule.judge(f"t{number}", 1, 1.0 - number / 10) for number in range(4)]
    [*_, last] = [verdict for verdict in verdicts if verdict.action == "stop"]
    assert last.by == kind
    assert stopped_by(ended(last.reason), scheduler) == kind, "as earlier versions recorded it"


def ended(reason: str | None, by: str | None = None) -> TrialRecord:
    """A trial that was stopped for this reason, by this rule if that was recorded."""
    return replace(NOTHING, reason=reason, stopped_by=by)


NOTHING = TrialRecord(
    *(0, "trial-0000", "stopped", {}, None, [], 0, "", None, None, None, {}, [], [], None, None),
)


def test_what_stopped_a_trial_is_known_from_its_record_whatever_the_words_are():
    for cause in (GATE, BUDGET, TARGET, "asha"):
        assert stopped_by(ended("some words", cause), SchedulerSpec(type="median")) == cause


def test_gate_and_budget_are_known_in_ledgers_of_earlier_versions_whatever_the_scheduler_is():
    for kind in ("none", "median", "asha", "promote"):
        assert stopped_by(ended(f"{GATE}: level 1"), SchedulerSpec(type=kind)) == GATE
        said = "ended with the budget at epoch 2: time: 3 of 3 spent"
        assert stopped_by(ended(said), SchedulerSpec(type=kind)) == BUDGET
    assert stopped_by(ended(None), SchedulerSpec()) == "unknown"


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"type": "asha", "grace_epochs": 2}, "at epoch 2 and at its multiples by 3, a trial goes on only if"),
        ({"type": "promote", "grace_steps": 500}, "at step 500 and at its multiples by 3, every trial pauses"),
        ({"type": "median", "grace_steps": 100}, "from step 100 on, a trial ends when"),
    ],
)
def test_a_rule_is_worded_in_the_unit_that_it_counts(settings: dict[str, object], start: str):
    words = rules_in_words(load_spec(Path(__file__).with_name("tiny.yaml"), {"scheduler": settings}))
    assert words[str(settings["type"])].startswith(start)
