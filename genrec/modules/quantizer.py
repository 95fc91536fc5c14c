"""Vector quantisation: nearest code, k-means start, and the residual loop that both tokenizers share.

Letters: B rows, D width, K codes, C levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_ROUNDS = 50


def nearest_code(x_BD: Tensor, codebook_KD: Tensor) -> Tensor:
    """Index (B,) of the nearest code by Euclidean distance; the lowest index of equals."""
    distance_BK = codebook_KD.square().sum(1) - 2 * x_BD @ codebook_KD.T  # + |x|^2, the same for all codes
    return distance_BK.argmin(1)


def residual_codes(x_BD: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """Codes (B, C): each level quantises what the levels before have left over."""
    codes = []
    for codebook_KD in codebooks:
        code_B = nearest_code(x_BD, codebook_KD)
        x_BD = x_BD - codebook_KD[code_B]
        codes.append(code_B)
    return torch.stack(codes, dim=1)


def kmeans(x_BD: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    """Centroids (K, D) by k-means++ seeding and Lloyd's rounds.

    Always ends (at most 50 rounds) and always returns K rows: a code that lost all its rows moves to the row that is
    worst served, and with fewer distinct rows than codes the spare codes repeat a row.
    """
    centroids_KD = _spread_start(x_BD, num_codes, generator)
    previous_B = None
    for _ in range(MAX_ROUNDS):
        code_B = nearest_code(x_BD, centroids_KD)
        if previous_B is not None and bool((code_B == previous_B).all()):
            break
        previous_B = code_B
        centroids_KD = _means(x_BD, code_B, centroids_KD)
    return centroids_KD


def residual_kmeans(x_BD: Tensor, num_codes: int, num_levels: int, generator: torch.Generator) -> list[Tensor]:
    """Codebooks of `num_levels` levels, each the k-means of the residual of the levels before."""
    codebooks = []
    for _ in range(num_levels):
        codebook_KD = kmeans(x_BD, num_codes, generator)
        x_BD = x_BD - codebook_KD[nearest_code(x_BD, codebook_KD)]
        codebooks.append(codebook_KD)
    return codebooks


def _spread_start(x_BD: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): each next centre drawn by squared distance to the nearest one."""
    square_B = x_BD.square().sum(1)

    def distance_to(index: int) -> Tensor:
        """Squared distances by one product, not by a difference of whole arrays; rounding may leave one below zero."""
        return (square_B - 2 * (x_BD @ x_BD[index]) + square_B[index]).clamp(min=0)

    chosen = [int(torch.randint(x_BD.shape[0], (1,), generator=generator))]
    distance_B = distance_to(chosen[0])
    for _ in range(num_codes - 1):
        weights = distance_B if bool(distance_B.sum() > 0) else torch.ones_like(distance_B)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        distance_B = torch.minimum(distance_B, distance_to(chosen[-1]))
    return x_BD[chosen].clone()


def _means(x_BD: Tensor, code_B: Tensor, centroids_KD: Tensor) -> Tensor:
    size_K = torch.bincount(code_B, minlength=centroids_KD.shape[0])
    sums_KD = torch.zeros_like(centroids_KD).index_add_(0, code_B, x_BD)
    means_KD = sums_KD / size_K.clamp(min=1).unsqueeze(1)
    empty = (size_K == 0).nonzero().flatten()
    if len(empty):
        error_B = (x_BD - centroids_KD[code_B]).square().sum(1)
        worst = error_B.argsort(descending=True, stable=True)[: len(empty)]
        means_KD[empty[: len(worst)]] = x_BD[worst]
        means_KD[empty[len(worst) :]] = centroids_KD[empty[len(worst) :]]
    return means_KD
