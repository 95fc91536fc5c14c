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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genrec.artifacts import ArtifactStore
from genrec.checkpoint import file_hash, load_checkpoint, save_checkpoint, write_json
from genrec.config import RunConfig, content_hash, validate_config
from genrec.data.interactions import Interactions
from genrec.data.sequential import load_sequential
from genrec.data.synthetic import make_synthetic
from genrec.data.text import embed_items
from genrec.errors import InputError
from genrec.models.rkmeans import RkMeans
from genrec.models.rqvae import RqVae
from genrec.models.tiger import Tiger
from genrec.semantic_ids import Health, SemanticIds, assign_ids
from genrec.trainers.fit import Report
from genrec.trainers.rqvae_trainer import train_tokenizer
from genrec.trainers.tiger_trainer import train_tiger

logger = logging.getLogger(__name__)
Stage = Literal["dataset", "embeddings", "tokenizer", "semantic_ids", "tiger"]
STAGES: tuple[Stage, ...] = ("dataset", "embeddings", "tokenizer", "semantic_ids", "tiger")
CODE_VERSIONS: dict[Stage, int] = {"dataset": 1, "embeddings": 1, "tokenizer": 1, "semantic_ids": 1, "tiger": 1}
Loop = Callable[[dict[str, Any], Report], None]
Launch = Callable[[Loop, dict[str, Any]], None]
"runs a training loop somewhere: here, or in workers that Ray Train starts"


@dataclass
class PipelineResult:
    """Keys of all stages that ran, and which of them were made here or found finished."""

    keys: dict[str, str] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)


def stage_keys(config: RunConfig) -> dict[Stage, str]:
    """The key of every stage of `config`. Reads the data files' content (cached by size and time), builds nothing."""
    dataset = _key("dataset", _dataset_identity(config))
    embeddings = _key("embeddings", _embeddings_identity(config), dataset)
    tokenizer = _key("tokenizer", _tokenizer_identity(config), embeddings)
    ids = _key("semantic_ids", {}, tokenizer)
    # How often a checkpoint is written is no part of what is learnt.
    train = config.train.model_dump(mode="json", exclude={"checkpoint_interval"})
    settings = {"tiger": config.tiger.model_dump(mode="json"), "train": train, "seed": config.seed}
    evaluation = config.evaluation.model_dump(mode="json", exclude={"batch_size"})
    tiger = _key("tiger", settings | {"evaluation": evaluation}, ids)
    return {"dataset": dataset, "embeddings": embeddings, "tokenizer": tokenizer, "semantic_ids": ids, "tiger": tiger}


def run_pipeline(
    config: RunConfig,
    store: ArtifactStore,
    *,
    until: Stage = "tiger",
    stages: tuple[Stage, ...] | None = None,
    report: Report | None = None,
    launch: Launch | None = None,
) -> PipelineResult:
    """Make sure that every stage up to `until`, or those of `stages`, is in the store.

    `report` gets TIGER's epochs when no `launch` is given.
    """
    keys = stage_keys(config)
    result = PipelineResult()
    run = launch or (lambda loop, argument: loop(argument, report or _no_report))
    for stage in stages or STAGES[: STAGES.index(until) + 1]:
        argument = {"stage": stage, "config": config.to_dict(), "store": str(store.root)}
        _, built = store.ensure(stage, keys[stage], functools.partial(_build, argument, keys, run), logger.info)
        result.keys[stage] = keys[stage]
        (result.trained if built else result.reused).append(stage)
        logger.info("%s %s: %s", stage, keys[stage], "made" if built else "reused")
    return result


def _build(argument: dict[str, Any], keys: dict[Stage, str], run: Launch, folder: Path) -> dict[str, Any]:
    """Fill `folder` with a stage. Stages that train by gradient go through `run`."""
    stage: Stage = argument["stage"]
    config = validate_config(argument["config"])
    store = ArtifactStore(argument["store"])
    if stage == "dataset":
        make_dataset(config).save(folder)
    elif stage == "embeddings":
        interactions = open_interactions(store, keys)
        np.save(
            folder / "embeddings.npy",
            embed_items(interactions.catalogue, config.embeddings, config.dataset.dataset_folder),
        )
    elif stage == "semantic_ids":
        _save_ids(folder, assign_ids(_codes(store, keys, config), config.tokenizer.num_item_embeddings))
    elif stage == "tokenizer" and config.tokenizer.kind == "rkmeans":
        train_stage(argument | {"folder": str(folder)}, _no_report)
    else:
        run(train_stage, argument | {"folder": str(folder)})
    return {}


def train_stage(argument: dict[str, Any], report: Report) -> None:
    """Train the stage `argument["stage"]` into `argument["folder"]`; every worker of a group runs this."""
    config = validate_config(argument["config"])
    store, folder = ArtifactStore(argument["store"]), Path(argument["folder"])
    keys = stage_keys(config)
    if argument["stage"] == "tokenizer":
        vectors_NE = open_embeddings(store, keys)
        tokenizer = train_tokenizer(
            config.tokenizer, vectors_NE, report=_log_tenth(config), folder=folder / "checkpoints"
        )
        facts = {"tokenizer": config.tokenizer.model_dump(mode="json"), "input_dim": vectors_NE.shape[1]}
        _save_on_first_rank(folder / "model", tokenizer, facts)
        return

    def tell(row: dict[str, Any]) -> None:
        _log_row(row)
        report(row)

    ids = open_ids(store, keys)
    model, fitted = train_tiger(
        config, open_interactions(store, keys), ids, report=tell, folder=folder / "checkpoints", device=pick_device()
    )
    facts = {
        "config": config.to_dict(),
        "level_sizes": list(ids.level_sizes),
        "tuple_levels": ids.tuple_levels,
        "rows": fitted.rows,
        "best": fitted.best,
    }
    _save_on_first_rank(folder / "model", model, facts)


def make_dataset(config: RunConfig) -> Interactions:
    """Read or generate the interactions that `config.dataset` names."""
    if config.dataset.source == "synthetic":
        return make_synthetic(config.dataset.synthetic)
    return load_sequential(Path(str(config.dataset.dataset_folder)))


# -------------------------------------------------------------------- opening


def open_interactions(store: ArtifactStore, keys: dict[Stage, str]) -> Interactions:
    """The dataset artifact; kept in memory by the process that read it."""
    return _load_interactions(store.path("dataset", keys["dataset"]))


def open_embeddings(store: ArtifactStore, keys: dict[Stage, str]) -> Tensor:
    """Item vectors (N, E)."""
    folder = store.path("embeddings", keys["embeddings"])
    return torch.from_numpy(np.load(folder / "embeddings.npy", allow_pickle=False))


def open_ids(store: ArtifactStore, keys: dict[Stage, str]) -> SemanticIds:
    """The catalogue's semantic IDs."""
    return _load_ids(store.path("semantic_ids", keys["semantic_ids"]))


def open_tiger(folder: Path, device: torch.device | str = "cpu") -> tuple[Tiger, dict[str, Any]]:
    """A trained model from its artifact or bundle, and the facts saved with it (config, level sizes, metrics)."""
    tensors, facts = load_checkpoint(folder / "model")
    config = validate_config(facts["config"])
    model = Tiger(config.tiger, tensors["codes_NC"], facts["level_sizes"])
    model.load_state_dict(tensors)
    return model.to(device).eval(), facts


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


def _codes(store: ArtifactStore, keys: dict[Stage, str], config: RunConfig) -> Tensor:
    """Codes (N, L) of all items by the finished tokenizer."""
    tensors, facts = load_checkpoint(store.path("tokenizer", keys["tokenizer"]) / "model")
    tokenizer_type = RqVae if config.tokenizer.kind == "rqvae" else RkMeans
    tokenizer = tokenizer_type(config.tokenizer, facts["input_dim"])
    tokenizer.load_state_dict(tensors)
    return tokenizer.eval().codes(open_embeddings(store, keys)).clone()


def _save_on_first_rank(folder: Path, model: torch.nn.Module, facts: dict[str, Any]) -> None:
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        save_checkpoint(folder, model.state_dict(), facts)


# ----------------------------------------------------------------------- keys


def _key(stage: Stage, settings: dict[str, Any], *inputs: str) -> str:
    return content_hash({"stage": stage, "code": CODE_VERSIONS[stage], "settings": settings, "inputs": inputs})


def _dataset_identity(config: RunConfig) -> dict[str, Any]:
    if config.dataset.source == "synthetic":
        return {"synthetic": config.dataset.synthetic.model_dump(mode="json")}
    folder = Path(str(config.dataset.dataset_folder))
    return {name: _content(folder / name) for name in ("sequential_data.txt", "items.jsonl")}


def _embeddings_identity(config: RunConfig) -> dict[str, Any]:
    if config.embeddings.encoder == "npy":
        return {"npy": _content(Path(config.dataset.dataset_folder or "") / str(config.embeddings.path))}
    return {"lsa": config.embeddings.dim}


def _tokenizer_identity(config: RunConfig) -> dict[str, Any]:
    settings = config.tokenizer.model_dump(mode="json")
    if config.tokenizer.kind != "rqvae":
        del settings["rqvae"]
    return settings


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
