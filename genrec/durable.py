"""Files that survive a crash: a reader finds the old content or the new, never a part.

Everything is written under another name, flushed to disk and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace a small file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    put(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Replace a small file by `value` as JSON. Numbers that JSON does not know raise `ValueError` before anything."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def put(partial: Path, path: Path) -> None:
    """Rename a flushed file or a folder of flushed files to its final name."""
    os.replace(partial, path)
    flush(path.parent)


def put_folder(partial: Path, folder: Path) -> None:
    """Give a finished folder its final name. One that is there stays until everything in the new one is on disk."""
    for path in partial.rglob("*"):
        flush(path)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    put(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Make a file, or the renames and creations in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
