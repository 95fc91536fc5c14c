"""Residual k-means: a tokenizer without training by gradient (as in GRID, Ju et al. 2025).

Letters: B items, E input width, K codes, C levels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrec.config import TokenizerConfig
from genrec.modules.quantizer import residual_codes, residual_kmeans


class RkMeans(nn.Module):
    """`config` and the width E of the item vectors; the same interface as `RqVae` less the loss."""

    mean_E: Tensor
    scale_E: Tensor
    codebooks_CKE: Tensor

    def __init__(self, config: TokenizerConfig, input_dim: int):
        super().__init__()
        self.config = config
        self.register_buffer("mean_E", torch.zeros(input_dim))
        self.register_buffer("scale_E", torch.ones(input_dim))
        shape = (config.sem_id_dim, config.num_item_embeddings, input_dim)
        self.register_buffer("codebooks_CKE", torch.zeros(shape))

    @torch.no_grad()
    def start_from(self, vectors_NE: Tensor, generator: torch.Generator) -> None:
        """Fit to the catalogue: standardise, then k-means level by level."""
        self.mean_E.copy_(vectors_NE.mean(0))
        self.scale_E.copy_(vectors_NE.std(0, correction=0).clamp(min=1e-6))
        x_NE = (vectors_NE - self.mean_E) / self.scale_E
        found = residual_kmeans(x_NE, self.config.num_item_embeddings, self.config.sem_id_dim, generator)
        self.codebooks_CKE.copy_(torch.stack(found))

    @torch.inference_mode()
    def codes(self, vectors_BE: Tensor) -> Tensor:
        """Codes (B, C) of item vectors (B, E)."""
        return residual_codes((vectors_BE - self.mean_E) / self.scale_E, list(self.codebooks_CKE))
