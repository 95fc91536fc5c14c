"""The one entry to data: a `dataset:` section in, filtered and split interactions out.

    source -> rows (`InteractionRows`) -> time order -> k-core -> short users -> split

A source is a reader of rows, the files it reads and the settings that matter to it; adding one is adding it here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrec.data.amazon import amazon_files, read_amazon
from genrec.data.filtering import InteractionRows, split_in_time, to_interactions
from genrec.data.interactions import DataError, Interactions
from genrec.data.movielens import movielens_files, read_movielens
from genrec.data.sequential import read_sequential, sequential_files
from genrec.data.tables import read_table, table_files
from genrec.settings import DatasetConfig

logger = logging.getLogger(__name__)
Settings = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A kind of dataset."""

    read: Callable[[DatasetConfig, Path], InteractionRows]
    files: Callable[[DatasetConfig, Path], list[Path]] = lambda config, folder: []
    "the files that it reads; they exist afterwards, or `DataError` says what is missing"
    settings: Callable[[DatasetConfig], Settings] = lambda config: {}
    "what decides the rows besides the files"


def _synthetic_rows(config: DatasetConfig, folder: Path) -> InteractionRows:
    from genrec.data.synthetic import make_synthetic  # imports torch

    data = make_synthetic(config.synthetic)
    user_n = np.repeat(np.arange(len(data), dtype=np.int32), data.lengths)
    return InteractionRows(data.users, data.catalogue, user_n, data.items, data.timestamps)


SOURCES = {
    "synthetic": Source(_synthetic_rows, settings=lambda config: config.synthetic.model_dump(mode="json")),
    "sequential": Source(
        lambda config, folder: read_sequential(folder, config.max_bad_lines),
        lambda config, folder: sequential_files(folder),
    ),
    "amazon": Source(
        lambda config, folder: read_amazon(folder, config.amazon, config.max_bad_lines),
        lambda config, folder: amazon_files(folder, config.amazon),
    ),
    "movielens": Source(
        lambda config, folder: read_movielens(folder, config.movielens, config.max_bad_lines),
        lambda config, folder: movielens_files(folder, config.movielens),
        lambda config: {"edition": config.movielens.edition},
    ),
    "table": Source(
        lambda config, folder: read_table(folder, config.table, config.max_bad_lines),
        lambda config, folder: table_files(folder, config.table),
        lambda config: config.table.model_dump(mode="json", exclude={"interactions", "items"}),
    ),
}


def load_dataset(config: DatasetConfig) -> Interactions:
    """Read or make the interactions that `config` names, filter and split them, and log what came out."""
    folder = Path(config.dataset_folder or "")
    rows = SOURCES[config.source].read(config, folder)
    try:
        data = to_interactions(rows, k_core=config.k_core, min_history=config.min_history)
        if config.split == "temporal":
            data = split_in_time(data, config.validation_share, config.test_share)
    except DataError as error:
        place = f"source {config.source!r}" + (f" in {folder}" if config.dataset_folder else "")
        raise DataError(f"{place}: {error}") from None
    logger.info("dataset: %s", ", ".join(f"{name} {value:,.6g}" for name, value in data.statistics().items()))
    return data


def dataset_identity(config: DatasetConfig, content: Callable[[Path], str]) -> dict[str, Any]:
    """What decides the dataset: its source's settings and files (by `content`), filters and split.

    Missing files are fetched first where the source may download: their content is part of the identity.
    """
    source = SOURCES[config.source]
    files = source.files(config, Path(config.dataset_folder or ""))
    identity: Settings = {
        "source": config.source,
        "settings": source.settings(config),
        "files": [content(path) for path in files],
        "k_core": config.k_core,
        "min_history": config.min_history,
        "split": config.split,
    }
    if files:
        identity["max_bad_lines"] = config.max_bad_lines
    if config.split == "temporal":
        identity["shares"] = [config.validation_share, config.test_share]
    return identity
