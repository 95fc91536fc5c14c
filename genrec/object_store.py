"""Files in an object store (`s3://BUCKET/PREFIX`), with the two conditional writes on which agreement rests.

A store has neither locks nor renames, but it can create an object only if there is none, and replace one only if it is
still the one that was read. Who needs to be alone builds on these two. Credentials come from the environment of the
process alone (`AWS_*`, a profile, the machine's role); a URL never holds them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import urlsplit

from genrec.errors import InputError
from genrec.masking import without_login

ATTEMPTS = 7
FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0
"seconds before the second attempt and, doubled each time, at the most; all attempts together wait about 16 s"
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
IN_ONE_PIECE = 64 * 2**20
"bytes up to which a file goes by one request"
CACHE_VARIABLE = "GENREC_CACHE"
"names the folder of this machine for what is copied from object stores"
_TRANSIENT = (408, 409, 429, 500, 502, 503, 504)
_MISSING = ("404", "NoSuchKey", "NotFound")
_DELETED_AT_ONCE = 1000
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
        raise InputError("storage: not a URL; expected a folder or s3://BUCKET/PREFIX") from None
    shown = without_login(url)
    if "@" in url or parts.query or parts.fragment:
        raise InputError(
            f"storage {shown.partition('?')[0]}: a URL holds no keys; fix: leave them out and set AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment of every node"
        )
    if parts.scheme == "gs":
        raise InputError(
            f"storage {url}: Google's store is not supported yet (its conditional writes go by generation numbers, "
            "which nothing here speaks); fix: a folder that all nodes share, such as Filestore, or s3://BUCKET/PREFIX"
        )
    if parts.scheme != "s3" or not parts.netloc:
        raise InputError(f"storage {shown}: expected a folder or s3://BUCKET/PREFIX")
    return url.rstrip("/")


def checked_storage(storage: str) -> str:
    """A folder, or the URL of an object store, as a setting may have it. Raises `InputError`."""
    return checked_url(storage) if is_url(storage) else storage


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
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")

    @cached_property
    def _client(self) -> Any:
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError:
            message = (
                f"{self.url}: the package for object stores is not installed; fix: pip install 'genrec-sweeps[s3]'"
            )
            raise InputError(message) from None
        once = Config(
            retries={"total_max_attempts": 1},  # repeated here, where a write that arrived unanswered is recognised
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
        )
        try:
            return boto3.Session().client("s3", config=once)
        except (BotoCoreError, ValueError) as error:
            raise StorageError(f"{self.url}: {error}") from None

    # -- objects ------------------------------------------------------------------------------------------------------

    def read(self, name: str) -> Object | None:
        """A small object; None: there is none."""

        def get() -> Object:
            answer = self._client.get_object(**self._at(name))
            return Object(answer["Body"].read(), answer["ETag"])

        return self._unless_missing("read", name, get)

    def has(self, name: str) -> bool:
        return self._unless_missing("read", name, lambda: self._client.head_object(**self._at(name))) is not None

    def write(self, name: str, data: bytes) -> None:
        """Whatever is there."""
        self._try("write", name, lambda: self._client.put_object(**self._at(name), Body=data))

    def create(self, name: str, data: bytes) -> str | None:
        """Write `data` if there is no such object; its tag, or None: another is there.

        `data` must be the writer's own, by a token or the like: where an answer was lost, the writer knows it by it.
        """
        return self._conditional(name, data, IfNoneMatch="*")

    def replace(self, name: str, data: bytes, tag: str) -> str | None:
        """Write `data` if the object still is the one with `tag`; the new tag, or None. `data` as for `create`."""
        return self._conditional(name, data, IfMatch=tag)

    def _conditional(self, name: str, data: bytes, **condition: str) -> str | None:
        def put() -> str:
            return str(self._client.put_object(**self._at(name), Body=data, **condition)["ETag"])

        try:
            return self._try("write", name, put)
        except _Refused:
            found = self.read(name)  # ours, if an attempt before the last arrived and its answer did not
            return found.tag if found is not None and found.data == data else None

    def upload(self, path: Path, name: str) -> str:
        """A file of any size; the object appears when it is whole. Returns its tag."""

        def put() -> str:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size <= IN_ONE_PIECE:
                    return str(self._client.put_object(**self._at(name), Body=file)["ETag"])
                return self._upload_in_parts(file, name)

        return self._try("write", name, put)

    def _upload_in_parts(self, file: BinaryIO, name: str) -> str:
        from boto3.s3.transfer import TransferConfig

        one_by_one = TransferConfig(use_threads=False)
        self._client.upload_fileobj(file, self._bucket, self._key(name), Config=one_by_one)
        return str(self._client.head_object(**self._at(name))["ETag"])

    def download(self, name: str, path: Path) -> tuple[str, str]:
        """Into a file; returns SHA-256 and tag of what came. Raises `StorageError` where there is no such object."""

        def get() -> tuple[str, str]:
            digest = hashlib.sha256()
            answer = self._client.get_object(**self._at(name))
            with open(path, "wb") as file:
                for block in answer["Body"].iter_chunks(1 << 20):
                    digest.update(block)
                    file.write(block)
            return digest.hexdigest(), answer["ETag"]

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
        items = [item for page in self._pages(below) for item in page.get("Contents", ())]
        return {item["Key"][len(self._key("")) :]: item["ETag"] for item in items}

    def folders(self) -> list[str]:
        """The first parts of the names of all objects that lie deeper."""
        pages = self._pages("", Delimiter="/")
        found = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", ())]
        return [prefix[len(self._key("")) :].rstrip("/") for prefix in found]

    def _pages(self, below: str, **options: str) -> list[dict[str, Any]]:
        def get() -> list[dict[str, Any]]:
            pages = self._client.get_paginator("list_objects_v2")
            return list(pages.paginate(Bucket=self._bucket, Prefix=self._key(below), **options))

        return self._try("list", below, get)

    def delete(self, names: Sequence[str]) -> None:
        """Those that are there."""
        for start in range(0, len(names), _DELETED_AT_ONCE):
            some = [{"Key": self._key(name)} for name in names[start : start + _DELETED_AT_ONCE]]
            self._try("delete", names[start], functools.partial(self._delete, some))

    def _delete(self, some: list[dict[str, str]]) -> None:
        self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": some, "Quiet": True})

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
                    f"{self.url}: the store does not keep the conditions of writes (If-Match, If-None-Match), so two "
                    "nodes would make the same artifact; fix: one that does, as Amazon's and recent MinIO"
                )
        finally:
            self.delete([name])

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._key(name)}

    # -- attempts -----------------------------------------------------------------------------------------------------

    def _try(self, what: str, name: str, request: Callable[[], _Answer]) -> _Answer:
        """`request`, repeated while the store only seems to be away."""
        from botocore.exceptions import BotoCoreError, ClientError

        self._client  # noqa: B018 - what is wrong with it is not the request's fault
        for wait in _waits():
            try:
                return request()
            except (BotoCoreError, ClientError) as error:
                status, code = _status(error)
                if status == 412 or (status == 404 and code in _MISSING):
                    raise _Refused(code) from None
                if wait is None or not _is_transient(error, status):
                    raise StorageError(self._explained(what, name, error, code)) from None
                time.sleep(wait)
        raise AssertionError("the last wait is None")

    def _unless_missing(self, what: str, name: str, request: Callable[[], _Answer]) -> _Answer | None:
        try:
            return self._try(what, name, request)
        except _Refused:
            return None

    def _explained(self, what: str, name: str, error: Exception, code: str) -> str:
        where = f"{self.url}/{name}" if name else self.url
        fixes = {
            "NoSuchBucket": f"there is no bucket {self._bucket}; fix: create it, or correct the storage's URL",
            "NoCredentialsError": "this machine has no credentials; fix: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give it a role",
            "NotImplemented": "the store knows no conditional writes (If-Match, If-None-Match); fix: one that does",
        }
        denied = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")
        if code in denied:
            return (
                f"{where}: may not {what} ({code}); fix: credentials on this machine that may get, put and delete "
                "objects and list the bucket"
            )
        reason = fixes.get(code) or f"cannot {what}, after {ATTEMPTS} attempts: {type(error).__name__}: {error}"
        return f"{where}: {reason}"


class _Refused(Exception):
    """The condition of a write does not hold, or there is no such object."""


def _waits() -> Iterator[float | None]:
    """Seconds between attempts, uneven so that many who were refused at once do not come back at once."""
    for attempt in range(ATTEMPTS - 1):
        yield random.uniform(0.5, 1.0) * min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
    yield None


def _status(error: Exception) -> tuple[int, str]:
    """HTTP status (0: no answer came) and the name of the fault."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return 0, type(error).__name__
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)), str(answer.get("Error", {}).get("Code"))


def _is_transient(error: Exception, status: int) -> bool:
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    return status in _TRANSIENT or isinstance(error, (HTTPClientError, IncompleteReadError))
