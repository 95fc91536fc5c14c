"""Resuming with more to do: what was tried stays where it was, what is new comes after it, the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_up_trials import CHOICES, GRID, MIXED, SAMPLED, drive, essence, run_one, sampler_of, score, spec_of

from genrec.errors import InputError
from sweeps import api
from sweeps.cli import main
from sweeps.finalists import finalists_of
from sweeps.ledger import FinalistQueue, Ledger
from sweeps.revisions import described, difference
from sweeps.spec import SweepSpec

WIDER = """
space:
  train.learning_rate: {type: float, low: 1e-5, high: 1e-1, log: true}
  train.batch_size: {type: int, low: 16, high: 128, step: 16}
  tokenizer.rqvae.hidden_dims: {type: choice, values: [[32], [64], [128, 64]]}
  train.optimizer: {type: choice, values: [muon, adamw]}
"""
FINITE_WIDER = """
space:
  train.optimizer: {type: choice, values: [adamw, muon]}
  train.schedule: {type: choice, values: [linear, constant, cosine]}
"""


def sampled(folder: Path, text: str, kind: str, trials: int) -> Any:
    return spec_of(folder, text, budget__trials=trials, **sampler_of(kind))


@pytest.mark.parametrize("ledger", [None, "sqlite:///ledgers.db"])
@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "cma-es"])
def test_a_wider_space_keeps_its_trials_and_learns_from_them(tmp_path: Path, sampler: str, ledger: str | None):
    options: dict[str, Any] = sampler_of(sampler) | ({"ledger": ledger} if ledger else {})
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=8, **options)) as before:
        drive(before)
        first = essence(before)
        best = before.best()
    with Ledger.open(tmp_path / "x") as after:
        revision = after.revise(spec_of(tmp_path, WIDER, budget__trials=24, **options))
        assert revision is not None
        assert revision.trials == len(first)
        handed_out = drive(after)
        assert len(handed_out) == 16
        assert essence(after)[: len(first)] == first
        records = after.trials()
        assert after.best().value >= best.value
        assert {r.params["train.optimizer"] for r in records[len(first) :]} == {"muon", "adamw"}
        assert "train.optimizer" not in records[0].params
        assert after.config_of(0).train.optimizer == after.spec.base_config().train.optimizer
        gained = [r.params["train.batch_size"] > 64 or r.params["train.learning_rate"] > 1e-2 for r in records]
        assert any(gained[len(first) :])
        assert not any(gained[: len(first)])
    with Ledger.open(tmp_path / "x") as again:
        assert essence(again)[: len(first)] == first
        assert again.next() is None
        assert len(Ledger.read(tmp_path / "x").revisions) == 1


@pytest.mark.parametrize("sampler", ["random", "tpe", "cma-es"])
@pytest.mark.filterwarnings("ignore:.*cut .* bytes")
def test_a_kill_after_a_revision_changes_nothing(tmp_path: Path, sampler: str):
    def widened(folder: Path) -> Ledger:
        with Ledger.create(folder, sampled(tmp_path, SAMPLED, sampler, 5)) as ledger:
            drive(ledger)
        ledger = Ledger.open(folder)
        ledger.revise(sampled(tmp_path, WIDER, sampler, 12))
        return ledger

    with widened(tmp_path / "whole") as ledger:
        drive(ledger)
        whole = essence(ledger)
    widened(tmp_path / "x").close()
    for _ in range(3):
        with Ledger.open(tmp_path / "x") as ledger:
            run_one(ledger, ledger.next())
            ledger.next()  # is running when the driver dies
    with Ledger.open(tmp_path / "x") as ledger:
        drive(ledger)
        assert essence(ledger) == whole


def test_what_a_sampler_sees_of_an_earlier_trial_is_its_place_in_the_present_space(tmp_path: Path):
    with Ledger.create(tmp_path / "x", sampled(tmp_path, SAMPLED, "tpe", 6)) as ledger:
        drive(ledger)
        ledger.revise(sampled(tmp_path, WIDER, "tpe", 9))
        run_one(ledger, ledger.next())
        shown = ledger._proposer._sampling._view.shown
        stored = Ledger.read(tmp_path / "x").study.trials
        for seen, kept in zip(shown, stored, strict=False):
            hidden = "tokenizer.rqvae.hidden_dims"
            assert seen.params == kept.params | {"train.optimizer": seen.params["train.optimizer"]}
            assert seen.distributions[hidden].to_internal_repr(seen.params[hidden]) >= 1  # [32] came before the others
            assert kept.distributions[hidden].choices == ("[64]", "[128, 64]")
            assert seen.values == kept.values


def test_a_grid_goes_on_with_the_points_it_has_gained(tmp_path: Path):
    wider = """
space:
  tiger.num_heads: {type: grid, values: [8, 4, 5, 2]}
  tokenizer.rqvae.hidden_dims: {type: grid, values: [[64], [128, 64]]}
"""
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, GRID)) as ledger:
        drive(ledger)
        before = essence(ledger)
        assert ledger.stop_reason == "grid done"
        ledger.revise(spec_of(tmp_path, wider))
        assert len(drive(ledger)) == 2
        assert essence(ledger)[:6] == before
        assert [tuple(r.params.values()) for r in ledger.trials()[6:]] == [(8, [64]), (8, [128, 64])]
        assert ledger.stop_reason == "grid done"


def test_a_grid_that_is_given_another_dimension_does_not_run_its_points_again(tmp_path: Path):
    one = "space: {tiger.num_heads: {type: grid, values: [4, 2]}}\n"
    two = """
space:
  tiger.num_heads: {type: grid, values: [4, 2]}
  train.optimizer: {type: grid, values: [adamw, muon]}
"""
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, one)) as ledger:
        drive(ledger)
        base = ledger.spec.base_config().train.optimizer
        ledger.revise(spec_of(tmp_path, two))
        assert len(drive(ledger)) == 2
        assert base not in [r.params["train.optimizer"] for r in ledger.trials()[2:]]


def test_a_point_that_a_constraint_forbade_is_run_when_the_constraint_is_gone(tmp_path: Path):
    forbidden = "space: {train.batch_size: {type: grid, values: [16, 32, 64]}}\nconstraints: [train.batch_size != 32]\n"
    with Ledger.create(tmp_path / "x", spec_of(tmp_path, forbidden)) as ledger:
        drive(ledger)
        assert [r.status for r in ledger.trials()] == ["completed", "infeasible", "completed"]
        ledger.revise(spec_of(tmp_path, forbidden.splitlines()[0]))
        drive(ledger)
        assert [r.params["train.batch_size"] for r in ledger.trials() if r.status == "completed"] == [16, 64, 32]


def test_in_a_mixed_space_a_grid_point_that_is_allowed_again_takes_its_turns_like_others(tmp_path: Path):
    text = """
space:
  tiger.num_heads: {type: grid, values: [2, 4]}
  train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
constraints: [tiger.num_heads != 4]
"""
    with Ledger.create(tmp_path / "x", sampled(tmp_path, text, "random", 3)) as ledger:
        drive(ledger)
        ledger.revise(sampled(tmp_path, text.replace("constraints: [tiger.num_heads != 4]", ""), "random", 9))
        ledger.revise(sampled(tmp_path, text.replace("constraints: [tiger.num_heads != 4]", ""), "random", 11))
        drive(ledger)
        heads = [r.params["tiger.num_heads"] for r in ledger.trials() if r.status == "completed"]
        assert heads == [2, 2, 2] + [4, 2] * 4


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_finite_space_that_was_exhausted_goes_on_with_what_it_has_gained(tmp_path: Path, sampler: str):
    with Ledger.create(tmp_path / "x", sampled(tmp_path, CHOICES, sampler, 40)) as ledger:
        assert len(drive(ledger)) == 4
        assert ledger.stop_reason == "space exhausted"
        ledger.revise(sampled(tmp_path, FINITE_WIDER, sampler, 40))
        assert len(drive(ledger)) == 2
        assert ledger.stop_reason == "space exhausted"
        points = [tuple(r.params.values()) for r in ledger.trials() if r.duplicate_of is None]
        assert len(set(points)) == 6


def test_conditions_and_pairs_are_widened_too(tmp_path: Path):
    wider = MIXED.replace("high: 90", "high: 95").replace("[rkmeans, rqvae]", "[rqvae, rkmeans]")
    with Ledger.create(tmp_path / "x", sampled(tmp_path, MIXED, "tpe", 8)) as ledger:
        drive(ledger)
        ledger.revise(sampled(tmp_path, wider, "tpe", 16))
        drive(ledger)
        records = ledger.trials()
        assert [r.params["size"] for r in records if r.duplicate_of is None] == ["small", "large"] * 8


def test_a_smaller_budget_stops_and_the_same_spec_is_no_revision(tmp_path: Path):
    with Ledger.create(tmp_path / "x", sampled(tmp_path, SAMPLED, "random", 8)) as ledger:
        for _ in range(4):
            run_one(ledger, ledger.next())
        assert ledger.revise(sampled(tmp_path, SAMPLED, "random", 8)) is None
        ledger.revise(sampled(tmp_path, SAMPLED, "random", 3))
        assert ledger.next() is None
        assert ledger.stop_reason == "budget"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"metric": "recall@10"}, "metric: 'ndcg@10' -> 'recall@10': the recorded trials were made with 'ndcg@10'"),
        ({"sampler__type": "tpe"}, "sampler.type: 'random' -> 'tpe'"),
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"set": {"train.epochs": 7}}, "base_values.train.epochs: "),
        ({"base": "paper"}, "base_values."),
        ({"against": {"parameters": "min"}}, "against.parameters: nothing -> 'min'"),
        ({"scheduler__type": "asha"}, "scheduler.type: 'none' -> 'asha'"),
        ({"ledger": "sqlite:///x.db"}, "ledger: nothing -> 'sqlite:///x.db'"),
        ({"derive": {"train.warmup_steps": "2 * train.batch_size"}}, "derive.train.warmup_steps: nothing ->"),
        ({"constraints": ["train.batch_size < 60"]}, "constraints: 'train.batch_size < 60' is new"),
        (("high: 1e-2", "high: 5e-3"), "0.0001 to 0.005 does not hold all of it"),
        (("high: 64, step: 16", "high: 64, step: 8"), "space.train.batch_size: log and step cannot change"),
        (("[[64], [128, 64]]", "[[64]]"), "[128, 64] was searched and cannot be left out"),
        (("type: float, low: 1e-4, high: 1e-2, log: true", "type: choice, values: [1e-4, 1e-2]"), "was float"),
        (("train.batch_size:", "train.epochs:"), "space.train.batch_size: was searched; it cannot be left out"),
        (("space:\n", "space:\n  train.epochs: {type: int, low: 600, high: 700}\n"), "space.train.epochs: is new, and"),
    ],
)
def test_what_contradicts_the_record_is_refused_key_by_key_and_changes_nothing(tmp_path: Path, change: Any, line: str):
    text = SAMPLED.replace(*change) if isinstance(change, tuple) else SAMPLED
    options = {"budget__trials": 9, "sampler__type": "random"} | (change if isinstance(change, dict) else {})
    with Ledger.create(tmp_path / "x", sampled(tmp_path, SAMPLED, "random", 4)) as ledger:
        drive(ledger)
        before = ledger.spec
        with pytest.raises(InputError, match="sweep s cannot become what is asked for") as refused:
            ledger.revise(spec_of(tmp_path, text, **options))
        assert line in str(refused.value)
        assert "reuse: [s]" in str(refused.value)
        assert ledger.spec == before
    assert Ledger.read(tmp_path / "x").revisions == []


def test_a_revision_is_stored_with_its_difference(tmp_path: Path):
    with Ledger.create(tmp_path / "x", sampled(tmp_path, SAMPLED, "random", 2)) as ledger:
        drive(ledger)
        ledger.mark("finished")
        ledger.revise(spec_of(tmp_path, WIDER, budget__trials=4, budget__time="2h", sampler__type="random"))
        assert ledger.state == "searching"
    (revision,) = Ledger.read(tmp_path / "x").revisions
    lines = described(revision.difference)
    assert "budget.trials: 2 -> 4" in lines
    assert "budget.time: nothing -> 7200.0" in lines
    assert any(line.startswith("space.train.optimizer: nothing -> {type: choice, values: ") for line in lines)
    assert json.loads(json.dumps(revision.to_dict())) == revision.to_dict()


def test_the_command_refuses_a_contradiction_with_a_line_a_key_and_starts_nothing(tmp_path: Path):
    with Ledger.create(tmp_path / "s", sampled(tmp_path, SAMPLED, "random", 1)) as ledger:
        drive(ledger)
        ledger.mark("finished")
    edited = tmp_path / "edited.yaml"
    edited.write_text(SAMPLED + "budget: {trials: 4}\nsampler: {type: tpe}\nseed: 3\n")
    options = ["--storage", str(tmp_path)]
    refused = CliRunner().invoke(main, ["resume", "s", "--file", str(edited), *options])
    assert refused.exit_code == 2
    assert [line.split(":")[1] for line in refused.output.splitlines()[1:3]] == [" sampler.type", " seed"]
    assert Ledger.read(tmp_path / "s").state == "finished"
    same = CliRunner().invoke(main, ["resume", "s", "--trials", "1", *options])
    assert same.exit_code == 0
    assert "s is finished; nothing to do" in same.output
    again = CliRunner().invoke(main, ["run", str(edited), "--name", "s", "--resume", *options])
    assert again.exit_code == 0
    assert "sampler.type: 'random' -> 'tpe'" in again.output
    assert "sweeps resume s --file FILE" in again.output
    revised = CliRunner().invoke(main, ["run", str(edited), "--name", "s", "--resume", "--revise", *options])
    assert revised.output == refused.output
    assert CliRunner().invoke(main, ["run", str(edited), "--revise", *options]).exit_code == 2
    bad = CliRunner().invoke(main, ["resume", "s", "--time", "soon", *options])
    assert bad.exit_code == 2
    assert "budget.time" in bad.output


def test_run_continues_with_what_the_file_says_now_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = sampled(tmp_path, SAMPLED, "random", 1)
    Ledger.create(tmp_path / "s", spec).close()
    driven = []

    def note(ledger: Ledger, address: str | None, quiet: bool, spec: SweepSpec, **accepted: bool) -> None:
        driven.append(spec)
        ledger.close()

    monkeypatch.setattr(api, "_drive", note)
    more = SweepSpec.from_dict(spec.to_dict() | {"budget": {"trials": 4}})
    api.start(more, storage=tmp_path, or_resume=True, revise=True, quiet=True)
    api.start(more, storage=tmp_path, or_resume=True, quiet=True)
    assert driven == [more, spec]


def test_a_difference_names_keys_and_values():
    old, new = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "e": None, "d": [1]}
    assert difference(old, new) == {"a.c": [2, 3]}


def test_finalists_that_were_measured_are_kept_where_config_and_seed_are_equal(tmp_path: Path):
    def measured(ledger: Ledger, config: dict[str, Any]) -> list[str]:
        queue = FinalistQueue(ledger, [(finalist, config, seed) for finalist in (0, "base") for seed in (0, 1)])
        names = []
        while (task := queue.next()) is not None:
            names.append(task.id)
            queue.finish(task.id, "completed", {"test": {"ndcg@10": 0.1 * len(names)}})
        return names

    with Ledger.create(tmp_path / "x", sampled(tmp_path, SAMPLED, "random", 2)) as ledger:
        drive(ledger)
        config = ledger.config_of(0).to_dict()
        assert len(measured(ledger, config)) == 4
        ledger.revise(sampled(tmp_path, SAMPLED, "random", 3))
        assert ledger.state == "searching"
        drive(ledger)
        assert measured(ledger, config) == []
        assert len(measured(ledger, config | {"train": config["train"] | {"epochs": 9}})) == 4
        values = [run.result["test"]["ndcg@10"] for run in ledger.finalist_runs()]
        assert values == [pytest.approx(0.1 * n) for n in (1, 2, 3, 4)]


def test_finalists_chosen_by_command_hold_until_the_file_says_something_later(tmp_path: Path):
    with Ledger.create(tmp_path / "x", sampled(tmp_path, SAMPLED, "random", 2)) as ledger:
        ledger.set_fact("reevaluation", {"top_k": 7, "revisions": 0})
        ledger.revise(sampled(tmp_path, SAMPLED, "random", 3))
        assert finalists_of(ledger).top_k == 7
        ledger.revise(spec_of(tmp_path, SAMPLED, budget__trials=3, sampler__type="random", finalists__top_k=2))
        assert finalists_of(ledger).top_k == 2


def test_a_trial_that_was_running_at_a_revision_is_run_as_it_was_asked_for(tmp_path: Path):
    with Ledger.create(tmp_path / "x", sampled(tmp_path, SAMPLED, "random", 2)) as ledger:
        task = ledger.next()
    with Ledger.open(tmp_path / "x") as ledger:
        ledger.revise(sampled(tmp_path, WIDER, "random", 4))
        assert ledger.next() == task
        assert score(task.payload["config"], 1) > 0
