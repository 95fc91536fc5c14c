"""Interactions and semantic IDs -> a trained TIGER: the best epoch by validation, or the last of a refit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrec.config import RunConfig
from genrec.data.augmentation import Augmentation
from genrec.data.batches import NO_AUGMENTATION, WindowBatches
from genrec.data.interactions import Interactions
from genrec.evaluation import evaluate, sample_users
from genrec.models.tiger import Tiger
from genrec.modules.embeddings import user_buckets
from genrec.semantic_ids import SemanticIds
from genrec.tracking import TrackedRun, TrainingCurve, open_tracker, tracked_alone
from genrec.trainers.fit import FitSettings, Fitted, Report, fit
from genrec.trainers.launch import run_as_program
from genrec.trie import Trie


def train_tiger(
    config: RunConfig,
    interactions: Interactions,
    ids: SemanticIds,
    *,
    report: Report | None = None,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    tracked: TrackedRun | None = None,
) -> tuple[Tiger, Fitted]:
    """The model comes back with the weights of its best epoch on validation; where it learns from the validation items
    as well (`train.fit_on`), with those of the last, whose row then counts as the best.

    `tracked` is what trackers call the run; by default it has a name of its own.
    """
    torch.manual_seed(config.seed)
    model = Tiger(config.tiger, ids.codes_NC, ids.level_sizes).to(device)
    trie = Trie(ids.codes_NC).to(device)
    users = sample_users(interactions.users_of("validation"), config.evaluation.max_users)
    # Shapes vary from window to window: one program for all of them instead of one for each.
    loss = torch.compile(model.loss, dynamic=True) if config.train.compile else model.loss

    def validate() -> dict[str, float]:
        return evaluate(model, trie, interactions, "validation", config.evaluation, ids.tuple_levels, users)

    def tell(row: dict[str, Any]) -> None:
        curve.log_epoch(row)
        if report:
            report(row)

    with open_tracker(config.tracking, tracked or tracked_alone(config), config.to_dict()) as tracker:
        tracker.summarise(ids.health.figures())
        curve = TrainingCurve(tracker, config.tracking.wandb_log_interval)
        fitted = fit(
            model,
            lambda window: loss(window, config.train.label_smoothing),
            tiger_batches(config, interactions, device),
            fit_settings(config),
            validate=None if config.train.refit else validate,
            report=tell,
            on_step=curve.log_step if tracker else None,
            folder=folder,
            title="tiger",
        )
        if config.train.refit:
            fitted.best = fitted.rows[-1]
        else:
            model.load_state_dict(fitted.best_weights)
        tracker.summarise({f"best/{name}": value for name, value in fitted.best.items()})
    return model.eval(), fitted


def tiger_batches(config: RunConfig, interactions: Interactions, device: torch.device | str = "cpu") -> WindowBatches:
    """The training windows that `config` asks for."""
    train = config.train
    offsets, items = interactions.fit_sequences(train.fit_on)
    users = sample_users(np.arange(len(offsets) - 1), train.max_users)
    if len(users) < len(offsets) - 1:
        offsets, items = _subset(offsets, items, users)
    buckets = config.tiger.num_user_embeddings
    augmentation = Augmentation(
        crop=train.crop_probability, mask=train.mask_probability, reorder=train.reorder_probability
    )
    return WindowBatches(
        offsets,
        items,
        causal=config.tiger.encoder == "item_causal",
        max_items=config.tiger.max_seq_len,
        batch_size=train.batch_size,
        seed=config.seed,
        accumulate=train.gradient_accumulate_every,
        subsample=train.subsample,
        augmentation=augmentation if train.augmentation else NO_AUGMENTATION,
        user_U=user_buckets([interactions.users[user] for user in users], buckets) if buckets else None,
        device=device,
    )


def fit_settings(config: RunConfig) -> FitSettings:
    """`config.train` in the loop's terms."""
    train = config.train
    return FitSettings(
        epochs=train.epochs,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        seed=config.seed,
        optimizer=train.optimizer,
        schedule=train.schedule,
        warmup_steps=train.warmup_steps,
        clip_norm=train.clip_norm,
        precision=train.mixed_precision_type,
        eval_every=train.eval_every,
        patience=train.patience,
        monitor=config.evaluation.monitor,
        checkpoint_interval=train.checkpoint_interval,
    )


def _subset(offsets: np.ndarray, items: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.diff(offsets)
    chosen = np.zeros(len(lengths), dtype=bool)
    chosen[users] = True
    return np.concatenate([[0], np.cumsum(lengths[chosen])]), items[np.repeat(chosen, lengths)]


if __name__ == "__main__":
    run_as_program("tiger")
