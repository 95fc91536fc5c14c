"""Experiment trackers: none, Weights & Biases, TensorBoard, or both, behind one small interface.

The record of a run is on disk (`metrics.jsonl`); a tracker has a copy. So it may never fail or delay training: each one
works in a thread of its own, its first error is told once and silences it, and at the end it is waited for only so
long. Weights & Biases is imported here alone, only when asked for, and writes offline without a key or a network, and
in a sweep in any case (`genrec.uploads` uploads it later); `WANDB_MODE` overrides that. No secret is logged.
"""

from __future__ import annotations

import http.client
import importlib.util
import logging
import netrc
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from torch import Tensor

from genrec.config import RunConfig, content_hash
from genrec.errors import InputError
from genrec.masking import masked
from genrec.progress import TrainingStep
from genrec.ranks import rank_and_world
from genrec.settings import TrackingConfig

logger = logging.getLogger(__name__)
Axis = Literal["step", "epoch"]
Mode = Literal["online", "offline", "disabled", "shared"]
Values = dict[str, float]
SERVERS = ("api.forge.coreweave.com", "api.wandb.ai")
"names of the public server: what `wandb login` writes a key under now, and what it wrote it under before"
NETWORK_SECONDS = 2.0
FINISH_SECONDS = 60.0
"how long the end of a run waits for a tracker"
TRIAL_FINISH_SECONDS = 10.0
"the same of a run that writes offline, as trials of a sweep do: a sweep of many must not wait for a minute each"
TITLES = {"wandb": "Weights & Biases", "tensorboard": "TensorBoard"}
_stuck: set[str] = set()
"trackers that did not answer at the end of a run; this process opens them no more"


@dataclass(frozen=True)
class TrackedRun:
    """What a run is called: with the same project, group, identity and name it is continued. Its files go to
    `folder`/`name`."""

    name: str
    folder: str
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()
    offline: bool = False
    "write offline even where there is a key and a server answers"
    identity: str | None = None
    "of the sweep itself: another one of the same name, in the same project, does not go on with its runs"

    @property
    def path(self) -> Path:
        return Path(self.folder) / self.name

    def id_in(self, project: str) -> str:
        """Depends on nothing but the names, so that a run that starts again goes on."""
        return content_hash([part for part in (project, self.group, self.identity, self.name) if part is not None])


def tracked_alone(config: RunConfig) -> TrackedRun:
    """The name of a training that belongs to no sweep."""
    return TrackedRun(f"tiger-{config.hash}", str(Path(config.save_dir_root) / "tracking"))


def require_trackers(config: TrackingConfig) -> None:
    """Refuse, before any work is done, a config that asks for a tracker that is not installed (`InputError`)."""
    for package, setting in _asked_for(config).items():
        if importlib.util.find_spec(package) is None:
            fix = f"pip install 'genrec-sweeps[{package}]'"
            raise InputError(f"tracking.{setting} is on, but {package} is not installed; fix: {fix}")


def open_tracker(
    config: TrackingConfig, run: TrackedRun, run_config: dict[str, Any], *, finish_seconds: float | None = None
) -> Tracker:
    """The trackers that `config` asks for; one that is not installed on this machine is passed over with a warning.

    Only the first rank tracks. `finish_seconds` is how long the end of the run waits for each.
    """
    if rank_and_world()[0] > 0:
        return Tracker([])
    patience = finish_seconds or (TRIAL_FINISH_SECONDS if run.offline else FINISH_SECONDS)
    found: list[_Threaded] = []
    for package in _asked_for(config):
        title = TITLES[package]
        if importlib.util.find_spec(package) is None:
            logger.warning("%s is not installed here; going on without it", package)
        elif title not in _stuck:
            found.append(_Threaded(title, _destination(package, config, run, run_config), patience))
    return Tracker(found)


def _destination(
    package: str, config: TrackingConfig, run: TrackedRun, run_config: dict[str, Any]
) -> WandbRun | TensorBoardRun:
    if package == "tensorboard":
        return TensorBoardRun(run.path / "tensorboard")
    tags = (*run.tags, *config.wandb_tags)
    return WandbRun(config.wandb_project, replace(run, tags=tags), masked(run_config))


def track_bundle(config: RunConfig, run: TrackedRun, bundle: Path) -> None:
    """Log a bundle as an artifact of its run, if the config asks for that."""
    if config.tracking.wandb_logging and config.tracking.wandb_artifact:
        with open_tracker(config.tracking, run, config.to_dict(), finish_seconds=FINISH_SECONDS) as tracker:
            tracker.keep(bundle, f"{run.group or 'genrec'}-{run.name}")


def _asked_for(config: TrackingConfig) -> dict[str, str]:
    """Package -> the setting that asks for it."""
    asked = {"wandb": "wandb_logging", "tensorboard": "tensorboard"}
    return {package: setting for package, setting in asked.items() if getattr(config, setting)}


class Tracker:
    """Where curves go: to any number of trackers, or to none."""

    def __init__(self, trackers: Sequence[_Threaded]):
        self._trackers = trackers

    def log(self, values: Values, step: int, axis: Axis = "step") -> None:
        """Values at an optimizer step, or at an epoch."""
        for tracker in self._trackers:
            tracker.log(values, step, axis)

    def summarise(self, values: dict[str, Any]) -> None:
        """Figures of the run as a whole."""
        for tracker in self._trackers:
            tracker.summarise(values)

    def keep(self, folder: Path, name: str) -> None:
        """The files of `folder` as an artifact, where the tracker has such a thing. They must stay where they are."""
        for tracker in self._trackers:
            tracker.keep(folder, name)

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

    def summarise(self, values: dict[str, Any]) -> None: ...

    def keep(self, folder: Path, name: str) -> None: ...

    def close(self) -> None: ...


class _Threaded:
    """A destination behind a queue: `log` returns at once whatever happens at the other end."""

    def __init__(self, title: str, destination: _Destination, finish_seconds: float = FINISH_SECONDS):
        self._title, self._destination, self._finish_seconds = title, destination, finish_seconds
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracking {title}", daemon=True)
        self._thread.start()

    def log(self, values: Values, step: int, axis: Axis = "step") -> None:
        self._queue.put(lambda: self._destination.write(values, step, axis))

    def summarise(self, values: dict[str, Any]) -> None:
        self._queue.put(lambda: self._destination.summarise(values))

    def keep(self, folder: Path, name: str) -> None:
        self._queue.put(lambda: self._destination.keep(folder, name))

    def finish(self) -> None:
        self._queue.put(None)
        self._thread.join(self._finish_seconds)
        if self._thread.is_alive():
            _stuck.add(self._title)
            logger.warning("%s does not answer; this process goes on without it", self._title)

    def _work(self) -> None:
        try:
            self._destination.open()
            while (call := self._queue.get()) is not None:
                call()
            self._destination.close()
        except Exception as error:
            logger.warning("%s is off for this run: %s", self._title, masked(f"{type(error).__name__}: {error}"))


# --------------------------------------------------------------- destinations


class WandbRun:
    """A run of Weights & Biases, with the optimizer step and the epoch as axes."""

    def __init__(self, project: str, tracked: TrackedRun, run_config: dict[str, Any]):
        self._project, self._tracked, self._config = project, tracked, run_config
        self._run: Any = None

    def open(self) -> None:
        mode = wandb_mode(self._tracked.offline)
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
        where = self._run.url if mode == "online" else f"{mode}, below {self._tracked.path / 'wandb'}"
        logger.info("Weights & Biases: %s", where)

    def _started(self, mode: Mode) -> Any:
        import wandb

        run = self._tracked
        run.path.mkdir(parents=True, exist_ok=True)
        # It must not read the repository, the terminal or the program, nor wait for a server for long.
        settings = wandb.Settings(
            console="off", disable_git=True, disable_code=True, silent=True, init_timeout=20, finish_timeout=30
        )
        return wandb.init(
            project=self._project,
            name=run.name,
            group=run.group,
            job_type=run.job_type,
            tags=run.tags,
            id=run.id_in(self._project),
            resume="allow",
            dir=str(run.path),
            config=self._config,
            mode=mode,
            settings=settings,
        )

    def write(self, values: Values, step: int, axis: Axis) -> None:
        self._run.log(_named(values, axis) | {axis: step})

    def summarise(self, values: dict[str, Any]) -> None:
        self._run.summary.update(masked(values))

    def keep(self, folder: Path, name: str) -> None:
        import wandb

        artifact = wandb.Artifact(name, type="model")
        artifact.add_dir(str(folder), policy="immutable")  # else the files are copied to the home folder first
        self._run.log_artifact(artifact)

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

    def summarise(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, 0)

    def keep(self, folder: Path, name: str) -> None:
        """Event files hold no files."""

    def close(self) -> None:
        self._writer.close()


def _forget_failed_start() -> None:
    """End the helper process of Weights & Biases, which takes the run's name for used."""
    import wandb

    wandb.teardown()


def wandb_mode(offline: bool = False) -> Mode:
    """`WANDB_MODE` if it is set; else online where there is a key and the server answers, unless `offline`."""
    said = os.environ.get("WANDB_MODE")
    if said in ("online", "offline", "disabled", "shared"):
        return said  # type: ignore[return-value]
    return "online" if not offline and has_key() and server_answers() else "offline"


def server_address() -> str:
    """Of Weights & Biases, or of one's own installation of it."""
    return os.environ.get("WANDB_BASE_URL") or f"https://{SERVERS[0]}"


def require_server() -> None:
    """Refuse to upload anything without a key (`InputError`) or an answering server (`ConnectionError`)."""
    if not has_key():
        raise InputError("no key of Weights & Biases; fix: set WANDB_API_KEY, or write it to netrc by: wandb login")
    if not server_answers():
        raise ConnectionError(f"{server_address()} does not answer")


def account() -> str:
    """Whose projects are meant: `WANDB_ENTITY`, or else, as the server says, the account that the key belongs to."""
    import wandb

    return os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity or ""


def server_answers() -> bool:
    """Whether the server says anything at all, also through a proxy."""
    address = server_address()
    if urlsplit(address).scheme not in ("http", "https"):
        return False
    try:
        urllib.request.urlopen(address, timeout=NETWORK_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, http.client.HTTPException, ValueError):
        return False
    return True


def has_key() -> bool:
    """Whether the environment or netrc has a key for the server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    machine = urlsplit(server_address()).netloc
    try:
        known = netrc.netrc(Path(os.environ.get("NETRC") or "~/.netrc").expanduser())
    except (OSError, netrc.NetrcParseError):
        return False
    return any(known.authenticators(name) for name in (SERVERS if machine in SERVERS else [machine]))


def _named(values: Values, axis: Axis) -> Values:
    prefix = "train" if axis == "step" else "epoch"
    return {f"{prefix}/{name}": float(value) for name, value in values.items()}
