"""The ledger: nothing is lost or run twice, whatever dies; the same trials at any concurrency; nothing false wins."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import statistics
import time
import warnings
from pathlib import Path

import pytest
from made_up_trials import (
    CHOICES,
    GRID,
    MIXED,
    SAMPLED,
    drive,
    essence,
    finished,
    killed_driver,
    run_one,
    sampler_of,
    score,
    spec_of,
)

from sweeps.journal import JOURNAL
from sweeps.ledger import FinalistQueue, Ledger, LedgerError
from sweeps.live import remaining_seconds
from sweeps.proposer import RANDOM_AFTER
from sweeps.sampling import derived_seed, distributions
from sweeps.spec import SweepSpec

# -- a whole sweep ----------------------------------------------------------------------------------------------------


def test_a_sweep_is_recorded_whole(tmp_path: Path):
    spec = spec_of(tmp_path, SAMPLED, budget__trials=5)
    with Ledger.create(tmp_path / "x", spec) as ledger:
        task = ledger.next()
        assert task is not None
        assert task.id == "trial-0000"
        assert task.payload["seed"] == task.payload["config"]["seed"]
        assert json.loads(json.dumps(task.payload)) == task.payload
        ledger.report(task.id, {"epoch": 1, "ndcg@10": 0.2, "loss": 3.0})
        ledger.report(task.id, {"epoch": 2, "ndcg@10": 0.3, "loss": 2.0})
        ledger.report(task.id, {"epoch": 3, "ndcg@10": 0.1, "loss": math.inf})
        ledger.report(task.id, {"epoch": 2, "ndcg@10": 0.3, "loss": 2.0})
        result = {
            "duration": 2.5,
            "node": "n",
            "artifacts": {"tiger": "k"},
            "reused": ["tokenizer"],
            "trained": ["tiger"],
        }
        ledger.finish(task.id, "completed", result)
        assert ledger.state == "searching"
        assert drive(ledger) == [f"trial-000{n}" for n in range(1, 5)]
        assert ledger.stop_reason == "budget"
        assert ledger.counts()["completed"] == 5
        ledger.set_fact("oracle", {"recall@10": 0.5, "broken": math.nan})
        ledger.mark("finished")
    reader = Ledger.read(tmp_path / "x")
    record = reader.trials()[0]
    assert record.value == 0.3
    assert [row["ndcg@10"] for row in record.epochs] == [0.2, 0.3, 0.1]
    assert record.epochs[2]["loss"] == math.inf
    assert (record.duration, record.node, record.artifacts) == (2.5, "n", {"tiger": "k"})
    assert (record.reused, record.trained, record.reason) == (["tokenizer"], ["tiger"], None)
    assert record.started is not None
    assert record.finished is not None
    assert record.started <= record.finished
    assert reader.config_of(0).to_dict() == task.payload["config"]
    assert reader.spec == spec
    assert reader.state == "finished"
    assert reader.fact("oracle") == {"recall@10": 0.5, "broken": "nan"}
    best = reader.best()
    assert best is not None
    assert best.value == max(r.value for r in reader.trials() if r.value is not None)


def test_optunas_own_tools_read_and_draw_the_journal(tmp_path: Path):
    import matplotlib
    import optuna
    from optuna.visualization import matplotlib as plots

    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=4)) as ledger:
        ledger.stamp(code="c0de")
        for status in ("completed", "stopped", "completed"):
            run_one(ledger, ledger.next(), status)
        ledger.finish(ledger.next().id, "failed", {"reason": "boom", "artifacts": {"tokenizer": "k"}})
        best = ledger.best()
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "x" / JOURNAL)))
    study = optuna.load_study(study_name="search", storage=storage)
    assert best is not None
    assert study.best_trial.number == best.number
    assert study.best_value == best.value
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "PRUNED", "COMPLETE", "FAIL"]
    for trial in study.trials[:3]:
        assert trial.intermediate_values.keys() == {1, 2}
        assert trial.user_attrs["result"] | {"artifacts": {}} == {"duration": 1.5, "node": "n1", "artifacts": {}}
    for trial in study.trials:
        assert trial.user_attrs.keys() >= {"id", "seed", "config_hash", "code", "grid_index", "values"}
        assert trial.datetime_start <= trial.datetime_complete
    assert study.trials[3].user_attrs["result"] == {"reason": "boom", "artifacts": {"tokenizer": "k"}}
    matplotlib.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history, curves = plots.plot_optimization_history(study), plots.plot_intermediate_values(study)
    assert len(history.collections[0].get_offsets()) == 2  # the completed ones
    assert [list(line.get_xdata()) for line in curves.lines] == [[1, 2]] * 3


def test_the_value_is_the_lowest_when_the_metric_is_minimised(tmp_path: Path):
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, GRID, metric="loss")) as ledger:
        task = ledger.next()
        for epoch, loss in enumerate((3.0, 1.0, 2.0)):
            ledger.report(task.id, {"epoch": epoch, "loss": loss})
        ledger.finish(task.id, "completed", {})
        assert ledger.trials()[0].value == 1.0


# -- grids ------------------------------------------------------------------------------------------------------------


def test_a_grid_runs_in_exact_order_and_its_infeasible_points_are_recorded_and_skipped(tmp_path: Path):
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, GRID)) as ledger:
        assert drive(ledger) == ["trial-0000", "trial-0001", "trial-0004", "trial-0005"]
        points = [tuple(r.params.values()) for r in ledger.trials()]
        assert points == [(h, d) for h in (4, 5, 2) for d in ([64], [128, 64])]
        assert [r.grid_index for r in ledger.trials()] == list(range(6))
        assert ledger.counts()["infeasible"] == 2
        assert "multiple of num_heads (5)" in (ledger.trials()[2].reason or "")
        assert ledger.stop_reason == "grid done"


def test_a_grid_with_a_smaller_budget_runs_its_first_points(tmp_path: Path):
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, GRID, budget__trials=3)) as ledger:
        assert drive(ledger) == ["trial-0000", "trial-0001", "trial-0004"]


def test_in_a_mixed_space_the_grid_goes_round_while_the_rest_is_sampled(tmp_path: Path):
    text = """
space:
  tiger.num_heads: {type: grid, values: [2, 4, 8]}
  train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
constraints: [tiger.num_heads != 4]
"""
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, text, budget__trials=6)) as ledger:
        drive(ledger)
        heads = [r.params["tiger.num_heads"] for r in ledger.trials() if r.status == "completed"]
        rates = {r.params["train.learning_rate"] for r in ledger.trials() if r.status == "completed"}
        assert heads == [2, 8, 2, 8, 2, 8]
        assert len(rates) == 6
        assert ledger.counts()["infeasible"] == 1  # once, not in every round


def test_a_mixed_grid_point_stays_until_a_feasible_sample_of_it_is_handed_out(tmp_path: Path):
    text = """
space:
  tiger.num_heads: {type: grid, values: [2, 4, 8]}
  train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
constraints: [tiger.num_heads == 4 or train.learning_rate < 5e-4]
"""
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, text, budget__trials=9)) as ledger:
        drive(ledger)
        assert ledger.counts()["infeasible"] > 0
        heads = [r.params["tiger.num_heads"] for r in ledger.trials() if r.status == "completed"]
        assert heads == [2, 4, 8] * 3


# -- determinism and kills --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "sampler"), [(SAMPLED, "random"), (GRID, "tpe")])
def test_random_and_grid_sweeps_hand_out_the_same_trials_at_any_concurrency(tmp_path: Path, text: str, sampler: str):
    few_choices = text.replace(
        "{type: float, low: 1e-4, high: 1e-2, log: true}", "{type: choice, values: [1e-3, 1e-2]}"
    )
    for name, source in (("wide", text), ("narrow", few_choices)):
        spec = spec_of(tmp_path, source, budget__trials=9, sampler__type=sampler)
        alone = finished(tmp_path / f"{name}-1", spec)
        for concurrency in (2, 5):
            assert finished(tmp_path / f"{name}-{concurrency}", spec, concurrency, seed=concurrency) == alone


def test_tpe_depends_on_seed_number_and_history_only(tmp_path: Path):
    spec = spec_of(tmp_path, SAMPLED, budget__trials=12, sampler__startup_trials=4)
    alone = finished(tmp_path / "a", spec)
    assert finished(tmp_path / "b", spec) == alone
    other = spec_of(tmp_path, SAMPLED, budget__trials=12, sampler__startup_trials=4, seed=1)
    assert finished(tmp_path / "c", other) != alone
    univariate = spec_of(tmp_path, SAMPLED, budget__trials=8, sampler__startup_trials=4, sampler__multivariate=False)
    assert finished(tmp_path / "d", univariate) == finished(tmp_path / "e", univariate)


@pytest.mark.parametrize("multivariate", [True, False])
def test_proposals_are_those_of_optunas_own_study_with_a_fresh_sampler_each(tmp_path: Path, multivariate: bool):
    import optuna

    spec = spec_of(tmp_path, SAMPLED, budget__trials=24, sampler__multivariate=multivariate)
    with Ledger.create(tmp_path / "x", spec) as ledger:
        drive(ledger)
        records = ledger.trials()
        spaces = distributions(ledger.space.parameters)
    study = optuna.create_study(direction="maximize")
    for record in records:
        study.sampler = optuna.samplers.TPESampler(
            seed=derived_seed(spec.seed, record.number, "sampler"), multivariate=multivariate, constant_liar=True
        )
        trial = study.ask(spaces)
        expected = {k: json.loads(v) if isinstance(v, str) else v for k, v in trial.params.items()}
        assert record.params == expected
        study.tell(trial, record.value)


_GP = pytest.param("gp", marks=pytest.mark.slow)  # a second or more a proposal


@pytest.mark.parametrize("sampler", ["random", "tpe", _GP, "nsga2", "cma-es"])
@pytest.mark.filterwarnings("ignore:.*cut .* bytes")
def test_a_kill_at_any_byte_of_the_journal_changes_nothing(tmp_path: Path, sampler: str):
    text = SAMPLED + "constraints: [train.batch_size != 48]\n"
    spec = spec_of(tmp_path, text, budget__trials=6, **sampler_of(sampler))
    whole = finished(tmp_path / "whole", spec)
    journal = (tmp_path / "whole" / JOURNAL).read_bytes()
    first = len(b"".join(journal.splitlines(keepends=True)[:3]))  # both studies and the spec come by one rename
    rng = random.Random(0)
    boundaries = [i + 1 for i in range(first - 1, len(journal)) if journal[i : i + 1] == b"\n"]
    for end in rng.sample(boundaries, 8) + [rng.randrange(first, len(journal)) for _ in range(8)]:
        folder = tmp_path / f"killed-{end}"
        folder.mkdir()
        (folder / JOURNAL).write_bytes(journal[:end])
        before = {r.id for r in Ledger.read(folder).trials() if r.status == "completed"}
        with Ledger.open(folder) as ledger:
            handed_out = drive(ledger)
            assert essence(ledger) == whole
        assert not before & set(handed_out)
        assert len(set(handed_out)) == len(handed_out)


DRIVER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import made_up_trials
import sweeps.proposer
from made_up_trials import drive
made_up_trials.model_key = sweeps.proposer.model_key = lambda config: None  # the real one takes seconds to load torch
from sweeps.ledger import Ledger
kill_at = int(sys.argv[2])
real_fsync, calls = os.fsync, 0
def fsync(descriptor):
    global calls
    calls += 1
    if calls == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    real_fsync(descriptor)
os.fsync = fsync
with Ledger.open(Path(sys.argv[1])) as ledger:
    drive(ledger)
"""


def test_a_driver_that_is_really_killed_is_resumed_by_the_next(tmp_path: Path):
    spec = spec_of(tmp_path, SAMPLED, budget__trials=8, sampler__type="random")
    whole = finished(tmp_path / "whole", spec)
    Ledger.create(tmp_path / "x", spec).close()
    for kill_at in (3, 4, 7):
        killed_driver(tmp_path / "x", DRIVER, kill_at)
    with Ledger.open(tmp_path / "x") as ledger:
        drive(ledger)
        assert essence(ledger) == whole


def test_a_trial_that_was_running_comes_first_and_unchanged(tmp_path: Path):
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=4)) as ledger:
        first, second = ledger.next(), ledger.next()
        run_one(ledger, first)
    with Ledger.open(tmp_path / "x") as ledger:
        assert ledger.next() == second
        assert ledger.next().id == "trial-0002"


def test_a_torn_tail_is_cut_with_a_warning_and_an_append_after_it_is_readable(tmp_path: Path):
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=2)) as ledger:
        run_one(ledger, ledger.next())
    journal = tmp_path / "x" / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker_id":"tor')
    assert len(Ledger.read(tmp_path / "x").trials()) == 1  # a reader only looks past it
    assert journal.read_bytes() != whole
    with pytest.warns(UserWarning, match="cut 29 bytes"):
        ledger = Ledger.open(tmp_path / "x")
    assert journal.read_bytes() == whole
    with ledger:
        drive(ledger)
    assert Ledger.read(tmp_path / "x").counts()["completed"] == 2


@pytest.mark.parametrize(
    "damage",
    [b"garbage\n", b"\n", b'{"op_code":99,"worker_id":"w"}\n', b"[1]\n", b'{"op_code":5}\n', b"\xff\xfe\n"],
)
@pytest.mark.parametrize("place", [2, 5, -1])
def test_worse_damage_is_refused_and_nothing_is_overwritten(tmp_path: Path, damage: bytes, place: int):
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, GRID)) as ledger:
        drive(ledger)
    journal = tmp_path / "x" / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    place = len(lines) if place == -1 else place
    damaged = b"".join(lines[:place]) + damage + b"".join(lines[place:]) + b'{"torn'
    journal.write_bytes(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LedgerError, match=r"ledger\.journal.*the ledger is damaged") as caught:
            Ledger.open(tmp_path / "x")
    if b"op_code" not in damage:
        assert f"{JOURNAL}:{place + 1}:" in str(caught.value)
    assert journal.read_bytes() == damaged


def test_an_append_that_fails_half_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=2)) as ledger:
        task = ledger.next()
        before = (tmp_path / "x" / JOURNAL).read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left")))
            with pytest.raises(LedgerError, match="No space left"):
                ledger.next()
        assert (tmp_path / "x" / JOURNAL).read_bytes() == before
        run_one(ledger, task)
        assert ledger.next().id == "trial-0001"


# -- one writer, many readers -----------------------------------------------------------------------------------------


def test_a_second_driver_is_told_who_drives(tmp_path: Path):
    spec = spec_of(tmp_path, SAMPLED, budget__trials=2)
    with Ledger.create(tmp_path / "x", spec):
        with pytest.raises(LedgerError, match=rf"sweep x is being driven by pid {os.getpid()} on .+ since 20"):
            Ledger.open(tmp_path / "x")
        assert Ledger.read(tmp_path / "x").state == "searching"
    assert Ledger.read(tmp_path / "x").state == "interrupted"
    with pytest.raises(LedgerError, match="exists; use sweeps resume x"):
        Ledger.create(tmp_path / "x", spec)
    Ledger.open(tmp_path / "x").close()


def test_a_sweep_that_does_not_exist_is_named(tmp_path: Path):
    for way in (Ledger.open, Ledger.read):
        with pytest.raises(LedgerError, match="nowhere: no sweep here"):
            way(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_reader_sees_what_is_appended_later_and_writes_nothing(tmp_path: Path):
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=2)) as ledger:
        reader = Ledger.read(tmp_path / "x")
        assert reader.trials() == []
        files = sorted(path.name for path in (tmp_path / "x").iterdir())
        run_one(ledger, ledger.next())
        assert reader.counts()["completed"] == 1
        with pytest.raises(LedgerError, match="opened for reading"):
            reader.set_fact("a", 1)
        with pytest.raises(LedgerError, match="opened for reading"):
            reader.next()
        assert sorted(path.name for path in (tmp_path / "x").iterdir()) == files


def test_a_lock_file_left_by_another_optuna_process_does_not_delay_anything(tmp_path: Path):
    Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=1)).close()
    os.symlink(tmp_path / "x" / JOURNAL, tmp_path / "x" / f"{JOURNAL}.lock")
    started = time.perf_counter()
    with Ledger.open(tmp_path / "x") as ledger:
        drive(ledger)
    assert time.perf_counter() - started < 2


def test_a_kill_while_the_journal_is_made_leaves_no_sweep(tmp_path: Path):
    spec = spec_of(tmp_path, SAMPLED, budget__trials=1)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / f"{JOURNAL}.new").write_bytes(b'{"half')
    with Ledger.create(tmp_path / "x", spec) as ledger:
        assert drive(ledger) == ["trial-0000"]


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("status", ["completed", "stopped"])
def test_a_metric_that_is_not_finite_fails_the_trial(tmp_path: Path, value: float, status: str):
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=2)) as ledger:
        good, bad = ledger.next(), ledger.next()
        ledger.report(bad.id, {"epoch": 1, "ndcg@10": 9.0})
        ledger.report(bad.id, {"epoch": 2, "ndcg@10": value})
        ledger.finish(bad.id, status, {})
        run_one(ledger, good)
        record = ledger.trials()[1]
        assert (record.status, record.value, record.reason) == ("failed", None, "non-finite ndcg@10 at epoch 2")
        assert ledger.best().id == good.id
        assert len(ledger.leaderboard()) == 1
    for line in (tmp_path / "x" / JOURNAL).read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_metric_that_is_never_reported_fails_the_trial_and_lists_what_was(tmp_path: Path):
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=2)) as ledger:
        task = ledger.next()
        ledger.report(task.id, {"epoch": 1, "recall@10": 0.1, "loss": 1.0})
        ledger.finish(task.id, "completed", {})
        assert ledger.trials()[0].reason == "ndcg@10 was never reported; reported: loss, recall@10"


def test_a_failed_trial_keeps_its_reason_and_late_messages_are_ignored(tmp_path: Path):
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=2)) as ledger:
        task = ledger.next()
        ledger.report(task.id, {"epoch": 1, "ndcg@10": 0.5})
        ledger.finish(task.id, "failed", {"reason": "OOM", "duration": 3.0})
        ledger.report(task.id, {"epoch": 2, "ndcg@10": 0.9})
        ledger.finish(task.id, "completed", {"duration": 9.0})
        record = ledger.trials()[0]
        assert (record.status, record.reason, record.duration, record.value) == ("failed", "OOM", 3.0, None)
        assert len(record.epochs) == 1
        with pytest.raises(LedgerError, match="no such trial"):
            ledger.report("trial-0099", {"epoch": 1})


# -- infeasible points and duplicates ---------------------------------------------------------------------------------


def test_infeasible_samples_are_recorded_and_do_not_use_up_the_budget(tmp_path: Path):
    text = SAMPLED + "constraints: [train.batch_size != 16]\n"
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, text, budget__trials=10)) as ledger:
        assert len(drive(ledger)) == 10
        counts = ledger.counts()
        assert counts["completed"] == 10
        assert counts["infeasible"] > 0
        reasons = {r.reason for r in ledger.trials() if r.status == "infeasible"}
        assert reasons == {"constraint 'train.batch_size != 16' is false for train.batch_size=16"}


def test_a_space_with_almost_nothing_feasible_is_given_up_with_share_and_example(tmp_path: Path):
    text = SAMPLED.replace("low: 16, high: 64, step: 16", "low: 1, high: 1000000") + (
        "constraints: [train.batch_size < 1000000]\n"
    )
    spec = spec_of(tmp_path, text, budget__trials=3)
    rare = SweepSpec.model_validate(spec.to_dict() | {"constraints": ["train.batch_size == 1"]})
    with pytest.raises(LedgerError, match="does not understand the sweep's spec"):  # none of 1000 points is feasible
        Ledger.create(tmp_path / "none", rare)
    with Ledger.create(tmp_path / "x", spec) as ledger:
        ledger._proposer.space = rare.search_space
        for _ in range(2):
            assert ledger.next() is None
            said = "200 points in a row are infeasible, 200 of 200 in all; the last: constraint"
            assert str(ledger.stop_reason).startswith(said)
        assert ledger.counts()["infeasible"] == 200


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_finite_space_ends_when_every_point_was_tried_once(tmp_path: Path, sampler: str, concurrency: int):
    spec = spec_of(tmp_path, CHOICES, budget__trials=30, **sampler_of(sampler))
    with Ledger.create(tmp_path / "x", spec) as ledger:
        assert len(drive(ledger, concurrency)) == 4
        assert ledger.stop_reason == "space exhausted"
        records = ledger.trials()
        originals = {r.number: r for r in records if r.duplicate_of is None}
        assert len({r.config_hash for r in originals.values()}) == len(originals) == 4
        assert sampler != "random" or len(records) == 4  # it proposes nothing twice
        for record in records:
            if record.duplicate_of is not None:
                first = originals[record.duplicate_of]
                assert (record.status, record.value) == (first.status, first.value)
        assert len(ledger.leaderboard()) == 4


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_sampler_that_repeats_itself_still_gets_to_every_feasible_point(tmp_path: Path, sampler: str):
    text = """
space:
  train.optimizer: {type: grid, values: [adamw, muon]}
  train.batch_size: {type: int, low: 16, high: 64, step: 16}
  tiger.dropout: {type: float, low: 0.0, high: 0.3, step: 0.1}
  train.schedule: {type: choice, values: [constant, cosine]}
constraints: [train.batch_size > 16 or train.schedule == 'cosine']
"""
    spec = spec_of(tmp_path, text, budget__trials=80, sampler__type=sampler)
    with Ledger.create(tmp_path / "x", spec) as ledger:
        handed_out = drive(ledger)
        records = ledger.trials()
        assert ledger.stop_reason == "space exhausted"
    assert len(handed_out) == 2 * 4 * 4 * 2 - 2 * 4
    points = [tuple(r.params.values()) for r in records if r.status == "completed" and r.duplicate_of is None]
    assert len(set(points)) == len(points) == len(handed_out)
    assert {r.params["tiger.dropout"] for r in records} == {0.0, 0.1, 0.2, 0.3}
    assert len([r for r in records if r.duplicate_of is not None]) < len(handed_out) + 3 * RANDOM_AFTER
    with Ledger.open(tmp_path / "x") as ledger:
        assert ledger.next() is None


def test_a_space_of_many_equal_points_is_gone_through_to_its_end(tmp_path: Path):
    text = """
space:
  tokenizer.kind: {type: grid, values: [rkmeans, rqvae]}
  tokenizer.rqvae.epochs: {type: grid, values: [VALUES]}
""".replace("VALUES", ", ".join(str(epochs) for epochs in range(1, 71)))
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, text)) as ledger:
        assert len(drive(ledger)) == 1 + 70
        assert ledger.stop_reason == "grid done"


def test_a_duplicate_waits_for_a_first_that_is_running_across_a_kill(tmp_path: Path):
    spec = spec_of(tmp_path, CHOICES, budget__trials=4, sampler__type="tpe")
    with Ledger.create(tmp_path / "x", spec) as ledger:
        tasks = [ledger.next() for _ in range(4)]
        assert ledger.counts()["waiting"] > 0
    with Ledger.open(tmp_path / "x") as ledger:
        assert [ledger.next() for _ in range(4)] == tasks
        ledger.finish(tasks[0].id, "failed", {"reason": "boom"})
        for task in tasks[1:]:
            run_one(ledger, task)
        assert ledger.counts()["waiting"] == 0
        copies = [r for r in ledger.trials() if r.duplicate_of == 0]
        assert all((r.status, r.reason) == ("failed", "boom") for r in copies)


def test_points_that_train_the_same_model_are_trained_once(tmp_path: Path):
    text = """
space:
  tokenizer.kind: {type: choice, values: [rkmeans, rqvae]}
  tokenizer.rqvae.epochs: {type: grid, values: [10, 20]}
  train.augmentation: {type: grid, values: [false, true]}
  train.crop_probability: {type: grid, values: [0.2, 0.4]}
"""
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, text, budget__trials=30, sampler__type="random")) as ledger:
        assert len(drive(ledger)) == 3 * 3  # tokenizers: rkmeans, two of rqvae; augmentation: none, two croppings
        assert len(ledger.trials()) == 16
    with Ledger.open(tmp_path / "x") as ledger:
        assert ledger.next() is None


def test_without_its_files_a_model_is_known_by_its_config(tmp_path: Path):
    settings = {"embeddings.encoder": "npy", "embeddings.path": str(tmp_path / "missing.npy")}
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, CHOICES, budget__trials=9, set=settings)) as ledger:
        assert len(drive(ledger)) == 4


def test_a_swept_seed_is_the_seed_of_the_trial(tmp_path: Path):
    text = "space: {seed: {type: grid, values: [7, 3]}}\n"
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, text)) as ledger:
        assert [ledger.next().payload["seed"] for _ in range(2)] == [7, 3]


# -- budget of time ---------------------------------------------------------------------------------------------------


def test_the_time_of_earlier_sessions_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr("sweeps.ledger.time.monotonic", lambda: clock[0])
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__time="60s")) as ledger:
        run_one(ledger, ledger.next())
        clock[0] += 40
        run_one(ledger, ledger.next())
    assert Ledger.read(tmp_path / "x").elapsed == 40
    with Ledger.open(tmp_path / "x") as ledger:
        running = ledger.next()
        clock[0] += 15
        assert ledger.next() is not None
        clock[0] += 10
        assert ledger.next() is None
        assert ledger.stop_reason == "time"
        assert ledger.elapsed == 65
    with Ledger.open(tmp_path / "x") as ledger:
        assert ledger.next() == running  # what was begun is ended


def test_only_the_search_counts_as_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not Ray's start, nor the re-evaluation, nor a session of nothing else."""
    clock = [100.0]
    monkeypatch.setattr("sweeps.ledger.time.monotonic", lambda: clock[0])
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__time="60s")) as ledger:
        clock[0] += 20
        running = ledger.next()
        clock[0] += 40
        assert remaining_seconds(ledger, ledger.trials()) == 20
        run_one(ledger, running)
        ledger.mark("finalists")
        clock[0] += 1000
    for _ in range(2):
        assert (Ledger.read(tmp_path / "x").search_seconds, Ledger.read(tmp_path / "x").elapsed) == (40, 1060)
        with Ledger.open(tmp_path / "x"):
            pass
    with Ledger.open(tmp_path / "x") as ledger:
        clock[0] += 30
        assert ledger.next() is not None, "20 s are left, whatever else took time"
        clock[0] += 20
        assert ledger.next() is None
        assert (ledger.stop_reason, ledger.search_seconds) == ("time", 60)


def test_the_sessions_of_an_earlier_version_count_as_search_with_their_whole_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = [100.0]
    monkeypatch.setattr("sweeps.ledger.time.monotonic", lambda: clock[0])
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=2)):
        clock[0] += 25
    lines = (tmp_path / "x" / JOURNAL).read_text().splitlines(keepends=True)
    (tmp_path / "x" / JOURNAL).write_text("".join(line for line in lines if '"search:0"' not in line))
    with Ledger.open(tmp_path / "x") as ledger:
        assert ledger.search_seconds == 25
        ledger.next()
        clock[0] += 5
        assert ledger.search_seconds == 30


def test_what_trials_ran_in_earlier_sessions_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr("sweeps.ledger.time.monotonic", lambda: clock[0])
    for seconds in (30.0, 12.5):
        opened = Ledger.create if seconds == 30.0 else lambda folder, spec: Ledger.open(folder)
        with opened(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=2)) as ledger:
            clock[0] += 60
            ledger.note_trial_seconds(seconds - 10)
            if seconds == 30.0:
                assert Ledger.read(tmp_path / "x").earlier_trial_seconds == 20, "a kill now would keep as much"
            ledger.note_trial_seconds(seconds)
    assert Ledger.read(tmp_path / "x").earlier_trial_seconds == 42.5


def test_a_paused_trial_waits_and_samplers_learn_from_it(tmp_path: Path):
    """The next proposal is the one that they would make had the trial been stopped there."""
    proposals = []
    for name in ("paused", "stopped"):
        spec = spec_of(tmp_path, SAMPLED, budget__trials=9, sampler__startup_trials=4)
        with Ledger.create(tmp_path / name, spec) as ledger:
            for value in (0.1, 0.3, 0.2, 0.5, 0.4):
                task = ledger.next()
                ledger.report(task.id, {"epoch": 1, "ndcg@10": value})
                if name == "paused":
                    ledger.pause(task.id, 1)
                else:
                    ledger.finish(task.id, "stopped", {})
            proposals.append(ledger.next().payload["config"])
    assert proposals[0] == proposals[1]
    with Ledger.open(tmp_path / "paused") as ledger:
        assert ledger.counts()["waiting"] == 5
        assert [ledger.next().payload["number"] for _ in range(6)] == [0, 1, 2, 3, 4, 5]
        ledger.report("trial-0003", {"epoch": 2, "ndcg@10": 0.6})
        assert ledger.counts() == ledger.counts() | {"waiting": 4, "running": 2}


def test_after_stop_asking_nothing_is_handed_out(tmp_path: Path):
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=5)) as ledger:
        ledger.next()
        ledger.stop_asking()
        assert ledger.next() is None
        assert ledger.stop_reason == "stopped"


# -- finalists --------------------------------------------------------------------------------------------------------


def test_finalists_are_run_once_each_and_again_only_without_a_result(tmp_path: Path):
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=2)) as ledger:
        drive(ledger)
        config = ledger.config_of(1).to_dict()
        runs = [(finalist, config, seed) for finalist in (1, "base") for seed in (0, 1)]
        queue = FinalistQueue(ledger, runs)
        assert ledger.state == "finalists"
        assert queue.left == 4
        tasks = [queue.next() for _ in range(4)]
        assert queue.left == 0
        assert [t.id for t in tasks] == ["finalist-0001-s0", "finalist-0001-s1", "finalist-base-s0", "finalist-base-s1"]
        assert [t.payload["config"]["seed"] for t in tasks] == [0, 1, 0, 1]
        assert queue.next() is None
        queue.report(tasks[0].id, {"epoch": 1, "ndcg@10": 0.4})
        queue.finish(tasks[0].id, "completed", {"test": {"ndcg@10": 0.31, "recall@10": 0.5}})
        queue.finish(tasks[1].id, "failed", {"reason": "lost"})
        queue.finish(tasks[2].id, "completed", {"test": {"ndcg@10": math.nan}})
    with Ledger.open(tmp_path / "x") as ledger:
        queue = FinalistQueue(ledger, runs)
        assert queue.left == 3
        again = []
        while (task := queue.next()) is not None:
            again.append(task)
            queue.finish(task.id, "completed", {"test": {"ndcg@10": 0.2}})
        assert [t.id for t in again] == ["finalist-base-s1", "finalist-0001-s1", "finalist-base-s0"]
        assert FinalistQueue(ledger, runs).next() is None
        ledger.mark("finished")
    results = {(r.finalist, r.seed): r for r in Ledger.read(tmp_path / "x").finalist_runs()}
    assert results[(1, 0)].result["test"] == {"ndcg@10": 0.31, "recall@10": 0.5}
    assert [r.status for r in results.values()] == ["completed"] * 4
    assert len(Ledger.read(tmp_path / "x").trials()) == 2  # the search does not see them


# -- samplers, conditions, objectives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "tpe", _GP, "nsga2", "cma-es"])
def test_every_sampler_fills_a_space_of_grid_pairs_conditions_and_ranges(tmp_path: Path, sampler: str):
    spec = spec_of(tmp_path, MIXED, budget__trials=14, **sampler_of(sampler))
    with Ledger.create(tmp_path / "x", spec) as ledger:
        drive(ledger, concurrency=2)
        records = ledger.trials()
        assert [r.params["size"] for r in records if r.duplicate_of is None] == ["small", "large"] * 7
        for record in records:
            assert ("tokenizer.rqvae.epochs" in record.params) == (record.params["tokenizer.kind"] == "rqvae")
            config = ledger.config_of(record.number)
            assert config.train.warmup_steps == 20 * config.tiger.num_heads
            assert config.tiger.n_layers == config.tiger.num_heads
            assert config.train.learning_rate == record.params["train.learning_rate"]
        assert {record.params["tokenizer.kind"] for record in records} == {"rqvae", "rkmeans"}
        assert len({record.params["train.learning_rate"] for record in records}) > 3  # nsga2 inherits values


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "cma-es"])
def test_ranges_under_different_conditions_are_independent_of_each_other(tmp_path: Path, sampler: str):
    text = """
space:
  train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
  tokenizer.kind: {type: grid, values: [rqvae]}
  train.optimizer: {type: grid, values: [muon]}
  tokenizer.rqvae.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true, when: {tokenizer.kind: rqvae}}
  train.weight_decay: {type: float, low: 1e-4, high: 1e-2, log: true, when: {train.optimizer: muon}}
"""
    spec = spec_of(tmp_path, text, budget__trials=40, sampler__type=sampler)  # nothing ends, so nothing is learnt
    with Ledger.create(tmp_path / "x", spec) as ledger:
        configs = [ledger.next().payload["config"] for _ in range(40)]
    columns = [
        [math.log(config["train"]["learning_rate"]) for config in configs],
        [math.log(config["tokenizer"]["rqvae"]["learning_rate"]) for config in configs],
        [math.log(config["train"]["weight_decay"]) for config in configs],
    ]
    for one, other in itertools.combinations(columns, 2):
        assert abs(statistics.correlation(one, other)) < 0.5  # four standard errors


@pytest.mark.parametrize("sampler", ["tpe", _GP, "nsga2", "cma-es"])
def test_what_learns_comes_closer_to_the_best_than_chance(tmp_path: Path, sampler: str):
    text = "space:\n" + "".join(
        f"  {name}: {{type: float, low: 0.001, high: 0.9}}\n" for name in ("tiger.dropout", "train.label_smoothing")
    )

    def mean_of_the_last(kind: str) -> float:
        overrides = sampler_of(kind) | ({"sampler__population": 6} if kind in ("nsga2", "cma-es") else {})
        spec = spec_of(tmp_path, text, budget__trials=36, **overrides)
        with Ledger.create(tmp_path / kind, spec) as ledger:
            while (task := ledger.next()) is not None:
                config = task.payload["config"]
                a, b = config["tiger"]["dropout"], config["train"]["label_smoothing"]
                ledger.report(task.id, {"epoch": 1, "ndcg@10": -((a - 0.2) ** 2) - (b - 0.7) ** 2})
                ledger.finish(task.id, "completed", {})
            return sum(record.value or 0.0 for record in ledger.trials()[-12:]) / 12

    assert mean_of_the_last(sampler) > mean_of_the_last("random") + 0.05


def test_random_without_replacement_lists_every_point_beside_every_grid_point_once(tmp_path: Path):
    text = """
space:
  tiger.num_heads: {type: grid, values: [2, 4]}
  train.optimizer: {type: choice, values: [adamw, muon]}
  train.epochs: {type: int, low: 1, high: 3}
constraints: [train.epochs < 3 or train.optimizer == 'muon']
"""
    spec = spec_of(tmp_path, text, budget__trials=30, sampler__type="random")
    with Ledger.create(tmp_path / "x", spec) as ledger:
        assert len(drive(ledger)) == 10
        assert ledger.stop_reason == "space exhausted"
        points = [tuple(record.params.values()) for record in ledger.trials()]
        assert len(set(points)) == len(points) == 12
        assert points != sorted(points)
        assert ledger.counts()["infeasible"] == 2


def test_a_shuffled_grid_runs_every_point_once_in_an_order_of_its_seed(tmp_path: Path):
    text = "space: {train.epochs: {type: grid, values: [1, 2, 3, 4, 5, 6, 7, 8]}}\n"
    orders = []
    for index, (order, seed) in enumerate([("in_order", 0), ("shuffled", 0), ("shuffled", 0), ("shuffled", 1)]):
        spec = spec_of(tmp_path, text, sampler__grid=order, seed=seed)
        with Ledger.create(tmp_path / str(index), spec) as ledger:
            drive(ledger)
            orders.append([record.params["train.epochs"] for record in ledger.trials()])
    assert orders[0] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert orders[1] == orders[2] != orders[3]
    assert all(sorted(order) == orders[0] for order in orders)
    assert orders[0] not in orders[1:]


def test_several_objectives_leave_a_pareto_front(tmp_path: Path):
    text = SAMPLED + "against: {parameters: min, loss: min}\n"
    spec = spec_of(tmp_path, text, budget__trials=8, sampler__type="random")
    outcomes = [(0.5, 100, 1.0), (0.6, 100, 1.0), (0.6, 90, 1.0), (0.9, 300, 1.0), (0.1, 10, 2.0), (0.6, 90, 1.0)]
    with Ledger.create(tmp_path / "x", spec) as ledger:
        for value, parameters, loss in outcomes:
            task = ledger.next()
            ledger.report(task.id, {"epoch": 1, "ndcg@10": value, "loss": loss})
            ledger.report(task.id, {"epoch": 2, "ndcg@10": value / 2, "loss": loss / 2})
            ledger.finish(task.id, "completed", {"parameters": parameters})
        task = ledger.next()
        ledger.report(task.id, {"epoch": 1, "ndcg@10": 0.9, "loss": 1.0})
        ledger.finish(task.id, "completed", {})
        records = ledger.trials()
        assert records[6].status == "failed"
        assert records[6].reason.startswith("parameters was never reported")
        assert records[3].objectives == {"ndcg@10": 0.9, "parameters": 300.0, "loss": 1.0}
        assert [r.number for r in ledger.pareto_front()] == [3, 2, 4]
        assert [r.number for r in ledger.select(2)] == [3, 4]
        assert [r.number for r in ledger.select(1)] == [3]
        assert ledger.best().number == 3


@pytest.mark.parametrize("sampler", ["tpe", _GP, "nsga2"])
def test_samplers_of_several_objectives_find_both_ends(tmp_path: Path, sampler: str):
    text = "space: {train.learning_rate: {type: float, low: 0.01, high: 1.0}}\nagainst: {parameters: min}\n"
    spec = spec_of(tmp_path, text, budget__trials=16, **sampler_of(sampler))
    with Ledger.create(tmp_path / "x", spec) as ledger:
        while (task := ledger.next()) is not None:
            x = task.payload["config"]["train"]["learning_rate"]
            ledger.report(task.id, {"epoch": 1, "ndcg@10": x})
            ledger.finish(task.id, "completed", {"parameters": x * 1000})
        front = ledger.pareto_front()
        assert len(front) == len(ledger.leaderboard())  # every point is a trade-off
        assert front[0].objectives["parameters"] == max(r.objectives["parameters"] for r in front)


# -- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "limit"), [("random", 0.020), ("tpe", 0.030)])
def test_a_trial_costs_the_ledger_milliseconds(tmp_path: Path, sampler: str, limit: float):
    spec = spec_of(tmp_path, SAMPLED, budget__trials=40, sampler__type=sampler)
    with Ledger.create(tmp_path / "x", spec) as ledger:
        started = time.process_time()  # the processor's, so that a busy machine does not fail the test
        while (task := ledger.next()) is not None:
            for epoch in range(5):
                ledger.report(task.id, {"epoch": epoch, "ndcg@10": score(task.payload["config"], epoch), "loss": 1.0})
            ledger.finish(task.id, "completed", {"duration": 1.0})
        assert (time.process_time() - started) / 40 < limit
