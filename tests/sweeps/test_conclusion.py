"""A small sweep in this process, without Ray, to its end: measurements, ensemble, verdict, exports, DataFrames."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml
from in_process import work

import sweeps
from genrec.artifacts import ARTIFACTS, ArtifactStore
from genrec.config import RunConfig, load_config
from genrec.decoding import beam_search
from genrec.errors import InputError
from genrec.modules.metrics import ranking_metrics
from genrec.pipeline import open_interactions, open_tiger, stage_keys
from genrec.recommender import Recommender
from genrec.trie import Trie
from sweeps.conclusion import conclude
from sweeps.differences import differing_settings
from sweeps.experiment import Trainings, finish, note_reading, open_sides
from sweeps.finalists import BASE, config_of_run, finalists_of, note_plan, plan_finalists
from sweeps.ledger import FinalistQueue, Ledger
from sweeps.measuring import measure, measure_ensemble
from sweeps.spec_file import load_spec
from sweeps.status import sweep_status

TINY = Path(__file__).with_name("tiny.yaml")
Queue = Ledger | FinalistQueue | Trainings


@dataclass
class Done:
    """A finished sweep: the folder of all sweeps, its own, and the store."""

    storage: Path
    folder: Path
    store: ArtifactStore

    def config(self, number: int, seed: int) -> RunConfig:
        ledger = Ledger.read(self.folder)
        [run] = [run for run in ledger.finalist_runs() if (run.finalist, run.seed) == (number, seed)]
        return config_of_run(ledger, run)


def reevaluate(ledger: Ledger, store: ArtifactStore) -> None:
    chosen = ledger.select(finalists_of(ledger).top_k)
    plans = plan_finalists(ledger.spec, [(r.number, ledger.config_of(r.number)) for r in chosen], finalists_of(ledger))
    note_plan(ledger, plans)
    work(FinalistQueue(ledger, plans), store)
    conclude(ledger, store, lambda line: None)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    """Two trials that share a tokenizer, and the base; two seeds each."""
    storage = tmp_path_factory.mktemp("storage")
    overrides = {
        "name": "small",
        "space": {"train.learning_rate": {"type": "grid", "values": [3e-3, 1e-2]}},
        "budget.trials": 2,
        "finalists.top_k": 2,
    }
    spec = load_spec(TINY, overrides, {"tokenizer.kind": "rkmeans", "train.epochs": 2, "evaluation.max_users": 30})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = Done(storage, storage / "small", ArtifactStore(storage / ARTIFACTS))
    with Ledger.create(found.folder, spec) as ledger:
        work(ledger, found.store)
        reevaluate(ledger, found.store)
    yield found
    torch.set_num_threads(threads)
    logging.getLogger().handlers.clear()


def test_a_measurement_is_of_all_users_and_equal_to_decoding_one_by_one(done: Done) -> None:
    config = done.config(0, 0)
    measured = measure(config, done.store, "test")
    keys = stage_keys(config)
    interactions = open_interactions(done.store, keys)
    model, _ = open_tiger(done.store.path("tiger", keys["tiger"]))
    assert measured.users.tolist() == interactions.users_of("test").tolist()
    assert measured.metrics["users"] == len(interactions) > 30
    histories, targets = interactions.histories("test"), interactions.targets("test")
    for user in measured.users[:20].tolist():
        history = interactions.items[histories.starts[user] : histories.ends[user]][-model.config.max_seq_len :]
        history_BI = torch.from_numpy(history.astype(np.int64))[None]
        beams = beam_search(model, Trie(model.codes_NC), history_BI, config.evaluation.beam_size)
        listed = beams.item_BW[0].tolist()
        assert [item for item in measured.items_UW[user].tolist() if item >= 0] == [
            item for item in listed if item >= 0
        ]
        expected = listed.index(targets[user]) if targets[user] in listed else -1
        assert measured.rank_U[user] == expected


def test_the_places_give_the_metrics_that_stand_in_the_ledger(done: Done) -> None:
    for run in Ledger.read(done.folder).finalist_runs():
        config = config_of_run(Ledger.read(done.folder), run)
        for split in ("validation", "test"):
            rank_U = measure(config, done.store, split).rank_U  # type: ignore[arg-type]
            for name, value in ranking_metrics(rank_U, [5, 10], config.evaluation.beam_size).result().items():
                assert run.result[split][name] == pytest.approx(value)


def test_the_ensemble_lists_the_items_by_the_mean_of_their_probabilities(done: Done) -> None:
    configs = [done.config(0, 0), done.config(1, 0)]
    singles = [measure(config, done.store, "test") for config in configs]
    both = measure_ensemble(configs, done.store, "test")
    for u in range(15):
        scores: dict[int, float] = {}
        for single in singles:
            for item, score in zip(single.items_UW[u].tolist(), single.scores_UW[u].tolist(), strict=True):
                if item >= 0:
                    scores[item] = scores.get(item, 0.0) + score / 2
        expected = sorted(scores, key=lambda item: (-scores[item], item))[: both.items_UW.shape[1]]
        assert both.items_UW[u, : len(expected)].tolist() == expected


def test_the_status_holds_finalists_ensemble_comparisons_and_the_opening_of_the_test_split(done: Done) -> None:
    status = sweep_status(Ledger.read(done.folder))
    assert {row["trial"] for row in status["finalists"]} == {"trial-0000", "trial-0001", BASE}
    assert status["ensemble"]["members"] in (["trial-0000", "trial-0001"], ["trial-0001", "trial-0000"])
    assert status["ensemble"]["test"]["ndcg@10"].keys() == {"mean", "std"}
    winner = status["finalists"][0]["trial"]
    assert status["winner"]["trial"] == winner
    against = [(row["a"], row["b"]) for row in status["comparisons"]]
    assert len(against) in (2, 3)
    assert against[0] == (winner, status["finalists"][1]["trial"])
    assert against[-1][1] == winner
    assert against[-1][0].startswith("ensemble of trial-000")
    assert [row["verdict"] for row in status["comparisons"]] == status["verdict"][: len(against)] or (
        winner == BASE and status["verdict"][0].startswith("No trial")
    )
    assert status["test_opened"]
    assert len(status["test_readings"]) == 1


def test_best_yaml_is_a_config_and_the_bundle_recommends(done: Done) -> None:
    text = (done.folder / "best.yaml").read_text()
    status = sweep_status(Ledger.read(done.folder))
    assert status["winner"]["trial"] in text.splitlines()[0]
    assert load_config(done.folder / "best.yaml").to_dict() == yaml.safe_load(text)
    recommender = Recommender.load(done.folder / "bundle")
    assert len(recommender.recommend([recommender.ids[:2]], k=5)[0]) == 5


def test_a_sweep_is_loaded_as_dataframes_and_study(done: Done) -> None:
    sweep = sweeps.load("small", done.storage)
    assert (sweep.name, sweep.state) == ("small", "finished")
    assert sweep.trials.index.tolist() == [0, 1]
    assert sweep.trials["train.learning_rate"].tolist() == [3e-3, 1e-2]
    assert sweep.trials["value"].max() == pytest.approx(sweep.study.best_value)
    assert isinstance(sweep.study, optuna.Study)
    assert sweep.curves.groupby("trial").size().tolist() == [2, 2]
    assert sweep.curves.columns[:3].tolist() == ["trial", "epoch", "ndcg@10"]
    assert sorted(sweep.finalists["trial"]) == [BASE] * 2 + ["trial-0000"] * 2 + ["trial-0001"] * 2
    mean = sweep.finalists.groupby("trial")["test.ndcg@10"].mean()
    assert mean[BASE] == pytest.approx(
        next(row["test"]["ndcg@10"]["mean"] for row in sweep.status()["finalists"] if row["trial"] == BASE)
    )
    assert sweep.comparisons["p"].between(0, 1).all()
    assert sweep.best_config().hash == load_config(done.folder / "best.yaml").hash
    assert "finalists on the test split" in str(sweep)
    assert "ensemble of 2 (2 seeds)" in str(sweep)
    assert repr(sweep) == "<Sweep small: finished, 2 trials>"


def test_an_unknown_sweep_is_answered_with_the_nearest(done: Done) -> None:
    with pytest.raises(InputError, match="no sweep 'smal'.*did you mean 'small'"):
        sweeps.load("smal", done.storage)


def test_a_single_seed_measures_the_models_of_the_search_and_trains_only_the_base(done: Done) -> None:
    """Runs after the others: the sweep's winner is chosen again."""
    with Ledger.open(done.folder) as ledger:
        ledger.set_fact("reevaluation", {"seeds": 1, "top_k": 1})
        reevaluate(ledger, done.store)
    ledger = Ledger.read(done.folder)
    best = ledger.select(1)[0]
    run = next(run for run in ledger.finalist_runs() if run.finalist == best.number and run.seed == best.seed)
    assert run.result["trained"] == []
    status = sweep_status(ledger)
    assert sorted(row["trial"] for row in status["finalists"]) == sorted([f"trial-{best.number:04d}", BASE])
    assert [row["p_seeds"] for row in status["comparisons"]] == [None]
    assert status["ensemble"] is None
    assert len(status["test_readings"]) == 2


# ----------------------------------------------------------- sides of an A/B experiment


def test_a_sweep_stands_for_its_winner_with_its_seeds_and_further_ones(done: Done, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    values = load_config(done.folder / "best.yaml").to_dict()
    values["train"]["weight_decay"] = 0.5
    other.write_text(yaml.safe_dump(values))
    ours, theirs = open_sides("small", str(other), 3, {}, done.storage)
    assert (ours.name, theirs.name) == ("small", "other")
    assert len(set(ours.seeds)) == len(theirs.seeds) == 3
    assert differing_settings(ours.config, theirs.config) == {
        "train.weight_decay": [ours.config.train.weight_decay, 0.5]
    }
    assert [config.seed for config in ours.seeded()] == list(ours.seeds)


def test_a_comparison_on_test_is_noted_by_the_sweeps_that_it_reads(done: Done, tmp_path: Path) -> None:
    values = load_config(done.folder / "best.yaml").to_dict()
    values["train"]["weight_decay"] = 0.5
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(values))
    sides = open_sides("small", str(tmp_path / "other.yaml"), 2, {}, done.storage)
    readings = len(sweep_status(Ledger.read(done.folder))["test_readings"])
    said: list[str] = []
    assert note_reading(sides, done.storage, said.append)["noted"] == {"small": True}
    with Ledger.open(done.folder):  # somebody drives it
        assert note_reading(sides, done.storage, said.append)["noted"] == {"small": False}
    [warning] = said
    assert "the ledger of small does not tell that its test split is read again" in warning
    status = sweep_status(Ledger.read(done.folder))
    [row] = status["test_comparisons"]
    assert (row["against"], row["seeds"]) == ("other", list(sides[0].seeds))
    assert (status["state"], len(status["test_readings"])) == ("finished", readings)


def test_an_experiment_trains_what_is_new_and_prints_settings_metrics_and_verdict(done: Done, tmp_path: Path) -> None:
    values = load_config(done.folder / "best.yaml").to_dict()
    values["tiger"]["n_layers"] = 4
    (tmp_path / "deeper.yaml").write_text(yaml.safe_dump(values))
    sides = open_sides("small", str(tmp_path / "deeper.yaml"), 2, {}, done.storage)
    said: list[str] = []
    tasks = Trainings(sides, ["validation"], said.append)
    work(tasks, done.store)
    experiment = finish(sides, tasks, "ndcg@10", "validation", done.store, tmp_path)
    assert all("test" not in result for result in tasks.results.values())
    lines = str(experiment).splitlines()
    assert lines[0].split() == ["small", "deeper"]
    assert lines[1].split() == ["tiger.n_layers", "2", "4"]
    assert any(line.startswith("validation ndcg@10") and line.count("±") == 2 for line in lines)
    assert lines[-1] == experiment.verdict
    assert json.loads(json.dumps(experiment.to_dict()))["comparison"]["split"] == "validation"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, "train the same model"),
        ({"train": {"checkpoint_interval": 1.0}}, "train the same model"),
        ({"dataset": {"synthetic": {"num_users": 81}}}, "different data"),
        ({"evaluation": {"seen": "exclude"}}, "two protocols"),
        ({"train": {"fit_on": "train+validation"}}, "two footings"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    for name, values in (("a", {}), ("b", change)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values or {"seed": 3}))
    with pytest.raises(InputError, match=complaint):
        open_sides(str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), 2, {}, tmp_path)


def test_a_sweep_without_a_winner_is_refused(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "new", load_spec(TINY, {"name": "new"})).close()
    with pytest.raises(InputError, match="sweep new has no winner yet"):
        open_sides("new", "quickstart", 2, {}, tmp_path)
