"""Every key of `train:` and `tracking:` does what it says."""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from genrec.config import RunConfig, validate_config, with_values
from genrec.data.interactions import Interactions
from genrec.modules.embeddings import user_buckets
from genrec.pipeline import open_ids, open_interactions, stage_keys
from genrec.semantic_ids import SemanticIds
from genrec.settings import TrainConfig
from genrec.trainers.tiger_trainer import fit_settings, tiger_batches, train_tiger


def changed(config: RunConfig, **values: Any) -> RunConfig:
    return validate_config(with_values(config.to_dict(), {k.replace("__", "."): v for k, v in values.items()}))


@pytest.fixture(scope="module")
def inputs(trained) -> tuple[Interactions, SemanticIds]:
    keys = stage_keys(trained.config)
    return open_interactions(trained.store, keys), open_ids(trained.store, keys)


def losses(config: RunConfig, inputs: tuple[Interactions, SemanticIds]) -> list[float]:
    return [row["loss"] for row in train_tiger(config, *inputs)[1].rows]


def test_every_key_of_the_loop_reaches_it(tiny):
    values = {
        "epochs": 3,
        "learning_rate": 0.25,
        "weight_decay": 0.5,
        "optimizer": "muon",
        "schedule": "linear",
        "warmup_steps": 7,
        "clip_norm": 0.5,
        "eval_every": 2,
        "patience": 4,
        "checkpoint_interval": 5.0,
    }
    config = changed(tiny, **{f"train__{k}": v for k, v in values.items()}, train__mixed_precision_type="bf16", seed=11)
    found = asdict(fit_settings(config))
    assert found == values | {"precision": "bf16", "seed": 11, "monitor": tiny.evaluation.monitor}
    elsewhere = {
        "batch_size",
        "gradient_accumulate_every",
        "subsample",
        "augmentation",
        "max_users",
        "compile",
        "fit_on",
    }
    elsewhere |= {"fit_on", "crop_probability", "mask_probability", "reorder_probability", "label_smoothing"}
    assert set(TrainConfig.model_fields) == set(values) | {"mixed_precision_type"} | elsewhere


def test_every_key_of_the_batches_reaches_them(tiny, inputs):
    interactions, _ = inputs
    plain = tiger_batches(tiny, interactions)
    assert plain.num_targets == len(interactions.training_sequences()[1]) - len(interactions)
    assert plain.augmentation.mask == 0
    changes = {"subsample": True, "gradient_accumulate_every": 3, "batch_size": 32, "augmentation": True}
    changes |= {"crop_probability": 0.5, "mask_probability": 0.25, "reorder_probability": 0.125, "max_users": 100}
    config = changed(tiny, **{f"train__{k}": v for k, v in changes.items()}, tiger__num_user_embeddings=7)
    batches = tiger_batches(config, interactions)
    assert batches.num_targets == 100
    assert (batches.batch_size, batches.step_size) == (32, 96)
    found = batches.augmentation
    assert (found.crop, found.mask, found.reorder) == (0.5, 0.25, 0.125)


@pytest.mark.parametrize("max_users", [None, 60])
def test_each_window_has_the_bucket_of_its_users_id(tiny, inputs, max_users):
    interactions, _ = inputs
    config = changed(tiny, tiger__num_user_embeddings=1_000_003, train__max_users=max_users)
    offsets, items = interactions.training_sequences()
    of_bucket = dict(zip(user_buckets(interactions.users, 1_000_003).tolist(), range(len(interactions)), strict=True))
    users = set()
    for step in tiger_batches(config, interactions).steps(1):
        for window in step.batches:
            assert window.user_B is not None
            for row, bucket in zip(window.items_BL.numpy(), window.user_B.tolist(), strict=True):
                user = of_bucket[bucket]
                sequence = items[offsets[user] : offsets[user + 1]]
                places = np.flatnonzero(sequence == row[0])
                assert any((sequence[place : place + len(row)] == row).all() for place in places)
                users.add(user)
    assert len(users) == (max_users or len(interactions))


@pytest.mark.parametrize("encoder", ["item_causal", "bidirectional"])
@pytest.mark.parametrize(
    "values",
    [
        {"train__subsample": True},
        {"train__augmentation": True, "train__crop_probability": 1.0},
        {"train__augmentation": True, "train__mask_probability": 0.5},
        {"train__augmentation": True, "train__reorder_probability": 1.0},
        {"train__label_smoothing": 0.3},
        {"train__optimizer": "muon"},
        {"train__mixed_precision_type": "bf16"},
        {"tiger__num_user_embeddings": 50},
    ],
    ids=lambda values: "-".join(values),
)
def test_each_option_trains_and_changes_what_is_learnt(tiny, inputs, values, encoder):
    base = changed(tiny, tiger__encoder=encoder, train__epochs=1, train__max_users=60, evaluation__max_users=20)
    plain, other = losses(base, inputs), losses(changed(base, **values), inputs)
    assert len(other) == 1
    assert other != plain


def test_the_weights_of_the_best_epoch_come_back(tiny, inputs):
    config = changed(tiny, train__epochs=3, train__max_users=60, evaluation__max_users=20)
    model, fitted = train_tiger(config, *inputs)
    assert fitted.best in fitted.rows
    assert not model.training
    for name, tensor in fitted.best_weights.items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_the_curves_go_to_the_tracker(tiny, inputs, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = changed(tiny, train__epochs=2, tracking__tensorboard=True, tracking__wandb_log_interval=3)
    config = changed(config, save_dir_root=str(tmp_path), evaluation__max_users=20)
    _, fitted = train_tiger(config, *inputs)
    events = reader.EventAccumulator(str(tmp_path / "tracking" / f"tiger-{config.hash}" / "tensorboard"))
    events.Reload()
    steps = 2 * tiger_batches(config, inputs[0]).num_steps(1)
    assert [event.step for event in events.Scalars("train/loss")] == list(range(3, steps + 1, 3))
    found = [event.value for event in events.Scalars("epoch/ndcg@5")]
    assert found == pytest.approx([row["ndcg@5"] for row in fitted.rows], abs=1e-6)


def test_tracking_does_not_move_training(tiny, inputs, tmp_path):
    pytest.importorskip("tensorboard")
    base = changed(tiny, train__epochs=1, train__max_users=60, evaluation__max_users=20, save_dir_root=str(tmp_path))
    assert losses(base, inputs) == losses(changed(base, tracking__tensorboard=True), inputs)


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(tiny, inputs, monkeypatch):
    """Traced by the compiler; without its code generation, which takes minutes on a CPU."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    base = changed(tiny, train__epochs=1, train__max_users=6, train__batch_size=8, evaluation__max_users=5)
    found = losses(changed(base, train__compile=True), inputs)
    assert found == pytest.approx(losses(base, inputs), rel=1e-3)
