"""The stage store: folders named by stage and key, made once, by one process at a time.

In a folder that all nodes share (here), or in an object store with a copy on every node (`genrec.remote_artifacts`).

A stage builds in `<stage>-<key>.part` while it holds the lock of that key; the finished folder gets its `DONE` file and
is then renamed, so what bears the final name is whole. The kernel frees the lock of a builder that dies, and the next
one goes on in the folder it left: checkpoints in it are continued.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from genrec.durable import flush, put, write_json
from genrec.object_store import checked_storage, is_url

ARTIFACTS = ".artifacts"
"the store's folder below that of models or sweeps"
CHECKPOINTS = "checkpoints"
"in the folder of a stage that is being made: what a killed builder's successor goes on from"
DONE = "DONE"
POLL_SECONDS = 0.1
NOTICE_SECONDS = 30.0


def open_store(address: str | Path) -> ArtifactStore:
    """The store in a folder, or at the URL of an object store. Raises `InputError` for a URL that is none."""
    address = checked_storage(address)
    if not is_url(address):
        return ArtifactStore(address)
    from genrec.remote_artifacts import RemoteArtifactStore

    return RemoteArtifactStore(address)


class ArtifactStore:
    """Artifacts below `root`."""

    def __init__(self, root: Path | str):
        self.root = Path(root)

    @property
    def address(self) -> str:
        """What `open_store` wants, to open this store in another process, on whatever node."""
        return str(self.root)

    def path(self, stage: str, key: str) -> Path:
        """Where the finished artifact is, or will be."""
        return self._final(stage, key)

    def _final(self, stage: str, key: str) -> Path:
        return self.root / f"{stage}-{key}"

    def part(self, stage: str, key: str) -> Path:
        """Where it is being built."""
        return self.root / f"{stage}-{key}.part"

    def has(self, stage: str, key: str) -> bool:
        return self._is_here(stage, key)

    def _is_here(self, stage: str, key: str) -> bool:
        return (self._final(stage, key) / DONE).is_file()

    def ensure(
        self,
        stage: str,
        key: str,
        build: Callable[[Path], dict[str, Any]],
        notice: Callable[[str], None],
        waiting: Callable[[], None] = lambda: None,
    ) -> tuple[Path, bool]:
        """The artifact's folder, built by `build(folder)` if there is none; and whether it was built here.

        `build` returns facts for `DONE`. Only one process builds a key; others wait, telling `notice` now and then, and
        calling `waiting` at every look whether it is there: what that raises ends the wait.
        """
        final = self._final(stage, key)
        if self._is_here(stage, key):
            return final, False
        self.root.mkdir(parents=True, exist_ok=True)
        lock = self._claim(stage, key, notice, waiting)
        try:
            if self._is_here(stage, key):
                return final, False
            part = self.part(stage, key)
            part.mkdir(exist_ok=True)
            facts = build(part)
            self._publish(part, final, {"stage": stage, "key": key, **facts})
            return final, True
        finally:
            lock.release()

    def discard(self, stage: str, key: str) -> bool:
        """Remove what an abandoned build left behind. False: nothing was removed, since a process is building it, maybe
        one of another sweep."""
        part = self.part(stage, key)
        if not part.exists():
            return True
        lock = self._lock(stage, key)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        try:
            shutil.rmtree(part, ignore_errors=True)
            return True
        finally:
            lock.release()

    def _lock(self, stage: str, key: str) -> FileLock:
        """Its file is never removed: who waits for a file that is gone and who makes a new one would both be alone."""
        return FileLock(self.root / f".{stage}-{key}.lock")

    def _claim(self, stage: str, key: str, notice: Callable[[str], None], waiting: Callable[[], None]) -> FileLock:
        lock = self._lock(stage, key)
        told = time.monotonic()
        while True:
            try:
                lock.acquire(blocking=False)
                return lock
            except Timeout:
                if time.monotonic() - told > NOTICE_SECONDS:
                    notice(f"waiting for {stage} {key}, which another process is making")
                    told = time.monotonic()
                waiting()
                time.sleep(POLL_SECONDS)

    def _publish(self, part: Path, final: Path, facts: dict[str, Any]) -> None:
        for name in os.listdir(part):
            if (part / name).is_file():
                flush(part / name)
        write_json(part / DONE, facts)
        put(part, final)
