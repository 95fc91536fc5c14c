"""Whether the files that a config reads are there, told in a moment: nothing is read, fetched or computed."""

from __future__ import annotations

from pathlib import Path

from genrec.config import RunConfig
from genrec.data.sources import dataset_identity
from genrec.data.text import embeddings_identity
from genrec.errors import InputError
from genrec.settings import DatasetConfig


def missing_inputs(config: RunConfig) -> list[str]:
    """A line for every input of the dataset, the vectors and the tokenizer that is not there; none for what the config
    lets the source download."""
    faults = []
    folder = config.dataset.dataset_folder
    try:
        if not _downloads(config.dataset):
            dataset_identity(config.dataset, _present)
    except (InputError, OSError) as error:
        faults.append(f"dataset.dataset_folder {folder}: {error}")
    try:
        embeddings_identity(config.embeddings, folder, _present)
    except (InputError, OSError) as error:
        faults.append(f"embeddings.path {config.embeddings.path}: {error}")
    pretrained = config.tokenizer.pretrained_rqvae_path
    if pretrained and not Path(pretrained).exists():
        faults.append(f"tokenizer.pretrained_rqvae_path {pretrained}: no such file or folder")
    return faults


def _downloads(config: DatasetConfig) -> bool:
    """Whether what is missing would be fetched."""
    return (config.source == "amazon" and config.amazon.download) or (
        config.source == "movielens" and config.movielens.download
    )


def _present(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return ""
