"""The stages in order: the map of the library.

    dataset -> embeddings -> tokenizer -> semantic_ids -> tiger

A stage's key is a hash of the settings it reads, the keys of its inputs and the version of its code, so equal work has
an equal key wherever it is done, and keys are known before anything runs. Raise a version below when a change to the
code changes the stage's result.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genrec.artifacts import CHECKPOINTS, ArtifactStore, open_store
from genrec.checkpoint import MANIFEST, CheckpointError, load_checkpoint, save_checkpoint
from genrec.config import RunConfig, TokenizerConfig, content_hash, validate_config
from genrec.data.cooccurrence import cooccurrence_vectors, join_vectors
from genrec.data.interactions import Interactions
from genrec.data.sources import dataset_identity, load_dataset
from genrec.data.text import embed_items, embeddings_identity
from genrec.durable import file_hash, write_json
from genrec.errors import InputError
from genrec.models.tiger import Tiger, load_tiger
from genrec.models.tokenizers import Tokenizer, load_tokenizer, save_tokenizer, tokenizer_folder
from genrec.ranks import rank_and_world
from genrec.semantic_ids import Health, SemanticIds, assign_ids
from genrec.tracking import TrackedRun, TrainingCurve, open_tracker, tracked_alone
from genrec.trainers.fit import Report
from genrec.trainers.rqvae_trainer import train_tokenizer
from genrec.trainers.tiger_trainer import train_tiger

logger = logging.getLogger(__name__)
Stage = Literal["dataset", "embeddings", "tokenizer", "semantic_ids", "tiger"]
STAGES: tuple[Stage, ...] = ("dataset", "embeddings", "tokenizer", "semantic_ids", "tiger")
CODE_VERSIONS: dict[Stage, int] = {"dataset": 3, "embeddings": 2, "tokenizer": 2, "semantic_ids": 2, "tiger": 3}
Loop = Callable[[dict[str, Any], Report], None]
Launch = Callable[[Loop, dict[str, Any]], None]
"runs a training loop somewhere: here, or in workers that Ray Train starts"


@dataclass
class PipelineResult:
    """Keys of all stages that ran, and which of them were made here or found finished."""

    keys: dict[Stage, str] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)


def stage_keys(config: RunConfig) -> dict[Stage, str]:
    """The key of every stage of `config`. Reads the data files' content (cached by size and time), builds nothing."""
    dataset = _key("dataset", dataset_identity(config.dataset, _content))
    vectors = embeddings_identity(config.embeddings, config.dataset.dataset_folder, _content)
    if config.embeddings.cooccurrence_dim:
        vectors |= config.embeddings.model_dump(include={"cooccurrence_dim", "cooccurrence_weight"})
    embeddings = _key("embeddings", vectors, dataset)
    tokenizer = _key("tokenizer", _tokenizer_identity(config), embeddings)
    ids = _key("semantic_ids", {"collisions": config.tokenizer.collisions}, tokenizer)
    tiger = _key("tiger", _tiger_identity(config), ids)
    return {"dataset": dataset, "embeddings": embeddings, "tokenizer": tokenizer, "semantic_ids": ids, "tiger": tiger}


def run_pipeline(
    config: RunConfig,
    store: ArtifactStore,
    *,
    until: Stage = "tiger",
    stages: tuple[Stage, ...] | None = None,
    report: Report | None = None,
    launch: Launch | None = None,
    tracked: TrackedRun | None = None,
    waiting: Report | None = None,
) -> PipelineResult:
    """Make sure that every stage up to `until`, or those of `stages`, is in the store.

    `report` gets TIGER's epochs when no `launch` is given. A `launch` passes its loop a report of its own, which may
    end the training by raising; a tokenizer gives it a sign of life after every epoch, which is no row to keep:
    `{"stage": "tokenizer", "stage_epoch": 3, "stage_epochs": 90}`. `waiting` gets `{"stage": ...}` again and again
    while another process makes what is needed here, and may raise as well. `tracked`: what trackers call the run.
    """
    keys = stage_keys(config)
    result = PipelineResult()
    run = launch or functools.partial(_run_here, report or _no_report)
    for stage in stages or STAGES[: STAGES.index(until) + 1]:
        argument = {"stage": stage, "config": config.to_dict(), "store": store.address, "tracked": tracked}
        build = functools.partial(_build, argument, keys, run)
        wait = functools.partial(waiting or _no_report, {"stage": stage})
        _, built = store.ensure(stage, keys[stage], build, logger.info, wait)
        result.keys[stage] = keys[stage]
        (result.trained if built else result.reused).append(stage)
        logger.info("%s %s: %s", stage, keys[stage], "made" if built else "reused")
    return result


def _run_here(report: Report, loop: Loop, argument: dict[str, Any]) -> None:
    loop(argument, report if argument["stage"] == "tiger" else _no_report)


def _build(argument: dict[str, Any], keys: dict[Stage, str], run: Launch, folder: Path) -> dict[str, Any]:
    """Fill `folder` with a stage. Stages that train by gradient go through `run`."""
    stage: Stage = argument["stage"]
    config = validate_config(argument["config"])
    store = open_store(argument["store"])
    if stage == "dataset":
        load_dataset(config.dataset).save(folder)
    elif stage == "embeddings":
        interactions = open_interactions(store, keys)
        np.save(folder / "embeddings.npy", make_vectors(config, interactions))
    elif stage == "semantic_ids":
        _save_ids(folder, assign_ids(open_tokenizer(config, store, keys), open_embeddings(store, keys)))
    elif stage == "tokenizer" and (config.tokenizer.kind == "rkmeans" or config.tokenizer.pretrained_rqvae_path):
        train_stage(argument | {"folder": str(folder)}, _no_report)
    else:
        run(train_stage, argument | {"folder": str(folder)})
    return {}


def train_stage(argument: dict[str, Any], report: Report) -> None:
    """Train the stage `argument["stage"]` into `argument["folder"]`; every worker of a group runs this."""
    config = validate_config(argument["config"])
    store, folder = open_store(argument["store"]), Path(argument["folder"])
    keys = stage_keys(config)
    tracked: TrackedRun = argument["tracked"] or tracked_alone(config)
    if argument["stage"] == "tokenizer":
        vectors_NE = open_embeddings(store, keys)
        if config.tokenizer.pretrained_rqvae_path:
            tokenizer = open_pretrained(config.tokenizer, vectors_NE.shape[1])
        elif config.tokenizer.kind == "rkmeans":
            tokenizer = train_tokenizer(config.tokenizer, vectors_NE)
        else:
            tracked = replace(tracked, name=f"tokenizer-{keys['tokenizer']}", job_type="tokenizer")
            tokenizer = _tracked_tokenizer(config, vectors_NE, tracked, folder / CHECKPOINTS, report)
        if rank_and_world()[0] == 0:
            save_tokenizer(folder / "model", tokenizer)
        return

    def tell(row: dict[str, Any]) -> None:
        _log_row(row)
        report(row)

    ids = open_ids(store, keys)
    model, fitted = train_tiger(
        config,
        open_interactions(store, keys),
        ids,
        report=tell,
        folder=folder / CHECKPOINTS,
        device=pick_device(),
        tracked=tracked,
    )
    facts = {
        "config": config.to_dict(),
        "level_sizes": list(ids.level_sizes),
        "tuple_levels": ids.tuple_levels,
        "rows": fitted.rows,
        "best": fitted.best,
        "changes": fitted.changes,
    }
    if rank_and_world()[0] == 0:
        save_checkpoint(folder / "model", model.state_dict(), facts)


def _tracked_tokenizer(
    config: RunConfig, vectors_NE: Tensor, run: TrackedRun, checkpoints: Path, report: Report
) -> Tokenizer:
    """Train it; its epochs go to the log, every tenth of them, and to the trackers. `report` gets signs of life."""
    log_some = _log_tenth(config)
    with open_tracker(config.tracking, run, config.to_dict()) as tracker:
        curve = TrainingCurve(tracker, config.tracking.wandb_log_interval)

        def tell(row: dict[str, Any]) -> None:
            log_some(row)
            curve.log_epoch(row)
            epochs = config.tokenizer.rqvae.epochs
            report({"stage": "tokenizer", "stage_epoch": row["epoch"], "stage_epochs": epochs})

        return train_tokenizer(config.tokenizer, vectors_NE, report=tell, folder=checkpoints)


def make_vectors(config: RunConfig, interactions: Interactions) -> np.ndarray:
    """Item vectors (N, E): of the texts, and where the config says so of the training sequences beside them."""
    settings = config.embeddings
    text_NE = embed_items(interactions.catalogue, settings, config.dataset.dataset_folder)
    if not settings.cooccurrence_dim:
        return text_NE
    offsets, items = interactions.training_sequences()
    near_ND = cooccurrence_vectors(offsets, items, len(text_NE), settings.cooccurrence_dim)
    return join_vectors(text_NE, near_ND, settings.cooccurrence_weight)


# -------------------------------------------------------------------- opening


def open_interactions(store: ArtifactStore, keys: dict[Stage, str]) -> Interactions:
    """The dataset artifact; kept in memory by the process that read it."""
    return _load_interactions(store.path("dataset", keys["dataset"]))


def open_embeddings(store: ArtifactStore, keys: dict[Stage, str]) -> Tensor:
    """Item vectors (N, E), mapped: processes on one machine share them. What is written into them stays in this one."""
    folder = store.path("embeddings", keys["embeddings"])
    return torch.from_numpy(np.load(folder / "embeddings.npy", mmap_mode="c", allow_pickle=False))


def open_tokenizer(config: RunConfig, store: ArtifactStore, keys: dict[Stage, str]) -> Tokenizer:
    """The tokenizer artifact, which runs share that handle collisions in different ways."""
    tokenizer = load_tokenizer(store.path("tokenizer", keys["tokenizer"]))
    tokenizer.config = tokenizer.config.model_copy(update={"collisions": config.tokenizer.collisions})
    return tokenizer


def open_pretrained(config: TokenizerConfig, input_dim: int) -> Tokenizer:
    """The tokenizer at `pretrained_rqvae_path`. Raises `CheckpointError` unless it fits config and vectors."""
    path = str(config.pretrained_rqvae_path)
    tokenizer = load_tokenizer(path)
    for key in ("kind", "sem_id_dim", "num_item_embeddings"):
        found, expected = getattr(tokenizer.config, key), getattr(config, key)
        if found != expected:
            raise CheckpointError(f"{path}: the tokenizer has {key} {found}, but tokenizer.{key} is {expected}")
    if tokenizer.input_dim != input_dim:
        found, expected = tokenizer.input_dim, input_dim
        raise CheckpointError(f"{path}: the tokenizer reads vectors of width {found}, but the items' have {expected}")
    return tokenizer


def open_ids(store: ArtifactStore, keys: dict[Stage, str]) -> SemanticIds:
    """The catalogue's semantic IDs."""
    return _load_ids(store.path("semantic_ids", keys["semantic_ids"]))


def open_tiger(folder: Path, device: torch.device | str = "cpu") -> tuple[Tiger, dict[str, Any]]:
    """A trained model from its artifact or bundle, and the facts saved with it (config, level sizes, metrics)."""
    return load_tiger(folder, device)


def pick_device() -> str:
    """A GPU if this process can see one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@functools.lru_cache(maxsize=2)
def _load_interactions(folder: Path) -> Interactions:
    return Interactions.load(folder)


@functools.lru_cache(maxsize=8)
def _load_ids(folder: Path) -> SemanticIds:
    tensors, facts = load_checkpoint(folder / "ids")
    return SemanticIds(
        tensors["codes_NC"], tuple(facts["level_sizes"]), facts["tuple_levels"], Health(**facts["health"])
    )


def _save_ids(folder: Path, ids: SemanticIds) -> None:
    facts = {"level_sizes": list(ids.level_sizes), "tuple_levels": ids.tuple_levels, "health": ids.health.to_dict()}
    save_checkpoint(folder / "ids", {"codes_NC": ids.codes_NC}, facts)
    write_json(folder / "health.json", ids.health.to_dict())


# ----------------------------------------------------------------------- keys


def _key(stage: Stage, settings: dict[str, Any], *inputs: str) -> str:
    return content_hash({"stage": stage, "code": CODE_VERSIONS[stage], "settings": settings, "inputs": inputs})


def _tokenizer_identity(config: RunConfig) -> dict[str, Any]:
    settings = config.tokenizer.model_dump(mode="json", exclude={"collisions", "pretrained_rqvae_path"})
    if config.tokenizer.pretrained_rqvae_path:
        # The manifest holds the checksum of the tensors. What the config says is checked against it.
        checked = {key: settings[key] for key in ("kind", "sem_id_dim", "num_item_embeddings")}
        return checked | {"pretrained": _content(tokenizer_folder(config.tokenizer.pretrained_rqvae_path) / MANIFEST)}
    if config.tokenizer.kind != "rqvae":
        del settings["rqvae"]
    return settings


def _tiger_identity(config: RunConfig) -> dict[str, Any]:
    """What decides which model is learnt and kept; not what is written meanwhile or done with it afterwards."""
    unread = {"checkpoint_interval"} | ({"fit_on"} if not config.train.refit else set())
    if not config.train.augmentation:
        unread |= {"crop_probability", "mask_probability", "reorder_probability"}
    return {
        "tiger": config.tiger.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json", exclude=unread),
        "evaluation": config.evaluation.model_dump(mode="json", exclude={"batch_size", "blend", "blend_fit"}),
        "seed": config.seed,
    }


def _content(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    stat = path.stat()
    return _content_of(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _content_of(path: Path, size: int, modified: int) -> str:
    return file_hash(path)


def _no_report(row: dict[str, Any]) -> None:
    """For stages whose epochs nobody steers by."""


def _log_tenth(config: RunConfig) -> Report:
    """Ten lines for the hundreds of short epochs of a tokenizer."""
    every = max(1, config.tokenizer.rqvae.epochs // 10)
    return lambda row: _log_row(row) if row["epoch"] % every == 0 else None


def _log_row(row: dict[str, Any]) -> None:
    numbers = {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
    logger.info(" ".join(f"{key}={value}" for key, value in numbers.items()))
