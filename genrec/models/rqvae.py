"""RQ-VAE: an autoencoder whose latent is quantised level by level (Lee et al. 2022; TIGER section 3.1).

Inputs are standardised inside the model with the catalogue's mean and deviation, the codebooks start from the k-means
of the latents. The loss of an item is the squared error of its reconstruction summed over the features (a mean over
them lets the codebook terms take over and the codes collapse) plus, per level, the codebook term and
`commitment_weight` times the commitment term.

How the reconstruction's gradient passes the choice of codes (`gradient`): copied to the latent, turned with the
rotation from the latent to the sum of its codes, or through a Gumbel-softmax mixture of codes. While it trains, chosen
levels may take balanced codes instead of the nearest, and codes that nobody uses may move; semantic IDs always have
the nearest.

Letters: B items, E input width, D latent width, K codes, L levels.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genrec.models.residual import ResidualTokenizer, deviation
from genrec.modules.quantizer import (
    balanced_code,
    distances,
    move_dead_codes,
    nearest_code,
    residual_kmeans,
    rotate_to,
)
from genrec.ranks import message_device, rank_and_world
from genrec.settings import TokenizerConfig


class Quantised(NamedTuple):
    """Sum of the codes (B, D), and codebook and commitment terms summed over items and levels."""

    sum_BD: Tensor
    terms: Tensor


class RqVae(ResidualTokenizer):
    """Quantises the latents of a perceptron."""

    kind = "rqvae"
    hits_LK: Tensor
    "how often a code was chosen since dead codes were last moved, over all ranks"
    new_hits_LK: Tensor
    "the same on this rank, in the epoch that runs"

    def __init__(self, config: TokenizerConfig, input_dim: int):
        super().__init__(config, input_dim)
        widths = [self.width, *config.rqvae.hidden_dims, config.rqvae.latent_dim]
        self.encoder = _perceptron(widths)
        self.decoder = _perceptron(widths[::-1])
        shape = (config.num_item_embeddings, config.rqvae.latent_dim)
        self.codebooks = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for _ in range(config.sem_id_dim))
        # Part of the state, so that a resumed run moves the codes that an undisturbed one moves.
        self.register_buffer("hits_LK", torch.zeros(config.sem_id_dim, config.num_item_embeddings, dtype=torch.int64))
        self.register_buffer("new_hits_LK", torch.zeros_like(self.hits_LK), persistent=False)

    @torch.no_grad()
    def start_from(self, vectors_NE: Tensor, generator: torch.Generator) -> None:
        """Take mean and deviation from the catalogue and the codebooks from the k-means of its latents."""
        self._standardise_by(vectors_NE)
        last = self.encoder[-1]
        assert isinstance(last, nn.Linear)
        last.weight.div_(deviation(self.latents(vectors_NE)).unsqueeze(1))
        levels, codes = self.config.sem_id_dim, self.config.num_item_embeddings
        found = residual_kmeans(self.latents(vectors_NE), codes, levels, generator)
        for codebook, start in zip(self.codebooks, found, strict=True):
            codebook.copy_(start)

    def level_codebooks(self) -> list[Tensor]:
        return list(self.codebooks)

    def encode(self, x_BE: Tensor) -> Tensor:
        latent_BD: Tensor = self.encoder(x_BE)
        return latent_BD

    def forward(self, vectors_BE: Tensor) -> Tensor:
        """Loss summed over the B items."""
        x_BE = self.standardise(vectors_BE)
        latent_BD = self.encode(x_BE)
        quantised = self._quantise(latent_BD)
        gradient = self.config.rqvae.gradient
        if gradient == "straight_through":
            passed_BD = latent_BD + (quantised.sum_BD - latent_BD).detach()
        elif gradient == "rotation":
            passed_BD = rotate_to(latent_BD, quantised.sum_BD.detach())
        else:
            passed_BD = quantised.sum_BD
        return (self.decoder(passed_BD) - x_BE).square().sum() + quantised.terms

    def _quantise(self, latent_BD: Tensor) -> Quantised:
        residual_BD, sum_BD = latent_BD, torch.zeros_like(latent_BD)
        terms = latent_BD.new_zeros(())
        for level, codebook_KD in enumerate(self.codebooks):
            code_B = self._choose(level, residual_BD.detach())
            code_BD = codebook_KD[code_B]
            if self.training:
                self.new_hits_LK[level] += torch.bincount(code_B, minlength=codebook_KD.shape[0])
                if self.config.rqvae.gradient == "gumbel":
                    code_BD = self._mixture(residual_BD, codebook_KD)
            codebook_term = (residual_BD.detach() - code_BD).square().sum()
            commitment_term = (residual_BD - code_BD.detach()).square().sum()
            terms = terms + codebook_term + self.config.rqvae.commitment_weight * commitment_term
            sum_BD = sum_BD + code_BD
            residual_BD = residual_BD - code_BD.detach()
        return Quantised(sum_BD, terms)

    def _choose(self, level: int, residual_BD: Tensor) -> Tensor:
        settings, codebook_KD = self.config.rqvae, self.codebooks[level].detach()
        if self.training and level + 1 in settings.sinkhorn_levels:
            return balanced_code(residual_BD, codebook_KD, settings.sinkhorn_epsilon, settings.sinkhorn_iterations)
        return nearest_code(residual_BD, codebook_KD)

    def _mixture(self, residual_BD: Tensor, codebook_KD: Tensor) -> Tensor:
        """Codes weighed by the softmax of Gumbel noise on their nearness: differentiable in residual and codes."""
        distance_BK = residual_BD.square().sum(1, keepdim=True) + distances(residual_BD, codebook_KD)
        temperature = self.config.rqvae.gumbel_temperature
        return nn.functional.gumbel_softmax(-distance_BK, tau=temperature) @ codebook_KD

    def gather_hits(self) -> None:
        """Add the epoch's hits of all ranks to `hits_LK`; every rank calls this at the end of an epoch."""
        if rank_and_world()[1] > 1:
            shared_LK = self.new_hits_LK.to(message_device())
            dist.all_reduce(shared_LK)
            self.new_hits_LK.copy_(shared_LK)
        self.hits_LK += self.new_hits_LK
        self.new_hits_LK.zero_()

    @torch.no_grad()
    def revive(self, vectors_NE: Tensor, generator: torch.Generator) -> int:
        """Move the codes that no item had since the last call to badly served items; returns how many moved."""
        residual_ND = self.latents(vectors_NE)
        moved = 0
        for level, codebook in enumerate(self.codebooks):
            codes_KD, moved_K = move_dead_codes(residual_ND, codebook, self.hits_LK[level], generator)
            codebook.copy_(codes_KD)
            moved += int(moved_K.sum())
            residual_ND = residual_ND - codebook[nearest_code(residual_ND, codebook)]
        self.hits_LK.zero_()
        return moved


def _perceptron(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        linear = nn.Linear(inner, outer)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
