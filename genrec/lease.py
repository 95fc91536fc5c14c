"""A lease: the right to do something, held by one process at a time, and taken over when that process is dead.

The holder writes a note: its host, pid and boot id, and a count that it increases every few seconds (its heartbeat).
The note is kept in a file, in a row of a database or in an object of a store; its content is the same everywhere.

Is the holder dead? If it ran on this machine, the kernel knows. If it runs on another machine, we watch the note: when
it has not changed for some time by our own clock, the holder counts as dead. The times in the note are not compared
with our clock, since the clocks of two machines differ.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from genrec.masking import without_login
from genrec.outage import Outage

logger = logging.getLogger(__name__)


class Note(Protocol):
    """Where a holder's note is kept."""

    def read(self) -> str | None:
        """The note, or None."""

    def swap(self, old: str | None, new: str) -> bool:
        """Write `new` if the note still is `old`; whether it was."""


class Lease:
    """Held by this process from `try_acquire` to `release`. A thread writes the heartbeats."""

    def __init__(self, note: Note, *, beat: float, expiry: float, locked: bool = False):
        """`beat`: seconds between two heartbeats. `expiry`: seconds without a heartbeat after which a holder on another
        machine counts as dead. `locked`: the caller already has the kernel's lock for the same thing, so a holder on
        this machine that the note names cannot be alive."""
        self.seen_alive = False
        "whether the present holder has shown a sign of life, after `try_acquire` failed"
        self.predecessor: str | None = None
        "token of the holder from whom this one took over"
        self.facts: dict[str, Any] = {}
        "what the holder keeps in the note beside its name; it begins with what the holder before has kept there"
        self._note = note
        self._beat, self._expiry, self._locked = beat, expiry, locked
        self._watched: tuple[str | None, float] | None = None
        self._text: str | None = None
        self._owner: dict[str, Any] = {}
        self._beaten = 0.0
        self._turn = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def token(self) -> str:
        """What tells this holder from all others."""
        return str(self._owner.get("token"))

    def try_acquire(self) -> bool:
        """Take the lease if nobody holds it, or if its holder is dead. Never waits: call it again. That a holder on
        another machine is dead shows `expiry` seconds after the first call at the earliest."""
        found = self._note.read()
        holder = parsed(found)
        if holder and self._may_live(holder, found):
            return False
        self.predecessor, self.facts = holder.get("token"), holder.get("facts") or {}
        owner = this_process() | {"token": uuid.uuid4().hex, "beats": 0, "beaten": time.time(), "facts": self.facts}
        if not self._note.swap(found, _text(owner)):
            return False
        self._owner, self._text, self._beaten = owner, _text(owner), time.monotonic()
        self._over.clear()
        self._thread = threading.Thread(target=self._keep_beating, name="lease-heartbeat", daemon=True)
        self._thread.start()
        return True

    def _may_live(self, holder: dict[str, Any], found: str | None) -> bool:
        here = is_alive_here(holder)
        if here is not None:
            self.seen_alive = here and not self._locked
            return self.seen_alive
        if self._watched is None or self._watched[0] != found:
            self.seen_alive = self._watched is not None
            self._watched = (found, time.monotonic())
        return time.monotonic() - self._watched[1] < self._expiry

    def holder(self) -> dict[str, Any]:
        """What the note says."""
        with self._turn:
            return parsed(self._note.read())

    def is_held(self) -> bool:
        """Whether this process still holds it. Ask before everything that only the holder may do."""
        silent = time.monotonic() - self._beaten > self._expiry / 2
        return self._text is not None and (not silent or self._renew())

    def amend(self, facts: Mapping[str, Any]) -> bool:
        """Keep other facts in the note; whether this process still holds it."""
        return self._renew(dict(facts))

    def release(self) -> None:
        self._stop()
        with self._turn:
            if self._text is not None:
                try:
                    self._note.swap(self._text, _text(self._owner | {"released": True}))
                except Exception as error:  # nothing is at stake: the next holder has to wait, and no more
                    told = f"{type(error).__name__}: {without_login(str(error))}"
                    logger.warning("a lease was not given back (%s); it ends in %g s by itself", told, self._expiry)
            self._text = None

    def abandon(self) -> None:
        """Stop the heartbeats and leave the note as it is; the caller deletes it."""
        self._stop()
        self._text = None

    def _stop(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=self._expiry)
            self._thread = None

    def _keep_beating(self) -> None:
        outage = Outage("renew a lease")
        while not self._over.wait(self._beat):
            try:
                if not self._renew():
                    return
                outage.worked()
            except Exception as error:  # the storage is away: `is_held` decides when that has lasted too long
                outage.failed(error)

    def _renew(self, facts: dict[str, Any] | None = None) -> bool:
        with self._turn:
            if self._text is None:
                return False
            owner = self._owner | {"beats": self._owner["beats"] + 1, "beaten": time.time()}
            if facts is not None:
                owner["facts"] = facts
            if not self._note.swap(self._text, _text(owner)):
                self._text = None
                return False
            self._owner, self._text, self._beaten = owner, _text(owner), time.monotonic()
            self.facts = owner["facts"]
            return True


def parsed(text: str | None) -> dict[str, Any]:
    """A note's content; empty if there is none, or if it cannot be read."""
    try:
        note = json.loads(text or "null")
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def is_alive_here(holder: Mapping[str, Any]) -> bool | None:
    """Whether the holder that a note names is alive; None: it is on another machine, so this one cannot tell."""
    if not holder or holder.get("released"):
        return False
    if any(holder.get(key) != value for key, value in _this_place().items()):
        return None
    pid = holder.get("pid")
    started = _started_ticks(pid) if isinstance(pid, int) else None
    return started is not None and started == holder.get("started_ticks")


def this_process() -> dict[str, Any]:
    """What tells this process from all others, on all machines."""
    pid = os.getpid()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return _this_place() | {"pid": pid, "started_ticks": _started_ticks(pid), "started": started}


def _this_place() -> dict[str, Any]:
    """What tells this machine, since its last start, from others. The namespace is there since each container counts
    its own pids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pids = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux
        boot, pids = "", 0
    return {"host": socket.gethostname(), "boot_id": boot, "pid_namespace": pids}


def _started_ticks(pid: int) -> int | None:
    """When a process was started, in the kernel's ticks; None: there is no such process. The kernel gives a pid again,
    and only the time of the start tells the old process from the new one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _text(owner: Mapping[str, Any]) -> str:
    return json.dumps(owner) + "\n"
