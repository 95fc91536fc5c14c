"""Who drives a sweep: one process at a time, named, and taken over when it is dead.

A driver leaves a note: host, pid, boot id, and a count that its heartbeat moves on. Where the note is kept differs (a
file in the sweep's folder, a row in a database); how it is read does not. A driver on this machine is asked of the
kernel; of one elsewhere the count is watched, so that no two clocks decide who may write. In the sweep's folder the
kernel's own lock comes first: it ends with its owner.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from genrec.durable import write_text
from sweeps.journal import LedgerError

LOCK = "driver.lock"
DRIVER = "driver.json"
BEAT = 5.0
"seconds between two heartbeats"
EXPIRY = 20.0
"seconds without a heartbeat after which a driver on another machine counts as dead"
_WAIT_FOR_PROBES = 0.5  # seconds; a reader that asks `is_driven` holds the lock for an instant


class Note(Protocol):
    """Where a driver's note is kept."""

    def read(self) -> str | None:
        """The note, or None."""

    def swap(self, old: str | None, new: str) -> bool:
        """Write `new` if the note still is `old`; whether it was."""


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
    """The note of this process as the driver, from `acquire` to `release`, kept alive by a thread.

    `locked`: the claimant holds the kernel's lock already, so that no other process of this machine can be alive in it.
    """

    def __init__(self, note: Note, sweep: str, *, locked: bool = False):
        self._note = note
        self._sweep = sweep
        self._locked = locked
        self._text: str | None = None
        self._owner: dict[str, Any] = {}
        self._beaten = 0.0
        self._turn = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take over from nobody or from a dead driver. Raises `LedgerError` naming a living one.

        Of a driver on another machine that fell silent this waits `EXPIRY` seconds for a heartbeat.
        """
        owner = _this_process() | {"token": uuid.uuid4().hex, "beats": 0, "beaten": time.time()}
        while True:
            found = self._note.read()
            driver = _parsed(found)
            if driver and self._is_alive(driver, found):
                raise _driven(self._sweep, driver)
            if self._note.swap(found, _text(owner)):
                break
        self._owner, self._text, self._beaten = owner, _text(owner), time.monotonic()
        self._over.clear()
        self._thread = threading.Thread(target=self._keep_beating, name="driver-heartbeat", daemon=True)
        self._thread.start()

    def _is_alive(self, driver: dict[str, Any], found: str | None) -> bool:
        here = is_alive_here(driver)
        if here is not None:
            return here and not self._locked
        deadline = time.monotonic() + EXPIRY
        while time.monotonic() < deadline:
            time.sleep(min(0.2, EXPIRY / 10))
            if (now := self._note.read()) != found:
                return not _parsed(now).get("released")
        return False

    def _keep_beating(self) -> None:
        while not self._over.wait(BEAT):
            try:
                if not self._beat():
                    return
            except Exception:  # the storage is away: `check` decides when that has lasted too long
                continue

    def _beat(self) -> bool:
        with self._turn:
            if self._text is None:
                return False
            owner = self._owner | {"beats": self._owner["beats"] + 1, "beaten": time.time()}
            if not self._note.swap(self._text, _text(owner)):
                self._text = None
                return False
            self._owner, self._text, self._beaten = owner, _text(owner), time.monotonic()
            return True

    def check(self) -> None:
        """Before every write. Raises `LedgerError` when another process has taken over, as it may when this one was
        silent for too long."""
        silent = time.monotonic() - self._beaten > EXPIRY / 2
        if self._text is None or (silent and not self._beat()):
            who = _named(_parsed(self._note.read()))
            raise LedgerError(f"sweep {self._sweep} was taken over by {who}: this driver was silent for too long")

    def release(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=EXPIRY)
            self._thread = None
        with self._turn:
            if self._text is not None:
                with contextlib.suppress(Exception):  # a note that cannot be written ends by its silence
                    self._note.swap(self._text, _text(self._owner | {"released": True}))
            self._text = None


class DriverLock:
    """The right to write what is in a folder, for one process at a time."""

    def __init__(self, folder: Path, *further: Note):
        """`further`: other places where the driver of this folder must be alone, such as a database."""
        self._folder = folder
        self._lock = FileLock(folder / LOCK, thread_local=False)
        self._claims = [Claim(FileNote(folder), folder.name, locked=True)]
        self._claims += [Claim(note, folder.name) for note in further]

    def acquire(self) -> None:
        """Take the lock and leave a note who has it. Raises `LedgerError` naming the process that has it."""
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

    def release(self) -> None:
        try:
            for claim in self._claims:
                claim.release()
        finally:
            self._lock.release()


def read_driver(folder: Path) -> dict[str, Any]:
    """What the last driver has noted of itself (host, pid, boot id, start); it may be gone. Empty without a note."""
    return _parsed(FileNote(folder).read())


def is_driven(folder: Path) -> bool:
    """Whether a driver is alive, without waiting or writing: asked of the kernel, and of the note of one elsewhere."""
    driver = read_driver(folder)
    if is_alive_here(driver) is None:
        return seems_alive(driver)
    try:
        return is_locked(folder / LOCK)
    except OSError:
        return False


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


def is_alive_here(driver: dict[str, Any]) -> bool | None:
    """Whether a noted driver lives, as far as this machine can tell; None: it runs, or ran, on another one."""
    if not driver or driver.get("released"):
        return False
    place = _this_place()
    if any(driver.get(key) != value for key, value in place.items()):
        return None
    pid = driver.get("pid")
    started = _started_ticks(pid) if isinstance(pid, int) else None
    return started is not None and started == driver.get("started_ticks")


def _this_place() -> dict[str, Any]:
    """What tells one machine, from one start to the next, from others; containers have pids of their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pids = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux
        boot, pids = "", 0
    return {"host": socket.gethostname(), "boot_id": boot, "pid_namespace": pids}


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return _this_place() | {"pid": pid, "started_ticks": _started_ticks(pid), "started": started}


def _started_ticks(pid: int) -> int | None:
    """When a process was started, in the kernel's ticks: a pid that was given again is another process. None: it is
    gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _text(owner: dict[str, Any]) -> str:
    return json.dumps(owner) + "\n"


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        note = json.loads(text or "null")
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def _driven(sweep: str, driver: dict[str, Any]) -> LedgerError:
    return LedgerError(f"sweep {sweep} is being driven by {_named(driver)}")


def _named(driver: dict[str, Any]) -> str:
    if "pid" not in driver:
        return "another process"
    return f"pid {driver['pid']} on {driver.get('host')} since {driver.get('started')}"
