"""The one training loop, for tokenizer and TIGER alike.

It reports through a callable and distributes through `torch.distributed` where a process group is up: every rank takes
its rows of each batch and gradients are summed, so that two workers take the steps that one would. A run that is
killed continues from its last checkpoint and ends with the same bits: batches and dropout are functions of seed, epoch
and rank alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genrec.checkpoint import latest_generation, save_generation
from genrec.data.batches import Step
from genrec.errors import InputError
from genrec.modules.optimizers import build_optimizers, optimizer_tensors, rate_factor, restore_optimizers

logger = logging.getLogger(__name__)
Report = Callable[[dict[str, Any]], None]


class NonFiniteLoss(InputError, ArithmeticError):
    """The loss became NaN or infinite; the message names epoch and step."""


class Batches(Protocol):
    """What `fit` trains on."""

    def steps(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Step]: ...

    def num_steps(self, epoch: int) -> int: ...


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What the loop itself needs to know."""

    epochs: int
    learning_rate: float
    weight_decay: float
    seed: int
    optimizer: str = "adamw"
    schedule: str = "constant"
    warmup_steps: int = 0
    clip_norm: float = math.inf
    eval_every: int = 1
    monitor: str = "loss"
    "the metric by which the best epoch is kept; names that end in `loss` are minimised"
    checkpoint_interval: float = 20.0


@dataclass
class Fitted:
    """What training leaves: one row of metrics an epoch, the best row, and the weights of that epoch."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def fit(
    model: nn.Module,
    loss_of: Callable[[Any], Tensor],
    batches: Batches,
    settings: FitSettings,
    *,
    validate: Callable[[], dict[str, float]] | None = None,
    report: Report | None = None,
    folder: Path | None = None,
) -> Fitted:
    """Train `model` in place for `settings.epochs` epochs; `loss_of(batch)` is a sum over the batch's targets.

    `validate` is called on every rank and returns the metrics of all ranks together; `report` likewise is called on
    every rank with the epoch's row. Checkpoints go to `folder`; if it holds some, training continues from the newest.
    At the end the model has its last weights; the best are in the result.
    """
    rank, world = _ranks()
    optimizers = build_optimizers(model, settings.optimizer, settings.learning_rate, settings.weight_decay)
    _same_start(model)
    fitted = Fitted()
    first_epoch, step = _resume(folder, model, optimizers, fitted)
    if report:
        for row in fitted.rows:
            report(row)  # the process that died may not have got to it
    # All epochs have about as many steps; the schedule is laid over the exact count of the first.
    total_steps = settings.epochs * batches.num_steps(1)
    saved_at = time.monotonic()
    for epoch in range(first_epoch, settings.epochs + 1):
        torch.manual_seed(_epoch_seed(settings.seed, epoch, rank))
        model.train()
        started, loss_sum, targets = time.monotonic(), 0.0, 0
        for batch in batches.steps(epoch, rank, world):
            factor = rate_factor(step, total_steps, settings.warmup_steps, settings.schedule)
            loss_sum += _take_step(model, loss_of, batch, optimizers, settings, factor)
            targets += batch.num_targets
            step += 1
        seconds = time.monotonic() - started
        row = {"epoch": epoch, "loss": _reduce(loss_sum) / targets, "targets_per_second": round(targets / seconds, 1)}
        if not math.isfinite(row["loss"]):
            raise NonFiniteLoss(f"the loss is {row['loss']} in epoch {epoch}, at or before step {step}")
        if validate and (epoch % settings.eval_every == 0 or epoch == settings.epochs):
            model.eval()
            row |= validate()
        _keep_best(model, row, settings, fitted)
        last = epoch == settings.epochs
        due = time.monotonic() - saved_at >= settings.checkpoint_interval
        if folder and rank == 0 and (due or last):
            # Saved before it is reported: a trial stopped at this report has nothing left to write.
            _save(folder, model, optimizers, fitted, epoch, step)
            saved_at = time.monotonic()
        if report:
            report(row)
    return fitted


def _take_step(
    model: nn.Module,
    loss_of: Callable[[Any], Tensor],
    step: Step,
    optimizers: list[torch.optim.Optimizer],
    settings: FitSettings,
    factor: float,
) -> float:
    """One optimizer step over the windows of this rank; returns their summed loss."""
    total = 0.0
    for batch in step.batches:
        loss = loss_of(batch)
        (loss / step.num_targets).backward()
        total += float(loss.detach())
    _sum_gradients(model)
    if math.isfinite(settings.clip_norm):
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total


def _keep_best(model: nn.Module, row: dict[str, Any], settings: FitSettings, fitted: Fitted) -> None:
    fitted.rows.append(row)
    value = row.get(settings.monitor)
    if value is None:
        return
    best = fitted.best.get(settings.monitor)
    if best is None or (value < best if settings.monitor.endswith("loss") else value > best):
        fitted.best = row
        fitted.best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _save(
    folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], fitted: Fitted, epoch: int, step: int
) -> None:
    tensors = {f"model:{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best:{name}": tensor for name, tensor in fitted.best_weights.items()}
    tensors |= {f"optimizer:{name}": tensor for name, tensor in optimizer_tensors(optimizers).items()}
    facts = {
        "epoch": epoch,
        "step": step,
        "rows": fitted.rows,
        "best": fitted.best,
        "threads": torch.get_num_threads(),
        "world": _ranks()[1],
        "torch": torch.__version__,
    }
    save_generation(folder, epoch, tensors, facts)


def _resume(
    folder: Path | None, model: nn.Module, optimizers: list[torch.optim.Optimizer], fitted: Fitted
) -> tuple[int, int]:
    """Load the newest checkpoint into all parts; returns the epoch to go on with and the optimizer step."""
    found = latest_generation(folder, logger.warning) if folder else None
    if found is None:
        return 1, 0
    tensors, facts = found
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, key = name.partition(":")
        parts[part][key] = tensor
    model.load_state_dict(parts["model"])
    restore_optimizers(optimizers, parts["optimizer"])
    fitted.rows, fitted.best, fitted.best_weights = facts["rows"], facts["best"], parts["best"]
    now = {"threads": torch.get_num_threads(), "world": _ranks()[1], "torch": torch.__version__}
    changed = [f"{key} {facts[key]} -> {value}" for key, value in now.items() if facts[key] != value]
    if changed:
        logger.warning("continuing, but not bit-exact: %s", ", ".join(changed))
    logger.info("continuing after epoch %d", facts["epoch"])
    return facts["epoch"] + 1, facts["step"]


def _epoch_seed(seed: int, epoch: int, rank: int) -> int:
    return (seed * 1_000_003 + epoch * 10_007 + rank * 101 + 1) % (2**63)


def _ranks() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _same_start(model: nn.Module) -> None:
    if _ranks()[1] > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def _sum_gradients(model: nn.Module) -> None:
    """Gradients summed over ranks, in one flat message; each rank's loss is divided by the targets of all."""
    if _ranks()[1] == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter).clone()


def _reduce(value: float) -> float:
    if _ranks()[1] == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"  # NCCL cannot add up numbers on the CPU
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return float(tensor)
