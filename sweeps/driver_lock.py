"""Who drives a sweep: one process at a time, named, and taken over when it is dead.

A driver holds a lease (`genrec.lease`) on a note in the sweep's folder and, where there is one, in its database or
object store. In the folder the kernel's own lock comes first: it ends with its owner.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from genrec.durable import write_text
from genrec.lease import Lease, Note, is_alive_here, parsed
from sweeps.errors import LedgerError, SweepDriven

LOCK = "driver.lock"
DRIVER = "driver.json"
BEAT = 5.0
"seconds between two heartbeats"
EXPIRY = 20.0
"seconds without a heartbeat after which a driver on another machine counts as dead"
_WAIT_FOR_PROBES = 0.5  # seconds; a reader that asks `is_driven` holds the lock for an instant


class FileNote:
    """`driver.json`. Who swaps holds the kernel's lock of the folder, so that nobody comes between."""

    def __init__(self, folder: Path):
        self._path = folder / DRIVER

    def read(self) -> str | None:
        try:
            return self._path.read_text()
        except OSError:
            return None

    def swap(self, old: str | None, new: str) -> bool:
        if self.read() != old:
            return False
        write_text(self._path, new)
        return True


class Claim:
    """The lease of this process as the driver, from `acquire` to `release`.

    `locked`: the claimant holds the kernel's lock already, so that no other process of this machine can be alive in it.
    """

    def __init__(self, note: Note, sweep: str, *, locked: bool = False):
        self._sweep = sweep
        self._lease = Lease(note, beat=BEAT, expiry=EXPIRY, locked=locked)

    def acquire(self) -> None:
        """Take over from nobody or from a dead driver. Raises `SweepDriven` naming a living one.

        Of a driver on another machine that fell silent this waits `EXPIRY` seconds for a heartbeat.
        """
        while not self._lease.try_acquire():
            if self._lease.seen_alive:
                raise _driven(self._sweep, self._lease.holder())
            time.sleep(min(0.2, EXPIRY / 10))

    def check(self) -> None:
        """Before every write. Raises `LedgerError` when another process has taken over, as it may when this one was
        silent for too long."""
        if not self._lease.is_held():
            who = _named(self._lease.holder())
            raise LedgerError(f"sweep {self._sweep} was taken over by {who}: this driver was silent for too long")

    def release(self) -> None:
        self._lease.release()


class DriverLock:
    """The right to write what is in a folder, for one process at a time."""

    def __init__(self, folder: Path, *further: Note):
        """`further`: other places where the driver of this folder must be alone, such as a database."""
        self._folder = folder
        self._lock = FileLock(folder / LOCK, thread_local=False)
        self._claims = [Claim(FileNote(folder), folder.name, locked=True)]
        self._claims += [Claim(note, folder.name) for note in further]

    def acquire(self) -> None:
        """Take the lock and leave a note who has it. Raises `SweepDriven` naming the process that has it."""
        try:
            self._lock.acquire(timeout=_WAIT_FOR_PROBES, poll_interval=0.05)
        except Timeout:
            raise _driven(self._folder.name, read_driver(self._folder)) from None
        try:
            for claim in self._claims:
                claim.acquire()
        except BaseException:
            self.release()
            raise

    def check(self) -> None:
        """Raises `LedgerError` when another process has taken over."""
        for claim in self._claims:
            claim.check()

    def delete(self, name: str) -> None:
        """Delete a file of the folder, wherever copies of it are. The lock is held."""
        (self._folder / name).unlink(missing_ok=True)

    def release(self) -> None:
        try:
            for claim in self._claims:
                claim.release()
        finally:
            self._lock.release()


def read_driver(folder: Path) -> dict[str, Any]:
    """What the last driver has noted of itself (host, pid, boot id, start); it may be gone. Empty without a note."""
    return parsed(FileNote(folder).read())


def is_driven(folder: Path) -> bool:
    """Whether a driver is alive, without waiting or writing: asked of the kernel, and of the note of one elsewhere."""
    driver = read_driver(folder)
    if is_alive_here(driver) is None:
        return seems_alive(driver)
    try:
        return is_locked(folder / LOCK)
    except OSError:  # no lock here: a copy of the folder
        return seems_alive(driver)


def is_locked(path: Path) -> bool:
    """Whether a process has the kernel's lock of a file, without waiting. Raises OSError where there is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def seems_alive(driver: dict[str, Any]) -> bool:
    """Whether a noted driver lives, for people who look: of one elsewhere by the time of its last heartbeat. Who wants
    to take over watches it instead."""
    here = is_alive_here(driver)
    return abs(time.time() - driver.get("beaten", 0.0)) < 3 * EXPIRY if here is None else here


def _driven(sweep: str, driver: dict[str, Any]) -> SweepDriven:
    return SweepDriven(f"sweep {sweep} is being driven by {_named(driver)}")


def _named(driver: dict[str, Any]) -> str:
    if "pid" not in driver:
        return "another process"
    return f"pid {driver['pid']} on {driver.get('host')} since {driver.get('started')}"
