"""Residual k-means: a tokenizer without training by gradient (as in GRID, Ju et al. 2025).

Letters: B items, E input width, P features after `standardise`, K codes, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genrec.models.residual import ResidualTokenizer
from genrec.modules.quantizer import residual_kmeans
from genrec.settings import TokenizerConfig


class RkMeans(ResidualTokenizer):
    """Quantises the standardised vectors themselves."""

    kind = "rkmeans"
    codebooks_LKP: Tensor

    def __init__(self, config: TokenizerConfig, input_dim: int):
        super().__init__(config, input_dim)
        shape = (config.sem_id_dim, config.num_item_embeddings, self.width)
        self.register_buffer("codebooks_LKP", torch.zeros(shape))

    @torch.no_grad()
    def start_from(self, vectors_NE: Tensor, generator: torch.Generator) -> None:
        """Fit to the catalogue: standardise, then k-means level by level."""
        self._standardise_by(vectors_NE)
        levels, codes = self.config.sem_id_dim, self.config.num_item_embeddings
        found = residual_kmeans(self.standardise(vectors_NE), codes, levels, generator)
        self.codebooks_LKP.copy_(torch.stack(found))

    def level_codebooks(self) -> list[Tensor]:
        return list(self.codebooks_LKP)

    def encode(self, x_BE: Tensor) -> Tensor:
        return x_BE
