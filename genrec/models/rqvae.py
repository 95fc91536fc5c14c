"""RQ-VAE: an autoencoder whose latent is quantised level by level (Lee et al. 2022; TIGER section 3.1).

Inputs are standardised inside the model with the catalogue's mean and deviation, the codebooks start from the k-means
of the latents, gradients pass the quantiser straight through. The loss of an item is the squared error of its
reconstruction summed over the features (a mean over them lets the codebook terms take over and the codes collapse)
plus, per level, the codebook term and `commitment_weight` times the commitment term.

Letters: B items, E input width, D latent width, K codes, C levels.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from genrec.config import TokenizerConfig
from genrec.modules.quantizer import residual_codes, residual_kmeans


class RqVae(nn.Module):
    """`config` and the width E of the item vectors."""

    mean_E: Tensor
    scale_E: Tensor

    def __init__(self, config: TokenizerConfig, input_dim: int):
        super().__init__()
        self.config = config
        widths = [input_dim, *config.rqvae.hidden_dims, config.rqvae.latent_dim]
        self.encoder = _perceptron(widths)
        self.decoder = _perceptron(widths[::-1])
        shape = (config.num_item_embeddings, config.rqvae.latent_dim)
        self.codebooks = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for _ in range(config.sem_id_dim))
        self.register_buffer("mean_E", torch.zeros(input_dim))
        self.register_buffer("scale_E", torch.ones(input_dim))

    @torch.no_grad()
    def start_from(self, vectors_NE: Tensor, generator: torch.Generator) -> None:
        """Take mean and deviation from the catalogue and the codebooks from the k-means of its latents."""
        self.mean_E.copy_(vectors_NE.mean(0))
        self.scale_E.copy_(vectors_NE.std(0, correction=0).clamp(min=1e-6))
        last = self.encoder[-1]
        assert isinstance(last, nn.Linear)
        last.weight.div_(self.encoder(self._standardise(vectors_NE)).std(0, correction=0).clamp(min=1e-6).unsqueeze(1))
        latent_ND = self.encoder(self._standardise(vectors_NE))
        found = residual_kmeans(latent_ND, self.config.num_item_embeddings, self.config.sem_id_dim, generator)
        for codebook, start in zip(self.codebooks, found, strict=True):
            codebook.copy_(start)

    def forward(self, vectors_BE: Tensor) -> Tensor:
        """Loss summed over the B items."""
        x_BE = self._standardise(vectors_BE)
        residual_BD = latent_BD = self.encoder(x_BE)
        quantised_BD = torch.zeros_like(latent_BD)
        terms = latent_BD.new_zeros(())
        codes_BC = residual_codes(latent_BD.detach(), list(self.codebooks))
        for level, codebook in enumerate(self.codebooks):
            code_BD = codebook[codes_BC[:, level]]
            codebook_term = (residual_BD.detach() - code_BD).square().sum()
            commitment_term = (residual_BD - code_BD.detach()).square().sum()
            terms = terms + codebook_term + self.config.rqvae.commitment_weight * commitment_term
            quantised_BD = quantised_BD + code_BD
            residual_BD = residual_BD - code_BD.detach()
        straight_BD = latent_BD + (quantised_BD - latent_BD).detach()
        reconstruction = (self.decoder(straight_BD) - x_BE).square().sum()
        return reconstruction + terms

    @torch.inference_mode()
    def codes(self, vectors_BE: Tensor) -> Tensor:
        """Codes (B, C) of item vectors (B, E)."""
        return residual_codes(self.encoder(self._standardise(vectors_BE)), list(self.codebooks))

    def _standardise(self, vectors_BE: Tensor) -> Tensor:
        return (vectors_BE - self.mean_E) / self.scale_E


def _perceptron(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        linear = nn.Linear(inner, outer)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
