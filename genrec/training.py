"""From a config to what it trains: all stages in order, then a folder to use.

`python`, `torchrun` and `accelerate launch` all come here. Where a launcher has started several workers, the first
makes the stages that need only one process and the others wait; what trains by gradient runs on all of them.
"""

from __future__ import annotations

import datetime
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from genrec.artifacts import ARTIFACTS, ArtifactStore
from genrec.config import RunConfig
from genrec.durable import put_folder
from genrec.pipeline import Loop, open_ids, open_tiger, run_pipeline, stage_keys, train_stage
from genrec.ranks import message_device, rank_and_world
from genrec.recommender import export_bundle
from genrec.semantic_ids import SemanticIds
from genrec.tracking import require_trackers, track_bundle, tracked_alone
from genrec.trainers.fit import Report

logger = logging.getLogger(__name__)
WAIT = datetime.timedelta(days=30)
"how long workers wait for the first one, which may be embedding texts or training a tokenizer"


@dataclass(frozen=True)
class TrainedModel:
    """A trained TIGER: its bundle, the row of its best epoch, and the rows of all epochs."""

    bundle: Path
    best: dict[str, Any]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class TrainedTokenizer:
    """A trained tokenizer: the folder that `pretrained_rqvae_path` may name, and the catalogue's IDs by it."""

    folder: Path
    ids: SemanticIds


def default_store(config: RunConfig) -> ArtifactStore:
    """The artifacts of a run that names no store."""
    return ArtifactStore(Path(config.save_dir_root) / ARTIFACTS)


def train_model(
    config: RunConfig,
    *,
    store: ArtifactStore | None = None,
    out: Path | str | None = None,
    report: Report | None = None,
) -> TrainedModel:
    """Run all stages that are not in the store and leave a bundle in `out`, or below `save_dir_root`.

    A run that was killed continues. `report` hears TIGER's epochs, on every worker.
    """
    store = store or default_store(config)
    folder = Path(out) if out else Path(config.save_dir_root) / "models" / config.hash
    require_trackers(config.tracking)
    with _workers(report) as workers:
        if workers.rank == 0:
            run_pipeline(config, store, launch=workers.launch)
            export_bundle(config, store, folder)
            track_bundle(config, tracked_alone(config), folder)
    _, facts = open_tiger(folder)
    return TrainedModel(folder, facts["best"], facts["rows"])


def train_tokenizer_model(
    config: RunConfig, *, store: ArtifactStore | None = None, out: Path | str | None = None
) -> TrainedTokenizer:
    """Run the stages up to the semantic IDs and leave the tokenizer in `out`, or below `save_dir_root`."""
    store, keys = store or default_store(config), stage_keys(config)
    folder = Path(out) if out else Path(config.save_dir_root) / "tokenizers" / keys["tokenizer"]
    with _workers() as workers:
        if workers.rank == 0:
            run_pipeline(config, store, until="semantic_ids", launch=workers.launch)
            _copy(store.path("tokenizer", keys["tokenizer"]) / "model", folder)
    return TrainedTokenizer(folder, open_ids(store, keys))


def _copy(source: Path, folder: Path) -> None:
    """A copy that is whole or not there, replacing what is."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    put_folder(partial, folder)


# -------------------------------------------------------------------- workers


class _Workers:
    """The processes that train together, seen from one of them."""

    def __init__(self, report: Report | None):
        self.rank, self.world = rank_and_world()
        self._report = report
        self.training = False

    def launch(self, loop: Loop, argument: dict[str, Any]) -> None:
        """Train a stage on all workers. Called by the first."""
        self.tell(argument)
        self._train(loop, argument)

    def tell(self, argument: dict[str, Any] | None) -> None:
        """Send the others the stage to train with this process, or None: there are no more."""
        if self.world > 1:
            dist.broadcast_object_list([argument], src=0, device=torch.device(message_device()))

    def follow(self) -> None:
        """Train the stages that the first worker names until it says that there are no more."""
        while True:
            message: list[Any] = [None]
            dist.broadcast_object_list(message, src=0, device=torch.device(message_device()))
            if message[0] is None:
                return
            self._train(train_stage, message[0])

    def _train(self, loop: Loop, argument: dict[str, Any]) -> None:
        self.training = True
        loop(argument, self._report if self._report and argument["stage"] == "tiger" else _no_report)
        self.training = False


def _no_report(row: dict[str, Any]) -> None:
    """For stages whose epochs nobody hears of."""


@contextmanager
def _workers(report: Report | None = None) -> Iterator[_Workers]:
    """Join the workers that a launcher has started. All but the first have done their part when the context begins."""
    joined = _join()
    workers = _Workers(report)
    try:
        if workers.rank > 0:
            workers.follow()
        yield workers
    finally:
        # After a fault inside a loop the others are not listening: they have met it too, or the launcher ends them.
        if workers.rank == 0 and not workers.training:
            workers.tell(None)
        if joined:
            dist.destroy_process_group()


def _join() -> bool:
    """Make the process group that the launcher's environment describes, if there is one to make."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return False
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=WAIT)
    return True
