"""Saving and opening a tokenizer of any kind."""

from __future__ import annotations

from pathlib import Path

from genrec.models.residual import read_tokenizer, save_tokenizer, tokenizer_folder
from genrec.models.rkmeans import RkMeans
from genrec.models.rqvae import RqVae

__all__ = ["Tokenizer", "load_tokenizer", "save_tokenizer", "tokenizer_folder", "tokenizer_type"]

Tokenizer = RqVae | RkMeans


def tokenizer_type(kind: str) -> type[RqVae] | type[RkMeans]:
    """The class of a `tokenizer.kind`."""
    return RqVae if kind == RqVae.kind else RkMeans


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer in a checkpoint folder, a tokenizer stage's folder or a bundle.

    Raises `CheckpointError` naming the folder when there is none, it is damaged or it is something else.
    """
    _, facts = read_tokenizer(path)
    return tokenizer_type(facts["config"].kind).load_from_checkpoint(path)
