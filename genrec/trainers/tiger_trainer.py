"""Interactions and semantic IDs -> a trained TIGER, the best epoch by validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from genrec.config import RunConfig
from genrec.data.batches import WindowBatches
from genrec.data.interactions import Interactions
from genrec.evaluation import evaluate, sample_users
from genrec.models.tiger import Tiger
from genrec.semantic_ids import SemanticIds
from genrec.trainers.fit import FitSettings, Fitted, Report, fit
from genrec.trie import Trie


def train_tiger(
    config: RunConfig,
    interactions: Interactions,
    ids: SemanticIds,
    *,
    report: Report | None = None,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tiger, Fitted]:
    """Train on the training items only; the model comes back with the weights of its best epoch on validation."""
    torch.manual_seed(config.seed)
    model = Tiger(config.tiger, ids.codes_NC, ids.level_sizes).to(device)
    trie = Trie(ids.codes_NC).to(device)
    users = sample_users(len(interactions.users), config.evaluation.max_users)

    def validate() -> dict[str, float]:
        return evaluate(model, trie, interactions, "validation", config.evaluation, ids.tuple_levels, users)

    fitted = fit(
        model,
        lambda window: model.loss(window, config.train.label_smoothing),
        tiger_batches(config, interactions, device),
        fit_settings(config),
        validate=validate,
        report=report,
        folder=folder,
    )
    model.load_state_dict(fitted.best_weights)
    return model.eval(), fitted


def tiger_batches(config: RunConfig, interactions: Interactions, device: torch.device | str = "cpu") -> WindowBatches:
    """The training windows that `config` asks for."""
    offsets, items = interactions.training_sequences()
    if config.train.max_users is not None:
        offsets, items = _subset(offsets, items, sample_users(len(offsets) - 1, config.train.max_users))
    return WindowBatches(
        offsets,
        items,
        causal=config.tiger.encoder == "item_causal",
        max_items=config.tiger.max_seq_len,
        batch_size=config.train.batch_size,
        seed=config.seed,
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
        eval_every=train.eval_every,
        monitor=config.evaluation.monitor,
        checkpoint_interval=train.checkpoint_interval,
    )


def _subset(offsets: np.ndarray, items: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.diff(offsets)[users]
    keep = np.zeros(len(items), dtype=bool)
    for start, length in zip(offsets[users], lengths, strict=True):
        keep[start : start + length] = True
    return np.concatenate([[0], np.cumsum(lengths)]), items[keep]
