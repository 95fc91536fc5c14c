"""Settings that make no sense as parameters of a search: no trial would differ, or trials would not be comparable.

What a stage reads is said by its key (`genrec.pipeline.stage_keys`), which a test holds this list against; it stands
here again because a file is checked without loading torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

UNREAD = (
    "embeddings.batch_size",
    "train.checkpoint_interval",
    "evaluation.batch_size",
    "evaluation.blend",
    "evaluation.blend_fit",
    "tracking",
    "save_dir_root",
)
"settings and sections that no stage's result depends on"
MEASURES = ("dataset", "evaluation.seen", "evaluation.max_users", "evaluation.ks")
"settings and sections that decide which users and items a trial is measured on, and how"
TEXTS = ("dataset.table.title_column", "dataset.table.text_columns")
"of a dataset: what items are called changes their vectors alone"
_PRETRAINED = (
    "tokenizer.seed",
    "tokenizer.standardise",
    "tokenizer.pca_dim",
    "tokenizer.pca_whitening",
    "tokenizer.rqvae",
)
NEEDS: tuple[tuple[str, str, tuple[Any, ...] | None], ...] = (
    ("tokenizer.rqvae", "tokenizer.kind", ("rqvae",)),
    ("tokenizer.rqvae.gumbel_temperature", "tokenizer.rqvae.gradient", ("gumbel",)),
    ("tokenizer.rqvae.sinkhorn_epsilon", "tokenizer.rqvae.sinkhorn_levels", None),
    ("tokenizer.rqvae.sinkhorn_iterations", "tokenizer.rqvae.sinkhorn_levels", None),
    ("tokenizer.pca_whitening", "tokenizer.pca_dim", None),
    *((path, "tokenizer.pretrained_rqvae_path", (None,)) for path in _PRETRAINED),
    *((f"train.{name}_probability", "train.augmentation", (True,)) for name in ("crop", "mask", "reorder")),
    ("embeddings.dim", "embeddings.encoder", ("lsa",)),
    ("embeddings.path", "embeddings.encoder", ("npy",)),
    ("embeddings.model", "embeddings.encoder", ("sentence_transformer",)),
    ("embeddings.cooccurrence_weight", "embeddings.cooccurrence_dim", None),
)
"a setting or section, which other setting it is read under, and that one's values: none stands for any but null and 0"


def faults_of_path(path: str, others: Collection[str], base: Mapping[str, Any]) -> Iterator[str]:
    """Why the setting at `path` may not vary. `others`: all paths that do; `base`: the base's value of every path."""
    if _is_in(path, UNREAD):
        yield "no trial's result depends on it, so it is nothing to search for"
    elif _is_in(path, MEASURES) and path not in TEXTS:
        yield "decides on what and how a trial is measured, so trials could not be compared; set it for all of them"
    for read, needed, values in NEEDS:
        if not _is_in(path, (read,)) or needed in others:
            continue
        value = base[needed]
        if not (value in values if values is not None else value):
            yield f"no trial reads it while {needed} is {_shown(value)}"


def _is_in(path: str, names: Collection[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
