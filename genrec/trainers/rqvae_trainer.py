"""Item vectors -> a trained tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from genrec.config import TokenizerConfig
from genrec.data.batches import RowBatches
from genrec.models.rkmeans import RkMeans
from genrec.models.rqvae import RqVae
from genrec.trainers.fit import FitSettings, Report, fit


def train_tokenizer(
    config: TokenizerConfig, vectors_NE: Tensor, *, report: Report | None = None, folder: Path | None = None
) -> RqVae | RkMeans:
    """Fit the tokenizer that `config.kind` names to all item vectors (N, E)."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    if config.kind == "rkmeans":
        clusters = RkMeans(config, vectors_NE.shape[1])
        clusters.start_from(vectors_NE, generator)
        return clusters
    model = RqVae(config, vectors_NE.shape[1])
    model.start_from(vectors_NE, generator)
    settings = FitSettings(
        epochs=config.rqvae.epochs,
        learning_rate=config.rqvae.learning_rate,
        weight_decay=config.rqvae.weight_decay,
        seed=config.seed,
    )
    batches = RowBatches(vectors_NE, batch_size=config.rqvae.batch_size, seed=config.seed)
    fit(model, model, batches, settings, report=report, folder=folder)
    return model.eval()
