"""Experiment trackers: none, Weights & Biases, TensorBoard, or both, behind one small interface.

The record of a run is on disk (`metrics.jsonl`); a tracker has a copy. So it may never fail or delay training: each one
works in a thread of its own, its first error is told once and silences it, and at the end it is waited for only so
long. Weights & Biases is imported here alone, only when asked for, and writes offline without a key or a network
(`wandb sync` uploads it later); `WANDB_MODE` overrides that. No secret is logged.
"""

from __future__ import annotations

import http.client
import importlib.util
import logging
import netrc
import os
import queue
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from torch import Tensor

from genrec.config import content_hash
from genrec.errors import InputError
from genrec.progress import TrainingStep
from genrec.ranks import rank_and_world
from genrec.settings import TrackingConfig

logger = logging.getLogger(__name__)
Axis = Literal["step", "epoch"]
Mode = Literal["online", "offline", "disabled", "shared"]
Values = dict[str, float]
NETWORK_SECONDS = 2.0
FINISH_SECONDS = 60.0
"how long the end of a run waits for a tracker"
_SECRET_NAME = re.compile(r"key|token|secret|passw|credential|auth", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")
MASK = "***"


def open_tracker(config: TrackingConfig, name: str, folder: Path, run_config: dict[str, Any]) -> Tracker:
    """The trackers that `config` asks for. `name` is that of the run: with the same name it is continued.

    Files go below `folder`. Only the first rank tracks.
    """
    if rank_and_world()[0] > 0:
        return Tracker([])
    found: list[_Threaded] = []
    if config.wandb_logging:
        _require("wandb", "tracking.wandb_logging")
        found.append(_Threaded("Weights & Biases", WandbRun(config.wandb_project, name, folder, masked(run_config))))
    if config.tensorboard:
        _require("tensorboard", "tracking.tensorboard")
        found.append(_Threaded("TensorBoard", TensorBoardRun(folder / "tensorboard")))
    return Tracker(found)


def masked(value: Any, name: str = "") -> Any:
    """A copy without secrets: values whose name says so, logins in URLs, the key of Weights & Biases itself."""
    if isinstance(value, dict):
        return {key: masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item, name) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if _SECRET_NAME.search(name):
        return MASK
    key = os.environ.get("WANDB_API_KEY")
    return _URL_LOGIN.sub(MASK, value.replace(key, MASK) if key else value)


class Tracker:
    """Where curves go: to any number of trackers, or to none."""

    def __init__(self, trackers: Sequence[_Threaded]):
        self._trackers = trackers

    def log(self, values: Values, step: int, axis: Axis = "step") -> None:
        """Values at an optimizer step, or at an epoch."""
        for tracker in self._trackers:
            tracker.log(values, step, axis)

    def finish(self) -> None:
        """Nothing more comes."""
        for tracker in self._trackers:
            tracker.finish()

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *ended: object) -> None:
        self.finish()


class TrainingCurve:
    """What `fit` tells, for a tracker: every `interval` steps the mean loss since the last point, and all epochs."""

    def __init__(self, tracker: Tracker, interval: int):
        self._tracker, self._interval = tracker, interval
        self._loss_sum: Tensor | float = 0.0
        self._targets = 0

    def log_step(self, step: TrainingStep) -> None:
        """For `on_step` of `fit`."""
        self._loss_sum, self._targets = self._loss_sum + step.loss_sum, self._targets + step.targets
        if step.step % self._interval == 0:
            loss = float(self._loss_sum) / self._targets
            self._tracker.log({"loss": loss, "learning_rate": step.learning_rate}, step.step)
            self._loss_sum, self._targets = 0.0, 0

    def log_epoch(self, row: dict[str, Any]) -> None:
        """A row that `fit` reports."""
        self._tracker.log({name: value for name, value in row.items() if name != "epoch"}, row["epoch"], "epoch")


# -------------------------------------------------------------------- threads


class _Destination(Protocol):
    """What a thread writes to; all its calls are made in that thread."""

    def open(self) -> None: ...

    def write(self, values: Values, step: int, axis: Axis) -> None: ...

    def close(self) -> None: ...


class _Threaded:
    """A destination behind a queue: `log` returns at once whatever happens at the other end."""

    def __init__(self, title: str, destination: _Destination):
        self._title, self._destination = title, destination
        self._queue: queue.SimpleQueue[tuple[Values, int, Axis] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracking {title}", daemon=True)
        self._thread.start()

    def log(self, values: Values, step: int, axis: Axis = "step") -> None:
        self._queue.put((values, step, axis))

    def finish(self) -> None:
        self._queue.put(None)
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            logger.warning("%s does not answer; going on without it", self._title)

    def _work(self) -> None:
        try:
            self._destination.open()
            while (item := self._queue.get()) is not None:
                self._destination.write(*item)
            self._destination.close()
        except Exception as error:
            logger.warning("%s is off for this run: %s", self._title, masked(f"{type(error).__name__}: {error}"))


# --------------------------------------------------------------- destinations


class WandbRun:
    """A run of Weights & Biases, named by its run, with the optimizer step and the epoch as axes."""

    def __init__(self, project: str, name: str, folder: Path, run_config: dict[str, Any]):
        self._project, self._name, self._folder, self._config = project, name, folder, run_config
        self._run: Any = None

    def open(self) -> None:
        mode = wandb_mode()
        try:
            self._run = self._started(mode)
        except Exception as error:
            if mode != "online":
                raise
            reason = masked(f"{type(error).__name__}: {error}")
            logger.warning("Weights & Biases cannot be reached, writing offline: %s", reason)
            mode = "offline"
            _forget_failed_start()
            self._run = self._started(mode)
        for axis, metrics in (("step", "train/*"), ("epoch", "epoch/*")):
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(metrics, step_metric=axis)
        where = self._run.url if mode == "online" else f"{mode}, below {self._folder / 'wandb'}"
        logger.info("Weights & Biases: %s", where)

    def _started(self, mode: Mode) -> Any:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        # It must not read the repository, the terminal or the program, nor wait for a server for long.
        settings = wandb.Settings(
            console="off", disable_git=True, disable_code=True, silent=True, init_timeout=20, finish_timeout=30
        )
        return wandb.init(
            project=self._project,
            name=self._name,
            id=content_hash([self._project, self._name]),
            resume="allow",
            dir=str(self._folder),
            config=self._config,
            mode=mode,
            settings=settings,
        )

    def write(self, values: Values, step: int, axis: Axis) -> None:
        self._run.log(_named(values, axis) | {axis: step})

    def close(self) -> None:
        self._run.finish()


class TensorBoardRun:
    """Event files; the optimizer step or the epoch is the step of a scalar."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._writer: Any = None

    def open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder))

    def write(self, values: Values, step: int, axis: Axis) -> None:
        for name, value in _named(values, axis).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def _forget_failed_start() -> None:
    """End the helper process of Weights & Biases, which takes the run's name for used."""
    import wandb

    wandb.teardown()


def wandb_mode() -> Mode:
    """`WANDB_MODE` if it is set; else online where there is a key and the server answers."""
    said = os.environ.get("WANDB_MODE")
    if said in ("online", "offline", "disabled", "shared"):
        return said  # type: ignore[return-value]
    address = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    return "online" if _has_key(urlsplit(address).hostname or "") and _answers(address) else "offline"


def _answers(address: str) -> bool:
    """Whether a server says anything at all, also through a proxy."""
    if urlsplit(address).scheme not in ("http", "https"):
        return False
    try:
        urllib.request.urlopen(address, timeout=NETWORK_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, http.client.HTTPException, ValueError):
        return False
    return True


def _has_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _named(values: Values, axis: Axis) -> Values:
    prefix = "train" if axis == "step" else "epoch"
    return {f"{prefix}/{name}": float(value) for name, value in values.items()}


def _require(package: str, setting: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"{setting} is on, but {package} is not installed; fix: pip install 'genrec-sweeps[{package}]'"
        )
