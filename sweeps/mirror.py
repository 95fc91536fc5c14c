"""A sweep's folder on this machine and its copy in an object store.

The process that drives a sweep works in a folder of its own machine. A thread copies what has changed there to the
store every few seconds. A driver on another machine first copies it back from the store, and goes on.

Only one driver may do this at a time. Beside the lock of the folder it holds a lease in the store. And it replaces the
ledger's journal in the store only if the object there is still the one that it has read or written itself: so even a
driver that is wrong about its lease overwrites nothing. A file is deleted in the store only when the driver has deleted
it in its folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from genrec.durable import put, write_json
from genrec.lease import Note
from genrec.object_store import ObjectStore, StorageError
from genrec.outage import Outage
from genrec.remote_artifacts import ObjectNote
from sweeps.driver_lock import DRIVER, LOCK, DriverLock
from sweeps.errors import LedgerError
from sweeps.folders import LOGS, TRACKING, is_copy, url_of, working_folder
from sweeps.journal import JOURNAL

PUSH_SECONDS = 5.0
"between two looks at what has changed. Changes that are younger are lost when the machine is lost"
UNCOPIED_SECONDS = 120.0
"for which copying may fail in a row before the driver ends: more of the record would be on one machine only"
INDEX = ".mirror.json"
_SCRATCH = "ray"
_UNFINISHED = (".partial", ".old", ".new", ".part")


class Mirror:
    """The files of the sweep in `folder`, which lies in a folder that stands for an object store."""

    def __init__(self, folder: Path):
        url = url_of(folder.parent)
        assert url is not None
        self.folder = folder
        self.objects = ObjectStore(f"{url}/{folder.name}")
        self._kept_here = {LOCK} if is_copy(folder.parent) else {LOCK, DRIVER}
        self._turn = threading.Lock()
        self._known: dict[str, Any] | None = None

    def note(self) -> Note:
        """Where the driver's lease is."""
        return ObjectNote(self.objects, DRIVER)

    def pull(self, below: str = "") -> None:
        """Copy what is new in the store into the folder. Logs and trackers' files are left out unless `below` names
        them. From a copy that is only looked at, what has gone from the store is deleted.

        A file that was changed only here stays as it is: the last driver was on this machine and died before it could
        copy the file.
        """
        with self._turn:
            index, tags = self._index(), self.objects.tags(below)
            vanished = [name for name in index if name.startswith(below) and name not in tags]
            for name in vanished if is_copy(self.folder.parent) else ():
                (self.folder / name).unlink(missing_ok=True)
                del index[name]
            for name, tag in tags.items():
                path = self.folder / name
                known = index.get(name, {}).get("tag") == tag and path.exists()
                if known or self._is_left_out(PurePosixPath(name), wanted=below):
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{path.name}.{os.getpid()}")
                _, tag = self.objects.download(name, partial)
                put(partial, path)
                index[name] = {"tag": tag, "seen": self._signature(name)}
            self._known = index
            if index or vanished:
                write_json(self.folder / INDEX, index)

    def push(self) -> None:
        """Copy what has changed in the folder to the store.

        The journal is read first and written last: whatever it tells of is then in the store already. Raises
        `LedgerError` when another driver has replaced the journal meanwhile, and `StorageError`.
        """
        with self._turn:
            # In memory first: where the file cannot be written (a full disk), what was copied is still known.
            index = self._known = self._index() if self._known is None else self._known
            journal = self._journal()
            names = [name for name in self._names() if name != JOURNAL]
            try:
                for name in names:
                    with contextlib.suppress(FileNotFoundError):  # replaced in this moment: the next look finds it
                        self._push_file(name, index)
                self._delete_vanished(names, index)
                if journal is not None and index.get(JOURNAL, {}).get("seen") != [len(journal)]:
                    self._push_journal(journal, index)
            finally:
                write_json(self.folder / INDEX, index)

    def _push_file(self, name: str, index: dict[str, Any]) -> None:
        seen = self._signature(name)
        if index.get(name, {}).get("seen") != seen:
            index[name] = {"tag": self.objects.upload(self.folder / name, name), "seen": seen}

    def delete(self, name: str) -> None:
        """Delete a file here and in the store."""
        with self._turn:
            index = self._known = self._index() if self._known is None else self._known
            (self.folder / name).unlink(missing_ok=True)
            self.objects.delete([name])
            index.pop(name, None)
            write_json(self.folder / INDEX, index)

    def _delete_vanished(self, names: list[str], index: dict[str, Any]) -> None:
        vanished = sorted(set(index) - set(names) - {JOURNAL})
        self.objects.delete([name for name in vanished if not (self.folder / name).exists()])
        for name in vanished:
            del index[name]

    def _push_journal(self, journal: bytes, index: dict[str, Any]) -> None:
        known = index.get(JOURNAL)
        tag = (
            self.objects.create(JOURNAL, journal)
            if known is None
            else self.objects.replace(JOURNAL, journal, known["tag"])
        )
        if tag is None:
            raise LedgerError(
                f"{self.objects.url}/{JOURNAL}: another driver has written the ledger of sweep {self.folder.name}; "
                f"this one stops; what it had not copied yet is in {self.folder}"
            )
        index[JOURNAL] = {"tag": tag, "seen": [len(journal)]}

    def _journal(self) -> bytes | None:
        """Its whole lines."""
        try:
            data = (self.folder / JOURNAL).read_bytes()
        except FileNotFoundError:
            return None
        return data[: data.rfind(b"\n") + 1]

    def _signature(self, name: str) -> list[int]:
        stat = (self.folder / name).stat()
        return [stat.st_size] if name == JOURNAL else [stat.st_size, stat.st_mtime_ns]

    def _names(self) -> list[str]:
        """Of all files here that have a place in the store."""
        found = []
        for place, folders, files in os.walk(self.folder):
            inner = Path(place).relative_to(self.folder)
            folders[:] = sorted(name for name in folders if not _is_unfinished(name) and inner / name != Path(_SCRATCH))
            found += [(inner / name).as_posix() for name in sorted(files) if not _is_unfinished(name)]
        return [name for name in found if name not in self._kept_here]

    def _is_left_out(self, name: PurePosixPath, wanted: str) -> bool:
        """Whether an object of the store is not copied into the folder: its name leads out of the folder, it belongs to
        one machine only (locks), or it is a log or a tracker's file that nobody asked for."""
        is_strange = name.is_absolute() or ".." in name.parts
        return is_strange or str(name) in self._kept_here or (name.parts[0] in (LOGS, TRACKING) and not wanted)

    def _index(self) -> dict[str, Any]:
        """For each file by its name: the object's tag and the file's signature (size, time of change) when the two were
        last known to have the same content."""
        try:
            index: dict[str, Any] = json.loads((self.folder / INDEX).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return index


class MirrorLock(DriverLock):
    """The driver's lock of a folder that is copied to an object store while it is held."""

    def __init__(self, folder: Path, *further: Note):
        self._mirror = Mirror(folder)
        super().__init__(folder, self._mirror.note(), *further)
        self._fault: Exception | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Afterwards the folder is what the last driver has left. Also raises `StorageError`, for a store that cannot
        be used."""
        self._mirror.objects.probe()
        super().acquire()
        try:
            self._mirror.pull()
        except BaseException:
            super().release()
            raise
        self._over.clear()
        self._thread = threading.Thread(target=self._keep_pushing, name="sweep-copies", daemon=True)
        self._thread.start()

    def check(self) -> None:
        super().check()
        if self._fault is not None:
            raise self._fault

    def delete(self, name: str) -> None:
        self._mirror.delete(name)

    def release(self) -> None:
        """Copy what has changed since the last time, then let go. Raises `StorageError` if that cannot be copied."""
        self._over.set()
        try:
            if self._thread is not None:
                self._thread.join()
                self._thread = None
                if not isinstance(self._fault, LedgerError):
                    super().check()
                    self._mirror.push()
        except (StorageError, OSError) as error:
            raise StorageError(f"{error}\nwhat is not in the store yet is in {self._mirror.folder}") from None
        finally:
            super().release()

    def _keep_pushing(self) -> None:
        """Whatever ends this thread becomes the fault that `check` raises before the driver's next write."""
        outage = Outage(f"copy {self._mirror.folder} to {self._mirror.objects.url}")
        while not self._over.wait(PUSH_SECONDS):
            try:
                super().check()
                self._mirror.push()
                outage.worked()
            except OSError as error:  # of this machine or of the store: the next look finds the same files
                seconds = outage.failed(error)
                if seconds > UNCOPIED_SECONDS:
                    self._fault = StorageError(
                        f"{error}\nnothing of sweep {self._mirror.folder.name} could be copied to "
                        f"{self._mirror.objects.url} for {seconds:.0f} s; this driver stops"
                    )
                    return
            except Exception as error:
                self._fault = error
                return


def lock_of(folder: Path, *further: Note) -> DriverLock:
    """The driver's lock of a sweep's folder. `further`: other places where the driver must be alone."""
    if is_copy(folder.parent):
        raise LedgerError(f"{folder}: a copy of a sweep, only to be looked at")
    return DriverLock(folder, *further) if url_of(folder.parent) is None else MirrorLock(folder, *further)


# -- where a trial runs -----------------------------------------------------------------------------------------------


def folder_here(url: str, sweep: str) -> Path:
    """The folder of this node for what trials of a sweep write, whose storage is an object store."""
    return working_folder(url) / sweep


@contextlib.contextmanager
def trial_files(url: str | None, sweep: str, task_id: str) -> Iterator[None]:
    """Around a block that runs a trial of a sweep: afterwards the trial's log and its trackers' files are copied to the
    object store at `url`.

    The log of an earlier attempt is fetched before the block, so that the trial appends to it. A file that cannot be
    copied stays on this node, which is told and does no harm to the trial. With `url` None the storage is a folder, and
    there is nothing to copy.
    """
    if url is None:
        yield
        return
    objects, folder, began = ObjectStore(f"{url}/{sweep}"), folder_here(url, sweep), time.time()
    log = f"{LOGS}/{task_id}.log"
    with _told("bring", log):
        if objects.has(log):
            objects.download(log, folder / log)
    try:
        yield
    finally:
        tracked = [path for path in (folder / TRACKING).rglob("*") if path.is_file() and path.stat().st_mtime >= began]
        for name in (log, *(path.relative_to(folder).as_posix() for path in tracked)):
            with _told("copy", name):
                objects.upload(folder / name, name)


@contextlib.contextmanager
def _told(what: str, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        print(f"cannot {what} {name}: {error}", file=sys.stderr)


def _is_unfinished(name: str) -> bool:
    return name.startswith(".") or name.endswith(_UNFINISHED)
