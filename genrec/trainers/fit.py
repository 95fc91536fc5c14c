"""The one training loop, for tokenizer and TIGER alike.

It reports through callables and distributes through `torch.distributed` where a process group is up: every rank takes
its rows of each batch and gradients are summed, so that two workers take the steps that one would. A run that is
killed continues from its last checkpoint and ends with the same bits: batches and dropout are functions of seed, epoch
and rank alone, so the state of the random generators at the start of an epoch is known without being saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genrec.data.batches import Step
from genrec.errors import ExitCode, InputError
from genrec.modules.optimizers import rate_factor
from genrec.progress import OnStep, TrainingStep, training_progress
from genrec.ranks import rank_and_world, sum_over_ranks
from genrec.trainers.run_folder import Fitted, RunFolder
from genrec.trainers.stepping import Precision, Stepper

Report = Callable[[dict[str, Any]], None]


class NonFiniteLoss(InputError, ArithmeticError):
    """The loss became NaN or infinite; the message names epoch and step."""

    exit_code = ExitCode.FAILED


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
    precision: Precision = "no"
    eval_every: int = 1
    patience: int | None = None
    "stop after this many validations without a better one"
    monitor: str = "loss"
    "the metric by which the best epoch is kept; names that end in `loss` are minimised"
    checkpoint_interval: float = 20.0


def fit(
    model: nn.Module,
    loss_of: Callable[[Any], Tensor],
    batches: Batches,
    settings: FitSettings,
    *,
    validate: Callable[[], dict[str, float]] | None = None,
    report: Report | None = None,
    on_step: OnStep | None = None,
    folder: Path | None = None,
    title: str = "training",
) -> Fitted:
    """Train `model` in place for `settings.epochs` epochs; `loss_of(batch)` is a sum over the batch's targets.

    `validate` is called on every rank and returns the metrics of all ranks together; `report` likewise is called on
    every rank with the epoch's row, `on_step` after every optimizer step. Checkpoints and metrics go to `folder`; if
    it holds some, training continues from the newest. At the end the model has its last weights; the best are in the
    result.

    A `report` that raises SystemExit ends the training here: the epoch that it was told of is saved first.
    """
    rank, world = rank_and_world()
    stepper = Stepper(
        model,
        loss_of,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        precision=settings.precision,
    )
    _same_start(model)
    fitted, run = Fitted(), RunFolder(folder, settings.checkpoint_interval)
    epoch, step = run.resume(model, stepper, fitted)
    run.write_rows(fitted.rows, anew=True)
    if report:
        for row in fitted.rows:
            report(row)  # the process that died may not have got to it
    # All epochs have about as many steps; the schedule is laid over the exact count of the first.
    total_steps = settings.epochs * batches.num_steps(1)
    with training_progress(title, show=rank == 0) as show:
        while epoch < settings.epochs and not _out_of_patience(fitted, settings):
            epoch += 1
            torch.manual_seed(_epoch_seed(settings.seed, epoch, rank))
            model.train()
            started, targets = time.monotonic(), 0
            loss_sum: Tensor | float = 0.0
            for batch in batches.steps(epoch, rank, world):
                rate = settings.learning_rate * rate_factor(step, total_steps, settings.warmup_steps, settings.schedule)
                loss = stepper.take(batch, rate)
                loss_sum, targets, step = loss_sum + loss, targets + batch.num_targets, step + 1
                told = TrainingStep(epoch, settings.epochs, step, total_steps, rate, batch.num_targets, loss * world)
                show(told)
                if on_step:
                    on_step(told)
            row = _row(epoch, step, sum_over_ranks([float(loss_sum)])[0], targets, time.monotonic() - started)
            if validate and (epoch % settings.eval_every == 0 or epoch == settings.epochs):
                model.eval()
                row |= validate()
            _keep_best(model, row, settings, fitted)
            # Saved before it is reported where that is due: a trial that is killed now need not train the epoch again.
            last = epoch == settings.epochs or _out_of_patience(fitted, settings)
            run.save(model, stepper, fitted, epoch, step, last=last)
            run.write_rows([row])
            try:
                if report:
                    report(row)
            except SystemExit:
                run.save(model, stepper, fitted, epoch, step, last=True)
                raise
    return fitted


def _row(epoch: int, step: int, loss_sum: float, targets: int, seconds: float) -> dict[str, Any]:
    loss = loss_sum / targets
    if not math.isfinite(loss):
        raise NonFiniteLoss(f"the loss is {loss} in epoch {epoch}, at or before step {step}")
    return {"epoch": epoch, "step": step, "loss": loss, "targets_per_second": round(targets / seconds, 1)}


def _better(value: float, best: float, monitor: str) -> bool:
    return value < best if monitor.endswith("loss") else value > best


def _keep_best(model: nn.Module, row: dict[str, Any], settings: FitSettings, fitted: Fitted) -> None:
    fitted.rows.append(row)
    value, best = row.get(settings.monitor), fitted.best.get(settings.monitor)
    if value is not None and (best is None or _better(value, best, settings.monitor)):
        fitted.best = row
        fitted.best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _out_of_patience(fitted: Fitted, settings: FitSettings) -> bool:
    """Whether `patience` validations have brought nothing better: read off the rows, so a resumed run agrees."""
    if settings.patience is None or not fitted.best:
        return False
    since = [row for row in fitted.rows if row["epoch"] > fitted.best["epoch"] and settings.monitor in row]
    return len(since) >= settings.patience


def _epoch_seed(seed: int, epoch: int, rank: int) -> int:
    return (seed * 1_000_003 + epoch * 10_007 + rank * 101 + 1) % (2**63)


def _same_start(model: nn.Module) -> None:
    """All ranks take the first one's weights."""
    if rank_and_world()[1] > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
