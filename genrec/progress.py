"""How far training is: a bar on a terminal, a plain line now and then in a log.

`training_progress` gives a function that is called after every optimizer step. It reads the loss (on a GPU: waits for
it) only when there is something to show.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
LOG_SECONDS = 30.0
"between two lines of a log; shorter epochs have their own line in it"
BAR_SECONDS = 0.2
GAPS = 2
"columns between title, bar and line; where there is no room the bar has no width"


class TrainingStep(NamedTuple):
    """What is known after an optimizer step. Steps and epochs count from 1."""

    epoch: int
    epochs: int
    step: int
    total_steps: int
    learning_rate: float
    targets: int
    "of the step, over all ranks"
    loss_sum: Tensor
    "over the targets that this rank had, times the number of ranks"

    def loss(self) -> float:
        """Mean over the targets of this step."""
        return float(self.loss_sum) / self.targets


OnStep = Callable[[TrainingStep], None]


@contextlib.contextmanager
def training_progress(title: str, *, show: bool = True) -> Iterator[OnStep]:
    """Show the steps that the given function is told, until the context ends; nothing unless `show`."""
    if not show:
        yield _nothing
    elif sys.stderr.isatty():
        with _bar(title) as on_step:
            yield on_step
    else:
        yield _Lines(title)


def _nothing(step: TrainingStep) -> None:
    """For ranks that do not speak."""


class Pace:
    """Targets per second and time left, from the first step that was seen."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.steps = self.targets = 0

    def count(self, step: TrainingStep) -> None:
        self.steps += 1
        self.targets += step.targets

    def describe(self, step: TrainingStep, width: int | None = None) -> str:
        """`loss 3.412  lr 1.0e-03  2140 targets/s  4:10 left`; in a small `width` speed, rate and loss are left out, in
        this order."""
        seconds = time.monotonic() - self.started
        left = seconds / self.steps * max(0, step.total_steps - step.step)
        parts = [f"loss {step.loss():.3f}", f"lr {step.learning_rate:.1e}"]
        parts += [f"{self.targets / max(seconds, 1e-9):.0f} targets/s", f"{clock(left)} left"]
        while width is not None and len("  ".join(parts)) > width and len(parts) > 1:
            del parts[-2]
        return "  ".join(parts)


class _Lines:
    """A line in the log every `LOG_SECONDS`."""

    def __init__(self, title: str):
        self.title, self.pace, self.told = title, Pace(), time.monotonic()

    def __call__(self, step: TrainingStep) -> None:
        self.pace.count(step)
        if time.monotonic() - self.told < LOG_SECONDS:
            return
        self.told = time.monotonic()
        where = f"epoch {step.epoch}/{step.epochs}  step {step.step}/{step.total_steps}"
        logger.info("%s: %s  %s", self.title, where, self.pace.describe(step))


@contextlib.contextmanager
def _bar(title: str) -> Iterator[OnStep]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"))
    terminal = sys.stderr
    pace, shown = Pace(), 0.0
    with Progress(*columns, console=Console(file=terminal), transient=True) as progress, _logging_above(terminal):
        task = progress.add_task(title, total=None, line="")

        def on_step(step: TrainingStep) -> None:
            nonlocal shown
            pace.count(step)
            if time.monotonic() - shown < BAR_SECONDS and step.step < step.total_steps:
                return
            shown = time.monotonic()
            name = f"{title} {step.epoch}/{step.epochs}"
            line = pace.describe(step, progress.console.width - len(name) - GAPS)
            progress.update(task, description=name, total=step.total_steps, completed=step.step, line=line)

        yield on_step


@contextlib.contextmanager
def _logging_above(terminal: object) -> Iterator[None]:
    """Let log handlers that write to the terminal write above the bar, which has taken the place of `sys.stderr`."""
    handlers = [h for h in logging.root.handlers if isinstance(h, logging.StreamHandler) and h.stream is terminal]
    for handler in handlers:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(terminal)


def clock(seconds: float) -> str:
    """`4:10`; from an hour on `1:04:10`."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
