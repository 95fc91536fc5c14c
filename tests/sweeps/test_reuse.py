"""Trials that an earlier sweep has run are taken over from it, with result, curve and seed, and not run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_up_trials import CHOICES, GRID, SAMPLED, drive, run_one, spec_of

from genrec.config import validate_config
from genrec.errors import InputError
from genrec.pipeline import CODE_VERSIONS
from sweeps.cli import main
from sweeps.ledger import Ledger
from sweeps.model_key import model_key
from sweeps.planner import plan_sweep
from sweeps.reuse import check_names


def grid(folder: Path, values: str, **options: Any) -> Any:
    text = f"space: {{train.batch_size: {{type: grid, values: [{values}]}}}}\n"
    return spec_of(folder, text, **options)


def test_completed_trials_are_taken_over_with_result_curve_and_seed(tmp_path: Path):
    with Ledger.create(tmp_path / "first", grid(tmp_path, "16, 32, 64")) as first:
        run_one(first, first.next())
        run_one(first, first.next(), "stopped")
        run_one(first, first.next())
    with Ledger.create(tmp_path / "second", grid(tmp_path, "8, 64, 32, 16", reuse=["first"], seed=5)) as second:
        assert drive(second) == ["trial-0000", "trial-0002"]  # 8 is new, and 32 had not run to its end
        assert len(second.trials()) == 4
    old, new = Ledger.read(tmp_path / "first").trials(), Ledger.read(tmp_path / "second").trials()
    for here, there in ((new[1], old[2]), (new[3], old[0])):
        assert here.status == "completed"
        assert here.source == {"sweep": "first", "trial": there.id, "duration": 1.5}
        assert (here.value, here.epochs, here.seed, here.node) == (there.value, there.epochs, there.seed, there.node)
        assert here.duration == 0.0
    study = Ledger.read(tmp_path / "second").study
    assert study.trials[1].intermediate_values == Ledger.read(tmp_path / "first").study.trials[2].intermediate_values
    assert Ledger.read(tmp_path / "second").config_of(1).seed == old[2].seed
    assert new[0].source is None


def test_a_plan_knows_what_will_be_taken_over(tmp_path: Path):
    with Ledger.create(tmp_path / "first", grid(tmp_path, "16, 32")) as first:
        drive(first)
    spec = grid(tmp_path, "8, 16, 32, 64", name="second", reuse=["first"])
    plan = plan_sweep(spec, tmp_path, measure=False)
    assert (plan.trials, plan.taken_over) == (4, 0.5)


def test_what_is_taken_over_counts_as_a_trial_and_a_chain_of_sweeps_works(tmp_path: Path):
    options: dict[str, Any] = {"sampler__type": "random"}
    for number, name in enumerate(("a", "b", "c")):
        reuse = {"reuse": ["a", "b"][:number]} if number else {}
        spec = spec_of(tmp_path, SAMPLED, budget__trials=3 + 2 * number, **options, **reuse)
        with Ledger.create(tmp_path / name, spec) as ledger:
            assert len(drive(ledger)) == (3, 2, 2)[number]
            assert ledger.counts()["completed"] == 3 + 2 * number
    sources = [record.source and record.source["sweep"] for record in Ledger.read(tmp_path / "c").trials()]
    assert sources == ["a", "a", "a", "b", "b", None, None]


def test_another_metric_base_or_swept_seed_is_no_equal(tmp_path: Path):
    with Ledger.create(tmp_path / "first", grid(tmp_path, "16, 32")) as first:
        drive(first)
    for name, options in {
        "metric": {"metric": "recall@10"},
        "base": {"set": {"train.epochs": 3}},
        "against": {"against": {"parameters": "min"}},
    }.items():
        with Ledger.create(tmp_path / name, grid(tmp_path, "16, 32", reuse=["first"], **options)) as ledger:
            assert ledger.next() is not None, name
    seeds = "space: {seed: {type: grid, values: [7, 3]}}\n"
    with Ledger.create(tmp_path / "seeds", spec_of(tmp_path, seeds)) as ledger:
        drive(ledger)
    more = "space: {seed: {type: grid, values: [3, 4]}}\n"
    with Ledger.create(tmp_path / "more", spec_of(tmp_path, more, reuse=["seeds"])) as ledger:
        assert drive(ledger) == ["trial-0001"]
        assert ledger.config_of(0).seed == 3


def test_settings_that_no_model_depends_on_make_no_difference(tmp_path: Path):
    with Ledger.create(tmp_path / "first", grid(tmp_path, "16, 32")) as first:
        drive(first)
    unread = {"tracking.tensorboard": True, "train.checkpoint_interval": 60.0, "evaluation.batch_size": 128}
    with Ledger.create(tmp_path / "second", grid(tmp_path, "16, 32", reuse=["first"], set=unread)) as second:
        assert drive(second) == []
        assert second.counts()["completed"] == 2


def test_what_was_trained_with_other_code_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with Ledger.create(tmp_path / "first", grid(tmp_path, "16, 32")) as first:
        drive(first)
    monkeypatch.setitem(CODE_VERSIONS, "tiger", CODE_VERSIONS["tiger"] + 1)
    with Ledger.create(tmp_path / "second", grid(tmp_path, "16, 32", reuse=["first"])) as second:
        assert len(drive(second)) == 2
    assert "2 trials of first had other code or files" in caplog.text


def test_what_was_trained_with_item_vectors_that_were_replaced_is_trained_again(tmp_path: Path):
    vectors = tmp_path / "vectors.npy"
    vectors.write_bytes(b"one")
    settings = {"embeddings.encoder": "npy", "embeddings.path": str(vectors)}
    with Ledger.create(tmp_path / "first", grid(tmp_path, "16, 32", set=settings)) as first:
        drive(first)
    spec = grid(tmp_path, "16, 32", set=settings, reuse=["first"])
    with Ledger.create(tmp_path / "same", spec) as same:
        assert drive(same) == []
    vectors.write_bytes(b"two, longer")
    with Ledger.create(tmp_path / "replaced", spec) as replaced:
        assert len(drive(replaced)) == 2


def test_a_tokenizer_that_the_gate_would_stop_is_not_taken_over(tmp_path: Path):
    broken = {"usage": [0.1], "perplexity": [2.0], "collision_rate": 0.9, "largest_group": 50, "distinct": 3}
    with Ledger.create(tmp_path / "first", grid(tmp_path, "16")) as first:
        task = first.next()
        first.report(task.id, {"epoch": 1, "ndcg@10": 0.5})
        key = model_key(validate_config(task.payload["config"]))
        first.finish(task.id, "completed", {"artifacts": {"tiger": key}, "health": broken})
    for gate, handed_out in ((1.0, 0), (0.5, 1)):
        spec = grid(tmp_path, "16", reuse=["first"], health__max_collision_rate=gate)
        with Ledger.create(tmp_path / f"second-{gate}", spec) as second:
            assert len(drive(second)) == handed_out


def test_data_that_are_known_to_differ_are_refused(tmp_path: Path):
    with Ledger.create(tmp_path / "first", grid(tmp_path, "16, 32")) as first:
        first.set_fact("sessions", [{"data": "aaa"}])
        drive(first)
    with Ledger.create(tmp_path / "second", grid(tmp_path, "16, 32", reuse=["first"])) as second:
        second.set_fact("sessions", [{"data": "bbb"}])
        with pytest.raises(InputError, match="sweep first was run on other data .dataset aaa, here bbb.; fix"):
            second.next()


def test_a_kill_in_between_takes_over_the_same(tmp_path: Path):
    with Ledger.create(tmp_path / "first", spec_of(tmp_path, CHOICES, budget__trials=3, sampler__type="random")) as one:
        drive(one)
    spec = spec_of(tmp_path, CHOICES, budget__trials=4, sampler__type="random", reuse=["first"])
    with Ledger.create(tmp_path / "second", spec) as ledger:
        task = ledger.next()
        assert task.id == "trial-0003"
    with Ledger.open(tmp_path / "second") as ledger:
        assert ledger.next() == task
        assert ledger.next() is None


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path):
    Ledger.create(tmp_path / "quickstart", spec_of(tmp_path, GRID)).close()
    with pytest.raises(InputError, match="reuse: no sweep 'quikstart' in .*; did you mean 'quickstart'"):
        check_names(spec_of(tmp_path, GRID, reuse=["quikstart"]), tmp_path)
    with pytest.raises(InputError, match="knows its own trials already"):
        check_names(spec_of(tmp_path, GRID, reuse=["s"]), tmp_path)
    (tmp_path / "s.yaml").write_text(GRID + "reuse: [quikstart]\n")
    for command in ("validate", "run"):
        done = CliRunner().invoke(main, [command, str(tmp_path / "s.yaml"), "--storage", str(tmp_path)])
        assert done.exit_code == 2
        assert "did you mean 'quickstart'" in done.output
    assert not (tmp_path / "s").exists()
