"""From a config to a bundle: what is trained again and what is not, and several workers under a launcher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from genrec.artifacts import ArtifactStore
from genrec.config import RunConfig, create_config, load_config, validate_config, with_values
from genrec.models.tokenizers import load_tokenizer
from genrec.pipeline import open_tiger, stage_keys
from genrec.recommender import Recommender
from genrec.training import default_store, train_model, train_tokenizer_model


def changed(config: RunConfig, **values: object) -> RunConfig:
    return validate_config(with_values(config.to_dict(), {k.replace("__", "."): v for k, v in values.items()}))


@pytest.mark.parametrize(
    "values",
    [
        {"save_dir_root": "elsewhere"},
        {"tracking__wandb_logging": True, "tracking__wandb_project": "x", "tracking__tensorboard": True},
        {"tracking__wandb_log_interval": 1},
        {"train__checkpoint_interval": 0.0},
        {"evaluation__batch_size": 7},
        {"evaluation__blend": "item_to_item", "evaluation__blend_fit": "train+validation"},
        {"train__mask_probability": 0.3, "train__crop_probability": 0.3, "train__reorder_probability": 0.3},
        {"dataset__dataset_folder": "unused"},
        {"dataset__amazon__category": "Toys_and_Games", "dataset__movielens__edition": "1m"},
        {"embeddings__model": "unused", "embeddings__batch_size": 7},
        {"tokenizer__rqvae__epochs": 5},
    ],
    ids=lambda values: next(iter(values)),
)
def test_settings_that_do_not_change_what_is_learnt_change_no_key(tiny, values):
    other = changed(tiny, **values)
    assert other.hash != tiny.hash
    assert stage_keys(other) == stage_keys(tiny)


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"seed": 1}, ["dataset", "embeddings", "tokenizer", "semantic_ids"]),
        ({"train__augmentation": True}, ["dataset", "embeddings", "tokenizer", "semantic_ids"]),
        ({"train__patience": 3}, ["dataset", "embeddings", "tokenizer", "semantic_ids"]),
        ({"tiger__num_user_embeddings": 8}, ["dataset", "embeddings", "tokenizer", "semantic_ids"]),
        ({"evaluation__seen": "exclude"}, ["dataset", "embeddings", "tokenizer", "semantic_ids"]),
        ({"tokenizer__collisions": "reassign"}, ["dataset", "embeddings", "tokenizer"]),
        ({"tokenizer__seed": 1}, ["dataset", "embeddings"]),
        ({"embeddings__dim": 9}, ["dataset"]),
        ({"dataset__min_history": 4}, []),
    ],
    ids=lambda value: next(iter(value), "none"),
)
def test_settings_that_change_what_is_learnt_change_the_keys_from_their_stage_on(tiny, values, kept):
    before, after = stage_keys(tiny), stage_keys(changed(tiny, **values))
    assert [stage for stage in before if before[stage] == after[stage]] == kept


def test_probabilities_count_when_augmentation_is_on(tiny):
    augmented = changed(tiny, train__augmentation=True)
    assert stage_keys(augmented)["tiger"] != stage_keys(changed(augmented, train__mask_probability=0.3))["tiger"]


def test_the_keys_do_not_depend_on_the_order_of_a_file_or_on_written_defaults(tiny, tmp_path):
    texts = [yaml.safe_dump(tiny.to_dict(), sort_keys=order) for order in (True, False)]
    keys = []
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        keys.append(stage_keys(load_config(path)))
    assert keys[0] == keys[1] == stage_keys(tiny)


def test_train_model_leaves_a_bundle_below_the_folder_of_results(trained, tmp_path):
    heard: list[dict] = []
    config = changed(trained.config, save_dir_root=str(tmp_path), train__epochs=1)
    found = train_model(config, store=trained.store, report=heard.append)
    assert found.bundle == tmp_path / "models" / config.hash
    assert found.rows == heard
    assert found.best["epoch"] == 1
    assert Recommender.load(found.bundle).ids == Recommender.load(trained.bundle).ids


def test_a_bundle_has_the_config_of_its_run_though_the_model_was_there_already(trained, tmp_path):
    config = changed(trained.config, evaluation__blend="item_to_item", save_dir_root=str(tmp_path))
    found = train_model(config, store=trained.store, out=tmp_path / "bundle")
    assert stage_keys(config) == stage_keys(trained.config)
    assert validate_config(open_tiger(found.bundle)[1]["config"]) == config
    assert Recommender.load(found.bundle).blend is not None


def test_the_store_is_below_the_folder_of_results(tiny, tmp_path):
    assert default_store(changed(tiny, save_dir_root=str(tmp_path))).root == tmp_path / ".artifacts"


def test_the_guides_grid_is_a_loop_over_configs(tmp_path):
    """create_config and train_model as the guide's grid search calls them, on a small base."""
    sizes = {"num_users": 150, "num_items": 30, "num_categories": 3}
    small = {f"dataset.synthetic.{name}": size for name, size in sizes.items()}
    small |= {"tokenizer.kind": "rkmeans", "train.epochs": 1, "evaluation.max_users": 50}
    best = []
    for lr in (1e-4, 1e-2):
        config = create_config(base="quickstart", lr=lr, batch_size=64, save_dir_root=str(tmp_path), **small)
        best.append(train_model(config).best["validation_loss"])
    assert best[1] < best[0]
    store = tmp_path / ".artifacts"
    assert len(list(store.glob("tokenizer-*/DONE"))) == 1
    assert len(list(store.glob("tiger-*/DONE"))) == 2


def test_a_tokenizer_that_was_trained_alone_serves_another_run(trained, tmp_path):
    config = changed(trained.config, tokenizer__kind="rqvae", save_dir_root=str(tmp_path))
    found = train_tokenizer_model(config, store=trained.store)
    assert load_tokenizer(found.folder).kind == "rqvae"
    user = changed(config, tokenizer__pretrained_rqvae_path=str(found.folder), train__epochs=1)
    assert stage_keys(user)["tokenizer"] != stage_keys(config)["tokenizer"]
    again = train_tokenizer_model(user, store=trained.store)
    assert again.ids.codes_NC.equal(found.ids.codes_NC)


# -------------------------------------------------------------------- workers


def launch(folder: Path, *arguments: object, workers: int = 2) -> subprocess.CompletedProcess[str]:
    """`torchrun` with the command as every worker's program."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={workers}", "-m", "genrec.cli"]
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.slow
def test_two_workers_make_what_one_makes_and_print_it_once(tiny, trained, tmp_path):
    config = changed(tiny, train__epochs=2, save_dir_root="results")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.to_dict()))
    ended = launch(tmp_path, "train", "run.yaml", "--out", "bundle")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("best epoch") == 1
    rows = json.loads((tmp_path / "bundle" / "model" / "manifest.json").read_text())["facts"]["rows"]
    alone = train_model(changed(config, save_dir_root=str(tmp_path / "alone")))
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in alone.rows], rel=1e-3)
    assert [row["recall@5"] for row in rows] == pytest.approx([row["recall@5"] for row in alone.rows], abs=0.02)


@pytest.mark.slow
def test_a_fault_of_the_first_worker_ends_all_of_them(tmp_path):
    (tmp_path / "run.yaml").write_text("dataset: {source: sequential, dataset_folder: nowhere}\n")
    ended = launch(tmp_path, "train", "run.yaml")
    assert ended.returncode != 0
    assert "error: nowhere" in ended.stderr


def test_one_process_joins_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    found = train_model(changed(tiny, train__epochs=1), store=ArtifactStore(tmp_path / "s"), out=tmp_path / "b")
    assert found.bundle == tmp_path / "b"
