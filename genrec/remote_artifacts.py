"""The stage store in an object store: made once by one process of all nodes, copied once to every node.

    <stage>-<key>/DONE           the finished artifact: names and checksums of its objects; created last and only once
    <stage>-<key>/claim          the lease of who makes it, with the checkpoints to go on from
    <stage>-<key>/<token>/...    the objects of one builder

Nothing is renamed or overwritten: each builder writes below a token of its own, and what counts is what `DONE`, or the
claim, names. Both are written under a condition, so a builder that lost its claim, however late it wakes, can neither
publish over another's result nor move another's checkpoints. On a node the copy is a stage store of its own
(`genrec.artifacts`), whose lock lets one process download or build for all.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genrec import artifacts
from genrec.artifacts import CHECKPOINTS, DONE, ArtifactStore
from genrec.durable import file_hash
from genrec.lease import Lease
from genrec.object_store import Object, ObjectStore, StorageError, cache_of
from genrec.outage import Outage

logger = logging.getLogger(__name__)
CLAIM = "claim"
BUILDER = ".builder"
"in the folder of a stage that is being made: under which claim its checkpoints were written"
BEAT = 5.0
"seconds between two heartbeats of a claim, and between two looks for new checkpoints"
EXPIRY = 30.0
"seconds without a heartbeat after which a builder on another node counts as dead"
POLL_SECONDS = 1.0
"between two looks at the store, of who waits for another node"
Files = dict[str, dict[str, Any]]
"path in the artifact's folder -> object, sha256"
Notice = Callable[[str], None]
Build = Callable[[Path], dict[str, Any]]


class RemoteArtifactStore(ArtifactStore):
    """Artifacts below `url`; `root` is the folder of this node's copies."""

    def __init__(self, url: str):
        self.objects = ObjectStore(url)
        super().__init__(cache_of(self.objects.url))
        self._missing_at: dict[str, float] = {}

    @property
    def address(self) -> str:
        return self.objects.url

    def path(self, stage: str, key: str) -> Path:
        """Where this node's copy is, or will be. A finished artifact is copied now, if it was not yet."""
        if not self._is_here(stage, key) and (done := _Stage(self.objects, stage, key).done()) is not None:
            super().ensure(stage, key, lambda part: self._fetch(part, done), _tell_nobody)
        return self._final(stage, key)

    def has(self, stage: str, key: str) -> bool:
        """Whether it is finished, on whatever node. One that is missing is looked for once in `POLL_SECONDS`."""
        if self._is_here(stage, key):
            return True
        found = _Stage(self.objects, stage, key)
        if time.monotonic() - self._missing_at.get(found.name, -POLL_SECONDS) < POLL_SECONDS:
            return False
        if self.objects.has(found.at(DONE)):
            return True
        self._missing_at[found.name] = time.monotonic()
        return False

    def ensure(
        self, stage: str, key: str, build: Build, notice: Notice, waiting: Callable[[], None] = lambda: None
    ) -> tuple[Path, bool]:
        """As in a folder; one process of all nodes builds, the others wait and copy."""
        made = False

        def fill(part: Path) -> dict[str, Any]:
            nonlocal made
            facts, made = self._fill(_Stage(self.objects, stage, key), part, build, notice, waiting)
            return facts

        folder, _ = super().ensure(stage, key, fill, notice, waiting)
        return folder, made

    def discard(self, stage: str, key: str) -> bool:
        """Remove what an abandoned build left, here and in the store; there only if its builder has released it or was
        a process of this node: whether one elsewhere is dead would take a wait."""
        if not super().discard(stage, key):
            return False
        found = _Stage(self.objects, stage, key)
        if not self.objects.has(found.at(CLAIM)):
            return True
        lease = found.lease()
        if not lease.try_acquire():
            return False
        if found.done() is not None:  # finished meanwhile: only its claim is left over
            found.drop(lease)
            return True
        lease.abandon()
        self.objects.delete(self.objects.names(found.at("")))
        return True

    def _fill(
        self, found: _Stage, part: Path, build: Build, notice: Notice, waiting: Callable[[], None]
    ) -> tuple[dict[str, Any], bool]:
        """Copy the artifact into `part`, or build it there and publish it; its facts, and whether it was built."""
        lease, told = found.lease(), time.monotonic()
        while True:
            done = found.done()
            if done is not None:
                return self._fetch(part, done), False
            if lease.try_acquire():
                if found.done() is not None:  # published between the two looks
                    found.drop(lease)
                    continue
                facts = self._build(found, lease, part, build)
                if facts is not None:
                    return facts, True
                lease = found.lease()
                notice(f"{found.name}: another process took over from this one, which was silent for too long")
                continue
            if time.monotonic() - told > artifacts.NOTICE_SECONDS:
                notice(f"waiting for {found.name}, which {_named(lease.holder())} is making")
                told = time.monotonic()
            waiting()
            time.sleep(POLL_SECONDS)

    def _build(self, found: _Stage, lease: Lease, part: Path, build: Build) -> dict[str, Any] | None:
        """The facts of what was built and published; None: the claim was lost."""
        uploads = _Uploads(found, lease, part)
        try:
            uploads.restore()
            with uploads.of_checkpoints():
                facts = build(part)
            if uploads.publish(facts):
                return facts
            if lease.is_held():
                found.drop(lease)
            return None
        finally:
            lease.release()

    def _fetch(self, part: Path, done: dict[str, Any]) -> dict[str, Any]:
        """Replace what is in `part` by the objects that `DONE` names."""
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        fetch(self.objects, done["files"], part)
        facts: dict[str, Any] = done["facts"]
        return facts


class ObjectNote:
    """A lease's note (`genrec.lease.Note`) as an object, exchanged only against what was read."""

    def __init__(self, objects: ObjectStore, name: str):
        self._objects = objects
        self._name = name
        self._found: Object | None = None

    def read(self) -> str | None:
        self._found = self._objects.read(self._name)
        return None if self._found is None else self._found.data.decode()

    def swap(self, old: str | None, new: str) -> bool:
        data = new.encode()
        if old is None:
            tag = self._objects.create(self._name, data)
        else:
            if self._found is None or self._found.data != old.encode():
                self.read()
            if self._found is None or self._found.data != old.encode():
                return False
            tag = self._objects.replace(self._name, data, self._found.tag)
        if tag is not None:
            self._found = Object(data, tag)
        return tag is not None


class _Stage:
    """The objects of one stage and key."""

    def __init__(self, objects: ObjectStore, stage: str, key: str):
        self.objects, self.stage, self.key = objects, stage, key
        self.name = f"{stage}-{key}"

    def at(self, name: str) -> str:
        return f"{self.name}/{name}"

    def lease(self) -> Lease:
        return Lease(ObjectNote(self.objects, self.at(CLAIM)), beat=BEAT, expiry=EXPIRY)

    def drop(self, lease: Lease) -> None:
        """End the claim of what is finished; there is nothing to go on with."""
        lease.abandon()
        self.objects.delete([self.at(CLAIM)])

    def done(self) -> dict[str, Any] | None:
        """What `DONE` says: facts and files; None while the artifact is not finished."""
        found = self.objects.read(self.at(DONE))
        return None if found is None else json.loads(found.data)


class _Uploads:
    """What the builder that holds `lease` writes to the store from `part`."""

    def __init__(self, found: _Stage, lease: Lease, part: Path):
        self._found, self._objects = found, found.objects
        self._lease, self._part = lease, part
        self._folder = part / CHECKPOINTS
        self._files: Files = dict(lease.facts.get("files", {}))  # the checkpoints that the claim names
        self._seen: dict[str, tuple[int, ...]] = {}
        self._count = 0
        self._turn = threading.Lock()

    def restore(self) -> None:
        """Go on from the checkpoints in the store, where there are any; or from those here, if the last builder wrote
        them: they are the same or newer. Any others here are of an attempt before that."""
        mark = self._part / BUILDER
        last = mark.read_text() if mark.exists() else None
        if self._files and last != self._lease.predecessor:
            shutil.rmtree(self._folder, ignore_errors=True)
            fetch(self._objects, self._files, self._part)
            self._seen = _listing(self._folder)
        mark.write_text(self._lease.token)

    @contextmanager
    def of_checkpoints(self) -> Iterator[None]:
        """While the block runs, and at its end if that is no good one, upload the checkpoints that it writes."""
        over, outage = threading.Event(), Outage(f"copy checkpoints of {self._found.name} to the store")

        def keep_looking() -> None:
            while not over.wait(BEAT):
                try:
                    self.note_checkpoints()
                    outage.worked()
                except Exception as error:  # the next look finds them, too; a lost lease is noticed at the end
                    outage.failed(error)

        thread = threading.Thread(target=keep_looking, name="checkpoint-uploads", daemon=True)
        thread.start()
        ended = False
        try:
            yield
            ended = True
        finally:
            over.set()
            thread.join()
            if not ended:
                self._note_last_checkpoints()

    def _note_last_checkpoints(self) -> None:
        """Of a build that was stopped or failed, which is told by its own error and not by one from here."""
        try:
            self.note_checkpoints()
        except Exception as error:
            logger.warning("the last checkpoints of %s are on this node only: %s", self._found.name, error)

    def note_checkpoints(self) -> None:
        """Upload what has changed, and name it in the claim all at once, if nothing changed meanwhile.

        A checkpoint on disk is whole at every moment (`genrec.checkpoint`); so is this picture of one moment.
        """
        with self._turn:
            before = _listing(self._folder)
            if before == self._seen:
                return
            files: Files = {}
            for path, signature in before.items():
                known = self._seen.get(path) == signature and path in self._files
                try:
                    files[path] = self._files[path] if known else self._put(path)
                except FileNotFoundError:
                    return
            new = [file["object"] for path, file in files.items() if self._files.get(path) != file]
            old = [file["object"] for path, file in self._files.items() if files.get(path) != file]
            if _listing(self._folder) != before:
                self._objects.delete(new)
            elif self._lease.amend({"files": files}):
                self._files, self._seen = files, before
                self._objects.delete(old)

    def publish(self, facts: dict[str, Any]) -> bool:
        """Upload the whole artifact, then `DONE`; whether it became the artifact."""
        paths = [path.relative_to(self._part).as_posix() for path in sorted(self._part.rglob("*")) if path.is_file()]
        files = {path: self._put(path) for path in paths if Path(path).parts[0] not in (CHECKPOINTS, BUILDER)}
        found = self._found
        done = {"stage": found.stage, "key": found.key, "by": self._lease.token, "facts": facts, "files": files}
        published = self._lease.is_held() and (
            self._objects.create(found.at(DONE), json.dumps(done, sort_keys=True).encode()) is not None
        )
        if not published:
            self._objects.delete([file["object"] for file in files.values()])
            return False
        self._lease.abandon()
        kept = {found.at(DONE), *(file["object"] for file in files.values())}
        try:
            self._objects.delete([name for name in self._objects.names(found.at("")) if name not in kept])
        except StorageError as error:
            logger.warning("%s is finished; what it no longer needs stays in the store: %s", found.name, error)
        return True

    def _put(self, path: str) -> dict[str, Any]:
        self._count += 1
        name = self._found.at(f"{self._lease.token}/{self._count}-{Path(path).name}")
        checksum = file_hash(self._part / path)
        self._objects.upload(self._part / path, name)
        return {"object": name, "sha256": checksum}


def fetch(objects: ObjectStore, files: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Download `files` into `folder`. Raises `StorageError` for one that does not have its checksum."""
    for path, file in files.items():
        for _ in range(2):  # what was damaged on its way is not damaged again
            if objects.download(file["object"], folder / path)[0] == file["sha256"]:
                break
        else:
            raise StorageError(f"{objects.url}/{file['object']}: damaged (it does not have its checksum)")


def _listing(folder: Path) -> dict[str, tuple[int, ...]]:
    """Whole files below `folder` by their path in the artifact, and what changes when they do."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).parts
        if any(part.startswith(".") or part.endswith(".partial") for part in inner):
            continue  # still being written
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            continue
        if path.is_file():
            signature = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
            found[path.relative_to(folder.parent).as_posix()] = signature
    return found


def _named(holder: Mapping[str, Any]) -> str:
    return f"process {holder['pid']} on {holder.get('host')}" if "pid" in holder else "another process"


def _tell_nobody(text: str) -> None:
    """Copying waits for nobody elsewhere."""
