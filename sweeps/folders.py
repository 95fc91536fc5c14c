"""What is in a storage (a folder, or the URL of an object store): sweeps, and the artifacts that they share.

Of an object store this machine has two folders that look like a storage: the sweeps that are driven here, and copies of
those that are only looked at. Each says in `storage.json` what it stands for.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from genrec.artifacts import ARTIFACTS, ArtifactStore, open_store
from genrec.durable import write_json
from genrec.errors import InputError, nearest
from genrec.object_store import ObjectStore, cache_of, checked_storage, checked_url, is_url
from sweeps.journal import JOURNAL
from sweeps.ledger_url import POINTER

DEFAULT = "runs"
"the folder of all sweeps, unless another storage is named"
LOGS, TRACKING = "logs", "tracking"
"in a sweep's folder: what its trials print, and what trackers write"
NOTE = "storage.json"
DRIVEN, COPIES = "driven", "copies"


def sweeps_command(verb: str, *words: str, storage: str | Path) -> str:
    """A command of `sweeps` to copy into a shell: quoted, and with the storage where it is not the default."""
    where = [] if str(storage) == DEFAULT else ["--storage", str(storage)]
    return shlex.join(["sweeps", verb, *words, *where])


def is_sweep(folder: Path) -> bool:
    """Whether a sweep was begun in `folder`, wherever its ledger is."""
    return (folder / JOURNAL).is_file() or (folder / POINTER).is_file()


def working_folder(storage: str | Path) -> Path:
    """The storage itself, or the folder of this machine in which sweeps of an object store are driven."""
    storage = checked_storage(storage)
    return _noted(storage, DRIVEN) if is_url(storage) else Path(storage)


def storage_of(folder: Path) -> str:
    """The storage that `folder`, in which sweeps' folders lie, is or stands for."""
    return url_of(folder) or str(folder)


def url_of(folder: Path) -> str | None:
    """The URL of the object store that `folder` stands for; None for a storage that is a folder."""
    try:
        return str(json.loads((folder / NOTE).read_text())["url"])
    except FileNotFoundError:
        return None


def is_copy(folder: Path) -> bool:
    """Whether the sweeps in `folder` are copies, only to be looked at."""
    return folder.name == COPIES and url_of(folder) is not None


def _noted(url: str, kind: str) -> Path:
    """A folder of this machine for sweeps of an object store, with its note."""
    url = checked_url(url)
    folder = cache_of(url) / kind
    if url_of(folder) != url:
        folder.mkdir(parents=True, exist_ok=True)
        folder.parent.chmod(0o700)
        write_json(folder / NOTE, {"url": url})
    return folder


def artifact_store(storage: str | Path) -> ArtifactStore:
    """Where the sweeps of a storage, or of the folder that stands for it, share their stages."""
    storage = checked_storage(storage)
    url = storage if is_url(storage) else url_of(Path(storage))
    return open_store(f"{url}/{ARTIFACTS}" if url else Path(storage).absolute() / ARTIFACTS)


def storage_with(artifacts: str) -> str:
    """The storage whose stages are at `artifacts`."""
    return artifacts.removesuffix(f"/{ARTIFACTS}")


def has_sweep(name: str, storage: str | Path) -> bool:
    """Whether a sweep of this name was begun in the storage."""
    try:
        sweep_folder(name, storage)
    except InputError:
        return False
    return True


def sweep_folder(name: str, storage: str | Path) -> Path:
    """The folder of a sweep, to look at: of one in an object store a copy, made now. A wrong name is answered with the
    nearest. Raises `InputError`."""
    storage = checked_storage(storage)
    if Path(name).name == name:
        folder = _copied(name, storage) if is_url(storage) else Path(storage) / name
        if is_sweep(folder):
            return folder
    known = _names_in_store(storage) if is_url(storage) else _names_in_folder(Path(storage))
    if name in known:
        reason = "it was begun just now, or its driver was lost before it could write one"
        raise InputError(f"sweep {name!r} has no ledger in {storage}: {reason}")
    raise InputError(f"no sweep {name!r} in {storage}{nearest(name, known)}")


def tracking_folder(name: str, storage: str | Path) -> Path:
    """What trackers wrote in a sweep; of one in an object store a copy, made now."""
    folder = sweep_folder(name, storage)
    if is_copy(folder.parent):
        from sweeps.mirror import Mirror

        Mirror(folder).pull(TRACKING)
    return folder / TRACKING


def folder_to_drive(name: str, storage: str | Path) -> Path:
    """The folder of a sweep that exists, to go on with. Raises `InputError`.

    Of one in an object store it holds at first what says that there is a sweep; the driver's lock brings the rest.
    """
    found = sweep_folder(name, storage)
    folder = working_folder(storage) / name
    if not is_sweep(folder):
        folder.mkdir(parents=True, exist_ok=True)
        begun = next(file for file in (POINTER, JOURNAL) if (found / file).is_file())
        (folder / begun).write_bytes((found / begun).read_bytes())
    return folder


def _copied(name: str, url: str) -> Path:
    from sweeps.mirror import Mirror

    driven = _noted(url, DRIVEN) / name
    folder = _noted(url, COPIES) / name
    Mirror(folder).pull()
    return driven if is_sweep(driven) and not is_sweep(folder) else folder  # begun here, and not copied yet


def _names_in_folder(storage: Path) -> list[str]:
    return [path.name for path in storage.glob("*") if is_sweep(path)]


def _names_in_store(url: str) -> list[str]:
    return [name for name in ObjectStore(url).folders() if not name.startswith(".")]
