"""Muon: momentum whose update is a matrix with all singular values near one (Jordan et al. 2024).

The orthogonalisation is Newton-Schulz iteration in float32 on a CPU, where bfloat16 products are slow, and in bfloat16
on a GPU. Matrices of one shape go through it together. A long matrix X is iterated on through its small Gram matrix
G = X X': every step is a polynomial in G, so their product P is found among (rows, rows) matrices and used once, P X.

Letters: G matrices of one shape, R rows, S columns, R <= S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from genrec.modules.eager_optimizer import EagerOptimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"of one step's quintic; they trade exactness for a steep start, singular values end between about .7 and 1.2"
STEPS = 5
EPSILON = 1e-7


class Muon(EagerOptimizer):
    """For matrices only. The update has the root mean square of a typical AdamW update, so that one rate serves both.

    Nesterov momentum, decoupled weight decay.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ):
        matrices = list(matrices)
        if any(matrix.ndim != 2 for matrix in matrices):
            raise ValueError("Muon takes matrices only")
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            for p in parameters:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum"] for p in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = orthogonalized(torch._foreach_lerp(gradients, momenta, group["momentum"]))
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            sizes = [-group["lr"] * 0.2 * max(p.shape) ** 0.5 for p in parameters]
            torch._foreach_add_(parameters, torch._foreach_mul(updates, sizes))


def orthogonalized(matrices: Sequence[Tensor]) -> list[Tensor]:
    """For each matrix about U V' of its singular value decomposition U S V'."""
    wide = [m.mT if m.shape[0] > m.shape[1] else m for m in matrices]
    turned = [m.shape[0] > m.shape[1] for m in matrices]
    shapes: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(wide):
        shapes.setdefault(matrix.shape, []).append(index)
    for indices in shapes.values():
        for index, matrix in zip(indices, newton_schulz(torch.stack([wide[i] for i in indices])), strict=True):
            wide[index] = matrix
    return [m.mT if turn else m for m, turn in zip(wide, turned, strict=True)]


def newton_schulz(x_GRS: Tensor) -> Tensor:
    """The iteration on matrices that are not higher than wide."""
    original = x_GRS.dtype
    x_GRS = x_GRS / x_GRS.flatten(1).norm(dim=1).clamp(min=EPSILON)[:, None, None]
    if x_GRS.device.type != "cpu":
        return _direct(x_GRS.bfloat16()).to(original)
    # Below this ratio the products of small matrices outnumber what they save.
    return (_by_gram if x_GRS.shape[2] >= 1.5 * x_GRS.shape[1] else _direct)(x_GRS)


def _direct(x_GRS: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram_GRR = x_GRS @ x_GRS.mT
        x_GRS = torch.baddbmm(x_GRS, torch.baddbmm(gram_GRR, gram_GRR, gram_GRR, beta=b, alpha=c), x_GRS, beta=a)
    return x_GRS


def _by_gram(x_GRS: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    gram_GRR = x_GRS @ x_GRS.mT
    product_GRR = None
    for step in range(STEPS):
        factor_GRR = torch.baddbmm(gram_GRR, gram_GRR, gram_GRR, beta=b, alpha=c)
        factor_GRR.diagonal(dim1=1, dim2=2).add_(a)
        product_GRR = factor_GRR if product_GRR is None else factor_GRR @ product_GRR
        if step < STEPS - 1:
            gram_GRR = factor_GRR @ gram_GRR @ factor_GRR
    assert product_GRR is not None
    return product_GRR @ x_GRS
