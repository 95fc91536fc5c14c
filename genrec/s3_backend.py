"""Objects in Amazon S3, or in a store that speaks its language (`s3://`): the only module that knows boto3."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from genrec import object_backend
from genrec.errors import InputError
from genrec.object_backend import TRANSIENT, Fault, Listing, Refused

IN_ONE_PIECE = 64 * 2**20
"bytes up to which a file goes by one request"
_MISSING = ("404", "NoSuchKey", "NotFound")
_DENIED = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")
_DELETED_AT_ONCE = 1000


class S3Backend:
    """A `genrec.object_backend.Backend` for `bucket`; a tag is the object's ETag."""

    conditions = "If-Match, If-None-Match"
    conditional = "Amazon's and recent MinIO"
    endpoint_variable = "AWS_ENDPOINT_URL_S3"

    def __init__(self, bucket: str):
        self._bucket = bucket

    @cached_property
    def _client(self) -> Any:
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError:
            message = "the package for s3:// is not installed; fix: pip install 'genrec-sweeps[s3]'"
            raise InputError(f"s3://{self._bucket}: {message}") from None
        once = Config(
            retries={"total_max_attempts": 1},  # repeated above, where a write that arrived unanswered is recognised
            connect_timeout=object_backend.CONNECT_SECONDS,
            read_timeout=object_backend.READ_SECONDS,
        )
        try:
            return boto3.Session().client("s3", config=once)
        except (BotoCoreError, ValueError) as error:
            raise Fault(type(error).__name__, str(error), fix=str(error)) from None

    def get(self, key: str) -> tuple[bytes, str]:
        with self._faults():
            answer = self._client.get_object(Bucket=self._bucket, Key=key)
            return answer["Body"].read(), answer["ETag"]

    def download(self, key: str, write: Callable[[bytes], object]) -> str:
        with self._faults():
            answer = self._client.get_object(Bucket=self._bucket, Key=key)
            for block in answer["Body"].iter_chunks(1 << 20):
                write(block)
            return str(answer["ETag"])

    def require(self, key: str) -> None:
        with self._faults():
            self._client.head_object(Bucket=self._bucket, Key=key)

    def put(self, key: str, data: bytes, *, absent: bool = False, tag: str | None = None) -> str:
        condition = {"IfNoneMatch": "*"} if absent else {} if tag is None else {"IfMatch": tag}
        with self._faults():
            return str(self._client.put_object(Bucket=self._bucket, Key=key, Body=data, **condition)["ETag"])

    def put_file(self, key: str, path: Path) -> str:
        with open(path, "rb") as file, self._faults():
            if os.fstat(file.fileno()).st_size <= IN_ONE_PIECE:
                return str(self._client.put_object(Bucket=self._bucket, Key=key, Body=file)["ETag"])
            return self._put_in_parts(key, file)

    def _put_in_parts(self, key: str, file: BinaryIO) -> str:
        from boto3.s3.transfer import TransferConfig

        self._client.upload_fileobj(file, self._bucket, key, Config=TransferConfig(use_threads=False))
        return str(self._client.head_object(Bucket=self._bucket, Key=key)["ETag"])

    def list(self, prefix: str, delimiter: str = "") -> Listing:
        options = {"Delimiter": delimiter} if delimiter else {}
        with self._faults():
            pages = self._client.get_paginator("list_objects_v2")
            found = list(pages.paginate(Bucket=self._bucket, Prefix=prefix, **options))
        tags = {item["Key"]: item["ETag"] for page in found for item in page.get("Contents", ())}
        return Listing(tags, [item["Prefix"] for page in found for item in page.get("CommonPrefixes", ())])

    def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            some = [{"Key": key} for key in keys[start : start + _DELETED_AT_ONCE]]
            with self._faults():
                self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": some, "Quiet": True})

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Errors of boto3 in the block, in our words."""
        self._client  # noqa: B018 - what is wrong with it is no error of the block
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise self._fault(error) from None

    def _fault(self, error: Exception) -> Refused | Fault:
        status, code = _status(error)
        if status == 412 or (status == 404 and code in _MISSING):
            return Refused(code)
        fixes = {
            "NoSuchBucket": f"there is no bucket {self._bucket}; fix: create it, or correct the storage's URL",
            "NoCredentialsError": "this machine has no credentials; fix: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give it a role",
            "NotImplemented": f"the store knows no conditional writes ({self.conditions}); fix: one that does",
        }
        return Fault(
            code,
            f"{type(error).__name__}: {error}",
            transient=_is_transient(error, status),
            denied=code in _DENIED,
            fix=fixes.get(code, ""),
        )


def _status(error: Exception) -> tuple[int, str]:
    """HTTP status (0: no answer came) and the name of the fault."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return 0, type(error).__name__
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)), str(answer.get("Error", {}).get("Code"))


def _is_transient(error: Exception, status: int) -> bool:
    from botocore.exceptions import ConnectionError as Unreachable
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    return status in TRANSIENT or isinstance(error, (Unreachable, HTTPClientError, IncompleteReadError))
