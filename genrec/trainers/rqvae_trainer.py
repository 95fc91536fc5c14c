"""Item vectors -> a trained tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from genrec.data.batches import RowBatches, Step
from genrec.models.rqvae import RqVae
from genrec.models.tokenizers import Tokenizer, tokenizer_type
from genrec.settings import TokenizerConfig
from genrec.trainers.fit import FitSettings, Report, fit
from genrec.trainers.launch import run_as_program


def train_tokenizer(
    config: TokenizerConfig, vectors_NE: Tensor, *, report: Report | None = None, folder: Path | None = None
) -> Tokenizer:
    """Fit the tokenizer that `config.kind` names to all item vectors (N, E)."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    model = tokenizer_type(config.kind)(config, vectors_NE.shape[1])
    model.start_from(vectors_NE, generator)
    if isinstance(model, RqVae):
        settings = FitSettings(
            epochs=config.rqvae.epochs,
            learning_rate=config.rqvae.learning_rate,
            weight_decay=config.rqvae.weight_decay,
            schedule=config.rqvae.schedule,
            seed=config.seed,
        )
        batches = RevivingBatches(model, vectors_NE)
        fit(model, model, batches, settings, report=report, folder=folder, title="tokenizer")
    return model.eval()


class RevivingBatches(RowBatches):
    """The item vectors in shuffled steps; every `dead_code_epochs` epochs the model's dead codes move first.

    What moves is a function of the model's state, seed and epoch, and equal on every rank.
    """

    def __init__(self, model: RqVae, vectors_NE: Tensor):
        super().__init__(vectors_NE, batch_size=model.config.rqvae.batch_size, seed=model.config.seed)
        self.model = model

    def steps(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Step]:
        every = self.model.config.rqvae.dead_code_epochs
        if every and epoch > 1 and (epoch - 1) % every == 0:
            self.model.revive(self.rows, torch.Generator().manual_seed(self.seed + epoch))
        yield from super().steps(epoch, rank, world)
        self.model.gather_hits()


if __name__ == "__main__":
    run_as_program("rqvae")
