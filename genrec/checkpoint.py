"""Checkpoints: a folder of tensors (safetensors) and facts (JSON) that is either whole or not there.

Written under another name, flushed, then renamed; the manifest with the checksum comes last. Nothing that is loaded
can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.config import content_hash
from genrec.errors import InputError

TENSORS, MANIFEST = "tensors.safetensors", "manifest.json"


class CheckpointError(InputError):
    """A checkpoint that is missing, incomplete or damaged; the message names the file."""


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write `folder` atomically, replacing what is there."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, partial / TENSORS)
    flush(partial / TENSORS)
    manifest = {
        "format": 1,
        "sha256": file_hash(partial / TENSORS),
        "facts": facts,
        "facts_hash": content_hash(facts),
    }
    write_json(partial / MANIFEST, manifest)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    flush(folder.parent)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a whole checkpoint. Raises `CheckpointError` naming the file and the fault."""
    if not (folder / MANIFEST).is_file():
        state = "an incomplete save" if folder.is_dir() else "no such folder"
        raise CheckpointError(f"{folder}: {state} (no {MANIFEST})")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found = file_hash(folder / TENSORS)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != 1:
        number = manifest.get("format") if isinstance(manifest, dict) else None
        raise CheckpointError(f"{folder / MANIFEST}: format {number!r}; this version reads format 1")
    expected, facts = str(manifest.get("sha256")), manifest.get("facts")
    if not isinstance(facts, dict) or manifest.get("facts_hash", content_hash(facts)) != content_hash(facts):
        raise CheckpointError(f"{folder / MANIFEST}: damaged (its facts do not fit their checksum)")
    if found != expected:
        raise CheckpointError(f"{folder / TENSORS}: damaged (checksum {found[:12]}, expected {expected[:12]})")
    try:
        return load_file(folder / TENSORS), facts
    except SafetensorError as error:
        raise CheckpointError(f"{folder / TENSORS}: not a safetensors file ({error})") from None


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


def write_json(path: Path, value: Any) -> None:
    """Write JSON by rename, flushed to disk."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
    flush(partial)
    os.replace(partial, path)


def flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
