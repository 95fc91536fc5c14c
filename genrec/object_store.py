"""Files in an object store (`s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`), with two conditional writes to agree by.

A store has neither locks nor renames, but it can create an object only if there is none, and replace one only if it is
still the one that was read. Whatever only one process may do is built on these two. Credentials come from the
environment of the process alone (`AWS_*`, Google's application default ones, the machine's role); a URL never holds
them.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from genrec import object_backend
from genrec.errors import InputError
from genrec.gcs_backend import GoogleBackend
from genrec.masking import without_login
from genrec.object_backend import Backend, Fault, Refused, waits
from genrec.s3_backend import S3Backend

CACHE_VARIABLE = "GENREC_CACHE"
"names the folder of this machine for what is copied from object stores"
EXPECTED = "a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
_BACKENDS: dict[str, Callable[[str], Backend]] = {"s3": S3Backend, "gs": GoogleBackend}
_KEYS = {
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or give the machine a service account",
    "": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
}
_Answer = TypeVar("_Answer")


class StorageError(ConnectionError):
    """An object store that cannot be reached or used; the message names URL and reason."""


class Object(NamedTuple):
    """What was read, and the tag by which it can be replaced if it is still that."""

    data: bytes
    tag: str


def is_url(storage: str | Path) -> bool:
    """Whether a storage is an object store and no folder."""
    return "://" in str(storage)


def checked_url(url: str) -> str:
    """`url` without a slash at its end. Raises `InputError` for one that no store is behind, without showing keys."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InputError(f"storage: not a URL; expected {EXPECTED}") from None
    shown = without_login(url)
    if "@" in url or parts.query or parts.fragment:
        raise InputError(
            f"storage {shown.partition('?')[0]}: a URL holds no keys; fix: leave them out and set "
            f"{_KEYS.get(parts.scheme, _KEYS[''])}, in the environment of every node"
        )
    if parts.scheme not in _BACKENDS or not parts.netloc:
        raise InputError(f"storage {shown}: expected {EXPECTED}")
    return url.rstrip("/")


def checked_storage(storage: str | Path) -> str:
    """A folder, or the URL of an object store, as a setting may have it; of `file:///x` the folder. Raises
    `InputError`."""
    storage = str(storage)
    if not is_url(storage):
        return storage
    parts = urlsplit(storage)
    if parts.scheme != "file":
        return checked_url(storage)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise InputError(f"storage {storage}: a folder of this machine is file:///FOLDER, with three slashes")
    return unquote(parts.path)


def cache_of(url: str) -> Path:
    """The folder of this machine for copies of what is below `url`: in `GENREC_CACHE`, or in the user's cache."""
    base = os.environ.get(CACHE_VARIABLE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genrec"
    name = re.sub(r"[^A-Za-z0-9.]+", "-", url.partition("://")[2]).strip("-.")[-40:]
    return Path(base).absolute() / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:10]}"


class ObjectStore:
    """What is below `url`; names are relative to it. Every call is tried again when the store is away for moments, and
    raises `StorageError` when that lasts. Safe for several threads."""

    def __init__(self, url: str):
        self.url = checked_url(url)
        parts = urlsplit(self.url)
        self._prefix = f"{parts.path.strip('/')}/".lstrip("/")
        self._backend = _BACKENDS[parts.scheme](parts.netloc)

    @property
    def endpoint_variable(self) -> str:
        """Names, in the environment, a server that is not the usual one of such URLs."""
        return self._backend.endpoint_variable

    # -- objects ------------------------------------------------------------------------------------------------------

    def read(self, name: str) -> Object | None:
        """A small object; None: there is none."""
        return self._unless_missing("read", name, lambda: Object(*self._backend.get(self._key(name))))

    def has(self, name: str) -> bool:
        def require() -> bool:
            self._backend.require(self._key(name))
            return True

        return self._unless_missing("read", name, require) is not None

    def write(self, name: str, data: bytes) -> None:
        """Whatever is there."""
        self._try("write", name, lambda: self._backend.put(self._key(name), data))

    def create(self, name: str, data: bytes) -> str | None:
        """Write `data` if there is no such object; its tag, or None: another is there.

        `data` must be the writer's own, by a token or the like: where an answer was lost, the writer knows it by it.
        """
        return self._conditional(name, data, absent=True)

    def replace(self, name: str, data: bytes, tag: str) -> str | None:
        """Write `data` if the object still is the one with `tag`; the new tag, or None. `data` as for `create`."""
        return self._conditional(name, data, tag=tag)

    def _conditional(self, name: str, data: bytes, *, absent: bool = False, tag: str | None = None) -> str | None:
        try:
            return self._try("write", name, lambda: self._backend.put(self._key(name), data, absent=absent, tag=tag))
        except Refused:
            found = self.read(name)  # ours, if an attempt before the last arrived and its answer did not
            return found.tag if found is not None and found.data == data else None

    def upload(self, path: Path, name: str) -> str:
        """A file of any size; the object appears when it is whole. Returns its tag."""
        return self._try("write", name, lambda: self._backend.put_file(self._key(name), path))

    def download(self, name: str, path: Path) -> tuple[str, str]:
        """Into a file; returns SHA-256 and tag of what came. Raises `StorageError` where there is no such object."""

        def get() -> tuple[str, str]:
            digest = hashlib.sha256()
            with open(path, "wb") as file:

                def write(block: bytes) -> None:
                    digest.update(block)
                    file.write(block)

                tag = self._backend.download(self._key(name), write)
            return digest.hexdigest(), tag

        path.parent.mkdir(parents=True, exist_ok=True)
        found = self._unless_missing("read", name, get)
        if found is None:
            raise StorageError(f"{self.url}/{name}: no such object; it was deleted meanwhile")
        return found

    def names(self, below: str = "") -> list[str]:
        """Of all objects whose names begin with `below`."""
        return list(self.tags(below))

    def tags(self, below: str = "") -> dict[str, str]:
        """Name -> tag of all objects whose names begin with `below`."""
        found = self._try("list", below, lambda: self._backend.list(self._key(below)))
        return {key[len(self._prefix) :]: tag for key, tag in found.tags.items()}

    def folders(self) -> list[str]:
        """The first parts of the names of all objects that lie deeper."""
        found = self._try("list", "", lambda: self._backend.list(self._prefix, "/"))
        return [prefix[len(self._prefix) :].rstrip("/") for prefix in found.prefixes]

    def delete(self, names: Sequence[str]) -> None:
        """Those that are there."""
        if names:
            self._try("delete", names[0], lambda: self._backend.delete([self._key(name) for name in names]))

    def probe(self) -> None:
        """Write, read, list and delete an object below the URL. Raises `StorageError` for a store or credentials that
        do not let us, or that take a conditional write whose condition does not hold."""
        name = f".probe-{secrets.token_hex(8)}"
        tag = self.create(name, b"1")
        try:
            again = self.create(name, b"2")
            newer = self.replace(name, b"3", tag or "")
            late = self.replace(name, b"4", tag or "")
            if again or late or not newer or self.read(name) != (b"3", newer) or self.tags(name) != {name: newer}:
                raise StorageError(
                    f"{self.url}: the store does not keep the conditions of writes ({self._backend.conditions}), so "
                    f"two nodes would make the same artifact; fix: one that does, as {self._backend.conditional}"
                )
        finally:
            self.delete([name])

    def _key(self, name: str) -> str:
        return self._prefix + name

    # -- attempts -----------------------------------------------------------------------------------------------------

    def _try(self, what: str, name: str, request: Callable[[], _Answer]) -> _Answer:
        """`request`, repeated while the store only seems to be away."""
        for wait in waits():
            try:
                return request()
            except Fault as fault:
                if wait is None or not fault.transient:
                    raise StorageError(self._explained(what, name, fault)) from None
                time.sleep(wait)
        raise AssertionError("the last wait is None")

    def _unless_missing(self, what: str, name: str, request: Callable[[], _Answer]) -> _Answer | None:
        try:
            return self._try(what, name, request)
        except Refused:
            return None

    def _explained(self, what: str, name: str, fault: Fault) -> str:
        where = f"{self.url}/{name}" if name else self.url
        if fault.denied:
            return (
                f"{where}: may not {what} ({fault.code}); fix: credentials on this machine that may get, put and "
                "delete objects and list the bucket"
            )
        tries = f", after {object_backend.ATTEMPTS} attempts" if fault.transient else ""
        return f"{where}: {fault.fix or f'cannot {what}{tries}: {fault}'}"
