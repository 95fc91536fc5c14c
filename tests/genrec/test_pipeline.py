"""Stages and their keys: equal work has an equal key, and what is in the store is not made again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genrec.artifacts import CHECKPOINTS, ArtifactStore
from genrec.baselines import evaluate_baselines
from genrec.checkpoint import CheckpointError, generations
from genrec.config import RunConfig, validate_config, with_values
from genrec.errors import InputError
from genrec.evaluation import evaluate
from genrec.pipeline import (
    STAGES,
    open_embeddings,
    open_ids,
    open_interactions,
    open_tiger,
    run_pipeline,
    stage_keys,
)
from genrec.trie import Trie


def changed(config: RunConfig, **values: Any) -> RunConfig:
    """`changed(config, train__epochs=3)`."""
    return validate_config(with_values(config.to_dict(), {key.replace("__", "."): v for key, v in values.items()}))


def moved(config: RunConfig, **values: Any) -> list[str]:
    """Stages whose key the change moves."""
    before, after = stage_keys(config), stage_keys(changed(config, **values))
    return [stage for stage in STAGES if before[stage] != after[stage]]


@pytest.mark.parametrize(
    ("values", "first"),
    [
        ({"dataset__synthetic__num_users": 90}, "dataset"),
        ({"embeddings__dim": 4}, "embeddings"),
        ({"tokenizer__num_item_embeddings": 4}, "tokenizer"),
        ({"tokenizer__kind": "rqvae"}, "tokenizer"),
        ({"tokenizer__seed": 1}, "tokenizer"),
        ({"tiger__dropout": 0.3}, "tiger"),
        ({"train__learning_rate": 1e-4}, "tiger"),
        ({"train__epochs": 3}, "tiger"),
        ({"seed": 1}, "tiger"),
        ({"evaluation__max_users": 5}, "tiger"),
    ],
)
def test_a_setting_moves_the_keys_of_its_stage_and_those_after_it(tiny, values, first):
    assert moved(tiny, **values) == list(STAGES[STAGES.index(first) :])


@pytest.mark.parametrize(
    "values",
    [
        {"train__checkpoint_interval": 0.0},
        {"evaluation__batch_size": 7},
        {"tokenizer__rqvae__epochs": 77},  # the tokenizer is rkmeans
    ],
)
def test_a_setting_that_changes_no_result_moves_no_key(tiny, values):
    assert moved(tiny, **values) == []


def test_settings_of_the_rqvae_count_where_it_is_used(tiny):
    rqvae = changed(tiny, tokenizer__kind="rqvae")
    assert moved(rqvae, tokenizer__rqvae__latent_dim=4) == ["tokenizer", "semantic_ids", "tiger"]


# ------------------------------------------------------------------- files


def write_files(folder: Path) -> RunConfig:
    items = [{"item_id": n, "title": f"thing {n % 3} of kind {n % 5}"} for n in range(1, 13)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    lines = [f"u{u} " + " ".join(str(1 + (u + step) % 12) for step in range(4)) for u in range(8)]
    (folder / "sequential_data.txt").write_text("\n".join(lines) + "\n")
    np.save(folder / "vectors.npy", np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32))
    return validate_config(
        {
            "dataset": {"source": "sequential", "dataset_folder": str(folder)},
            "embeddings": {"encoder": "npy", "path": "vectors.npy"},
            "tokenizer": {"kind": "rkmeans", "num_item_embeddings": 3, "sem_id_dim": 2},
        }
    )


def test_keys_follow_the_content_of_files_not_their_place_or_time(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    config = write_files(first)
    before = stage_keys(config)
    shutil.copytree(first, second)
    assert stage_keys(changed(config, dataset__dataset_folder=str(second))) == before
    os.utime(first / "items.jsonl", (1, 1))
    assert stage_keys(config) == before

    text = (first / "sequential_data.txt").read_text()
    (first / "sequential_data.txt").write_text(text.replace("u0 1 2", "u0 2 1"))
    assert stage_keys(config)["dataset"] != before["dataset"]
    (first / "sequential_data.txt").write_text(text)
    np.save(first / "vectors.npy", np.ones((12, 4), dtype=np.float32))
    after = stage_keys(config)
    assert after["dataset"] == before["dataset"]
    assert after["embeddings"] != before["embeddings"]


@pytest.mark.parametrize("name", ["items.jsonl", "sequential_data.txt", "vectors.npy"])
def test_a_missing_file_is_named(tmp_path, name):
    config = write_files(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=name):
        stage_keys(config)


def test_stages_run_on_files(tmp_path):
    config, store = write_files(tmp_path), ArtifactStore(tmp_path / "store")
    result = run_pipeline(config, store, until="semantic_ids")
    assert result.trained == list(STAGES[:-1])
    ids = open_ids(store, result.keys)
    assert len(ids.codes_NC) == len(open_interactions(store, result.keys).catalogue) == 12
    assert torch.equal(open_embeddings(store, result.keys), torch.from_numpy(np.load(tmp_path / "vectors.npy")))
    assert len({tuple(row) for row in ids.codes_NC.tolist()}) == 12


# --------------------------------------------------------------- whole runs


def test_a_second_run_reuses_all(trained):
    rows: list[dict] = []
    result = run_pipeline(trained.config, trained.store, report=rows.append)
    assert result.reused == list(STAGES)
    assert result.trained == rows == []


def test_a_run_that_shares_stages_makes_only_its_own(trained):
    config = changed(trained.config, train__epochs=1, evaluation__max_users=20)
    result = run_pipeline(config, trained.store)
    assert result.reused == ["dataset", "embeddings", "tokenizer", "semantic_ids"]
    assert result.trained == ["tiger"]


def test_chosen_stages_run_alone(trained):
    result = run_pipeline(trained.config, trained.store, stages=("tokenizer", "semantic_ids"))
    assert result.reused == ["tokenizer", "semantic_ids"]


def test_loops_go_through_the_launcher_and_nothing_else_does(trained):
    launched: list[str] = []

    def launch(loop, argument) -> None:
        json.dumps(argument)  # it must travel to another machine
        launched.append(argument["stage"])
        loop(argument, lambda row: None)

    config = changed(
        trained.config, tokenizer__kind="rqvae", tokenizer__rqvae__epochs=2, train__epochs=1, evaluation__max_users=20
    )
    result = run_pipeline(config, trained.store, launch=launch)
    assert launched == ["tokenizer", "tiger"]
    assert result.trained == ["tokenizer", "semantic_ids", "tiger"]


def test_a_tokenizer_is_ended_by_the_launchers_report_and_goes_on_from_its_checkpoint(trained):
    config = changed(trained.config, tokenizer__kind="rqvae", tokenizer__rqvae__epochs=6, tokenizer__seed=5)
    signs: list[dict] = []

    def launch_until(epoch: int) -> Callable[..., None]:
        def report(sign: dict) -> None:
            signs.append(sign)
            if sign["stage_epoch"] == epoch:
                raise SystemExit(0)

        return lambda loop, argument: loop(argument, report)

    with pytest.raises(SystemExit):
        run_pipeline(config, trained.store, until="tokenizer", launch=launch_until(3))
    assert signs == [{"stage": "tokenizer", "stage_epoch": epoch, "stage_epochs": 6} for epoch in (1, 2, 3)]
    key = stage_keys(config)["tokenizer"]
    [checkpoint] = generations(trained.store.part("tokenizer", key) / CHECKPOINTS)
    assert checkpoint.name.endswith("3"), "saved at the stop, for none was due"
    signs.clear()
    result = run_pipeline(config, trained.store, until="tokenizer", launch=launch_until(99))
    assert result.trained == ["tokenizer"], "the claim was free"
    assert len(signs) == 6, "three rows that were known, three new epochs"


def test_a_row_an_epoch_is_reported(trained):
    assert [row["epoch"] for row in trained.rows] == list(range(1, trained.config.train.epochs + 1))
    assert {"loss", "recall@5", "ndcg@5", "tuple_recall@5", "users"} <= trained.rows[-1].keys()
    assert trained.rows[-1]["users"] == 400


def test_the_weights_of_the_best_epoch_are_saved(trained):
    keys = stage_keys(trained.config)
    model, facts = open_tiger(trained.store.path("tiger", keys["tiger"]))
    best = max(trained.rows, key=lambda row: (row["ndcg@5"], -row["epoch"]))
    assert facts["best"] == best
    assert facts["rows"] == trained.rows
    interactions = open_interactions(trained.store, keys)
    found = evaluate(
        model, Trie(model.codes_NC), interactions, "validation", trained.config.evaluation, facts["tuple_levels"]
    )
    assert found == pytest.approx({name: best[name] for name in found})


def test_the_model_beats_the_most_popular_items(trained):
    keys = stage_keys(trained.config)
    model, facts = open_tiger(trained.store.path("tiger", keys["tiger"]))
    interactions = open_interactions(trained.store, keys)
    settings = trained.config.evaluation
    found = evaluate(model, Trie(model.codes_NC), interactions, "test", settings, facts["tuple_levels"])
    popular = evaluate_baselines(interactions, "test", [5])["most_popular"]
    assert found["recall@5"] > 1.5 * popular["recall@5"]


def test_a_damaged_artifact_is_refused_by_name(trained, tmp_path):
    folder = trained.store.path("tiger", stage_keys(trained.config)["tiger"])
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = bytearray((copy / "model" / "tensors.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model" / "tensors.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tensors\.safetensors: damaged"):
        open_tiger(copy)
