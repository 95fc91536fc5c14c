"""Item text -> (N, E) float32 vectors: TF-IDF with truncated SVD, a sentence encoder, or an array computed elsewhere.

`lsa` needs no download and is deterministic; `sentence_transformer` takes any model of that library, by name or from a
folder; `npy` reads vectors of any encoder, row r for internal item id r. The only module that knows a text encoder; the
libraries are imported when they are used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genrec.data.interactions import DataError, Items
from genrec.data.lines import TEXT_TEMPLATE
from genrec.settings import EmbeddingsConfig

WEIGHTS_AND_SETTINGS = {".safetensors", ".bin", ".json", ".txt", ".model"}
"what a model's folder holds that changes its vectors"


def embed_items(items: Items, config: EmbeddingsConfig, base: str | Path | None = None) -> np.ndarray:
    """(N, E) float32 vectors of a catalogue.

    Args:
        base: the folder that a relative `config.path` starts from.

    `lsa`: E is `config.dim`, or less where the catalogue has not as many directions; rows have length 1, or 0 where a
    text holds no word that another item has too. `sentence_transformer`: what the model's own pooling gives. `npy`:
    raises `DataError` unless the array has one finite row, not zero, an item.
    """
    if config.encoder == "npy":
        return _load_vectors(items, Path(base or ".") / str(config.path))
    if config.encoder == "sentence_transformer":
        return _encode_sentences(items, config)
    from genrec.data.lsa import Lsa  # imports torch

    return Lsa.fit(items.texts, config.dim)[1]


def embeddings_identity(
    config: EmbeddingsConfig, base: str | Path | None, content: Callable[[Path], str]
) -> dict[str, Any]:
    """What the vectors depend on besides the items: the encoder's settings, and the content of the files it reads.

    A model that is named and not given as a folder is known by its name alone.
    """
    if config.encoder == "npy":
        return {"encoder": "npy", "array": content(Path(base or ".") / str(config.path))}
    if config.encoder == "lsa":
        return {"encoder": "lsa", "dim": config.dim, "text_template": TEXT_TEMPLATE}
    model: Any = config.model
    if Path(config.model).is_dir():
        files = [p for p in sorted(Path(config.model).rglob("*")) if p.suffix in WEIGHTS_AND_SETTINGS]
        model = {path.relative_to(config.model).as_posix(): content(path) for path in files}
    return {"encoder": "sentence_transformer", "model": model, "text_template": TEXT_TEMPLATE}


def _encode_sentences(items: Items, config: EmbeddingsConfig) -> np.ndarray:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise DataError(
            f"embeddings.encoder 'sentence_transformer' needs the extra 'text' ({error}): "
            "pip install 'genrec-sweeps[text]'"
        ) from None
    try:
        model = SentenceTransformer(config.model)
    except Exception as error:  # of any library below: a folder of the user's can be broken in many ways
        raise DataError(
            f"embeddings.model {config.model!r}: neither a folder with a sentence-transformers model nor one that can "
            f"be downloaded ({_first_line(error)}); without a network give the folder of a model that is there, or "
            "use encoder 'lsa'"
        ) from None
    vectors = model.encode(list(items.texts), batch_size=config.batch_size, show_progress_bar=sys.stderr.isatty())
    vectors_NE = np.ascontiguousarray(vectors, dtype=np.float32)
    _refuse_row(~np.isfinite(vectors_NE).all(axis=1), "its vector has NaN or inf", items, config.model)
    return vectors_NE


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _load_vectors(items: Items, path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as an array of numbers ({error})") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: expected one array (.npy), got an archive of several")
    if array.ndim != 2 or array.shape[1] < 1 or len(array) != len(items):
        raise DataError(f"{path}: shape must be ({len(items)}, E), one row an item, got {array.shape}")
    if array.dtype.kind != "f":
        raise DataError(f"{path}: values must be float16, float32 or float64, got {array.dtype}")
    with np.errstate(over="ignore"):  # a float64 too large for float32 becomes inf, which the next line refuses
        vectors_NE = np.array(array, dtype=np.float32)
    _refuse_row(~np.isfinite(vectors_NE).all(axis=1), "every value must be finite, but it has NaN or inf", items, path)
    _refuse_row(~vectors_NE.any(axis=1), "a row must not be all zero", items, path)
    return vectors_NE


def _refuse_row(bad_N: Any, rule: str, items: Items, where: Path | str) -> None:
    if bad_N.any():
        row = int(bad_N.argmax())
        raise DataError(f"{where}: row {row} (item {items.ids[row]!r}): {rule} ({int(bad_N.sum())} such rows)")
