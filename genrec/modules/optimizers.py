"""Optimizers and learning-rate schedules, as functions of the step alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genrec.modules.eager_optimizer import AdamW
from genrec.modules.muon import Muon

BETAS = (0.9, 0.98)
SCHEDULES = ("constant", "cosine", "linear", "inverse_sqrt")


def build_optimizers(
    model: nn.Module, kind: str, learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices of encoder and decoder and AdamW for the rest.

    Norms, biases and vectors are not decayed.
    """
    matrices: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if kind == "muon" and parameter.ndim == 2 and {"encoder", "decoder"} & set(name.split(".")[:-1]):
            matrices.append(parameter)
        else:
            (decayed if parameter.ndim == 2 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)]
    if matrices:
        optimizers.append(Muon(matrices, lr=learning_rate, weight_decay=weight_decay))
    return optimizers


def rate_factor(step: int, total_steps: int, warmup_steps: int, schedule: str) -> float:
    """Factor on the learning rate at optimizer step `step` (from 0): linear warm-up to one, then the schedule.

    `constant` stays, `cosine` and `linear` fall to zero at the last step, `inverse_sqrt` falls with the root of the
    step. A warm-up longer than a tenth of the run is cut to that, so that short trials of a sweep train at all.
    """
    warmup = min(warmup_steps, max(1, total_steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "inverse_sqrt":
        return math.sqrt(max(1, warmup) / (step + 1))
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    raise ValueError(f"schedule {schedule!r}; known: {', '.join(SCHEDULES)}")


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All state of the optimizers as named tensors."""
    tensors: dict[str, Tensor] = {}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"{number}/{index}/{key}"] = torch.as_tensor(value)
    return tensors


def restore_optimizers(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put state from `optimizer_tensors` back."""
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            owner, index, key = name.split("/")
            if int(owner) == number:
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
