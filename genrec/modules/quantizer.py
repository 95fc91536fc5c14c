"""Vector quantisation: nearest code, the residual loop that both tokenizers share, and how a codebook is kept alive.

K-means starts the codebooks; Sinkhorn's balance and moved dead codes keep them in use while they are trained; the
rotation trick is one of the ways in which a gradient passes the choice of a code.

Letters: B rows, D width, K codes, C levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_ROUNDS = 50
MAX_DISTANCES = 2**24
"distances held at once: 64 MB, so that a catalogue of any size can be quantised"


def distances(x_BD: Tensor, codebook_KD: Tensor) -> Tensor:
    """Squared distances (B, K) less |x|^2, which is the same for all codes."""
    return codebook_KD.square().sum(1) - 2 * x_BD @ codebook_KD.T


def nearest_code(x_BD: Tensor, codebook_KD: Tensor) -> Tensor:
    """Index (B,) of the nearest code by Euclidean distance; the lowest index of equals."""
    chunks = x_BD.split(max(1, MAX_DISTANCES // codebook_KD.shape[0]))
    return torch.cat([distances(chunk, codebook_KD).argmin(1) for chunk in chunks])


def residual_codes(x_BD: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """Codes (B, C): each level quantises what the levels before have left over."""
    codes = []
    for codebook_KD in codebooks:
        code_B = nearest_code(x_BD, codebook_KD)
        x_BD = x_BD - codebook_KD[code_B]
        codes.append(code_B)
    return torch.stack(codes, dim=1)


def balanced_code(x_BD: Tensor, codebook_KD: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes (B,) that every code gets about equally often: optimal transport by Sinkhorn's iterations.

    `epsilon` weighs balance against distance, which is measured in half the range of the batch's distances, so that it
    means the same at every scale. The smaller, the closer the choice is to the cheapest balanced one.
    """
    distance_BK = (x_BD.square().sum(1, keepdim=True) + distances(x_BD, codebook_KD)).double()
    half_range = (distance_BK.max() - distance_BK.min()) / 2
    log_BK = distance_BK / (-epsilon * half_range.clamp(min=1e-30))
    # Scaling of rows and columns changes no result; with a 1 in each of them no sum can vanish.
    log_BK = log_BK - log_BK.amax(1, keepdim=True)
    log_BK = log_BK - log_BK.amax(0, keepdim=True)
    kernel_BK, code_weight_K = log_BK.exp(), log_BK.new_ones(log_BK.shape[1])
    share = log_BK.shape[0] / log_BK.shape[1]
    for _ in range(iterations):
        row_weight_B = 1 / (kernel_BK @ code_weight_K)
        code_weight_K = share / (row_weight_B @ kernel_BK)
    return (log_BK + code_weight_K.log()).argmax(1)


def rotate_to(x_BD: Tensor, target_BD: Tensor) -> Tensor:
    """The value of `target_BD` with the gradient of turning and stretching x onto it (Fifty et al. 2024).

    Turn and stretch count as constants, so the gradient keeps its angle to the vector it belongs to.
    """
    x_norm_B1 = x_BD.detach().norm(dim=1, keepdim=True).clamp(min=1e-6)
    target_norm_B1 = target_BD.norm(dim=1, keepdim=True)
    from_BD = x_BD.detach() / x_norm_B1
    to_BD = (target_BD / target_norm_B1.clamp(min=1e-6)).detach()
    middle_BD = torch.nn.functional.normalize(from_BD + to_BD, dim=1, eps=1e-6)
    mirrored_BD = x_BD - 2 * (x_BD * middle_BD).sum(1, keepdim=True) * middle_BD
    turned_BD = mirrored_BD + 2 * (x_BD * from_BD).sum(1, keepdim=True) * to_BD
    stretched_BD = turned_BD * (target_norm_B1 / x_norm_B1).detach()
    return stretched_BD + (target_BD - stretched_BD).detach()


def move_dead_codes(
    x_BD: Tensor, codebook_KD: Tensor, hits_K: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The codebook with its codes without hits moved to rows drawn by squared error, and which were moved (K,) bool.

    A row that is served exactly draws no code, so on few distinct rows some codes stay where they are.
    """
    code_B = nearest_code(x_BD, codebook_KD)
    error_B = (x_BD - codebook_KD[code_B]).square().sum(1)
    dead = (hits_K == 0).nonzero().flatten()
    # Rounding leaves an error of about this size on a row that is its own code.
    error_B = error_B.where(error_B > 1e-10 * x_BD.square().sum(1), 0)
    dead = dead[: int((error_B > 0).sum())]
    moved_K = torch.zeros(len(codebook_KD), dtype=torch.bool)
    if not len(dead):
        return codebook_KD, moved_K
    rows = torch.multinomial(error_B, len(dead), generator=generator)
    moved_K[dead] = True
    return codebook_KD.index_copy(0, dead, x_BD[rows]), moved_K


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
