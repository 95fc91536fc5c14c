"""What is in a storage folder: sweeps, and the artifacts that they share."""

from __future__ import annotations

from pathlib import Path

from genrec.artifacts import ARTIFACTS, ArtifactStore
from genrec.errors import InputError, nearest
from sweeps.journal import JOURNAL
from sweeps.ledger_url import POINTER


def is_sweep(folder: Path) -> bool:
    """Whether a sweep was begun in `folder`, wherever its ledger is."""
    return (folder / JOURNAL).is_file() or (folder / POINTER).is_file()


def artifact_store(storage: str | Path) -> ArtifactStore:
    """Where the sweeps of a storage folder share their stages."""
    return ArtifactStore(Path(storage).absolute() / ARTIFACTS)


def sweep_folder(name: str, storage: str | Path) -> Path:
    """The folder of a sweep; a wrong name is answered with the nearest. Raises `InputError`."""
    folder = Path(storage) / name
    if Path(name).name != name or not is_sweep(folder):
        known = [path.name for path in Path(storage).glob("*") if is_sweep(path)]
        raise InputError(f"no sweep {name!r} in {storage}{nearest(name, known)}")
    return folder
