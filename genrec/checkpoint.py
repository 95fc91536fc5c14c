"""Checkpoints: a folder of tensors (safetensors) and facts (JSON) that is either whole or not there.

A new folder is written under another name and renamed. A folder that is there is replaced in place: the new tensors go
to a file beside the old ones, and the manifest, which comes last, names the file and holds its checksum. So a kill at
any moment leaves the old checkpoint or the new. Nothing that is loaded can run code.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.config import content_hash
from genrec.durable import file_hash, flush, put, write_json
from genrec.errors import InputError

MANIFEST = "manifest.json"
TENSORS, SPARE = "tensors.safetensors", "tensors-2.safetensors"
FORMAT = 1


class CheckpointError(InputError):
    """A checkpoint that is missing, incomplete or damaged; the message names the file."""


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write `folder`, replacing what is there all at once."""
    facts_hash = content_hash(facts)  # refuses what JSON cannot hold before anything is written
    if folder.exists():
        _write(folder, tensors, facts, facts_hash)
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(partial, tensors, facts, facts_hash)
    put(partial, folder)


def _write(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any], facts_hash: str) -> None:
    name = SPARE if _named_file(folder) == TENSORS else TENSORS
    save_file({key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}, folder / name)
    flush(folder / name)
    checksum = file_hash(folder / name)
    manifest = {"format": FORMAT, "tensors": name, "sha256": checksum, "facts": facts, "facts_hash": facts_hash}
    write_json(folder / MANIFEST, manifest)
    for old in {TENSORS, SPARE} - {name}:
        (folder / old).unlink(missing_ok=True)


def _named_file(folder: Path) -> str | None:
    """The tensors' file by the manifest that is there, if that can be read."""
    try:
        return str(json.loads((folder / MANIFEST).read_text())["tensors"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a whole checkpoint. Raises `CheckpointError` naming the file and the fault."""
    manifest = _read_manifest(folder)
    facts, name = manifest.get("facts"), manifest.get("tensors")
    if not isinstance(facts, dict) or manifest.get("facts_hash") != content_hash(facts):
        raise CheckpointError(f"{folder / MANIFEST}: damaged (its facts do not fit their checksum)")
    if name not in (TENSORS, SPARE):
        raise CheckpointError(f"{folder / MANIFEST}: names {name!r} as its tensors; expected {TENSORS!r}")
    path = folder / name
    try:
        found, expected = file_hash(path), str(manifest.get("sha256"))
        if found != expected:
            raise CheckpointError(f"{path}: damaged (checksum {found[:12]}, expected {expected[:12]})")
        return load_file(path), facts
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from None


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        state = "an incomplete save" if folder.is_dir() else "no such folder"
        raise CheckpointError(f"{folder}: {state} (no {MANIFEST})")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    number = manifest.get("format") if isinstance(manifest, dict) else None
    if number != FORMAT or not isinstance(manifest, dict):
        raise CheckpointError(f"{path}: format {number!r}; this version reads format {FORMAT}")
    return manifest


def save_generation(folder: Path, number: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Save as generation `number` and keep the one before; older ones go."""
    save_checkpoint(folder / f"{number:08d}", tensors, facts)
    for old in generations(folder)[:-2]:
        shutil.rmtree(old, ignore_errors=True)


def latest_generation(folder: Path, warn: Any) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest whole generation; `warn(text)` is told of damaged ones, None if there is none at all.

    Raises `CheckpointError` when there are generations and every one is damaged.
    """
    found = generations(folder)
    faults = []
    for path in reversed(found):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            faults.append(str(error))
            warn(f"{error}; trying the one before")
    if faults:
        raise CheckpointError("no usable checkpoint:\n" + "\n".join(faults))
    return None


def generations(folder: Path) -> list[Path]:
    """Finished generations, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.name.isdigit() and path.is_dir())
