"""Objects in Google Cloud Storage (`gs://`), over its JSON API: the only module that knows google.auth.

Every content of an object has a generation, a number that the store counts up. A write may name the generation that it
replaces, or 0 where there must be none; so the generation, as text, is our tag. Credentials are Google's application
default ones; `STORAGE_EMULATOR_HOST` names a server for tests, which is asked without any.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from genrec import object_backend
from genrec.errors import InputError
from genrec.object_backend import TRANSIENT, Fault, Listing, Refused, waits

CHUNK_BYTES = 16 * 2**20
"up to which a file goes by one request, and by which a larger one goes; a multiple of 256 KiB, as Google wants it"
ENDPOINT = "https://storage.googleapis.com"
EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_CREDENTIALS = (
    "fix: run gcloud auth application-default login, set GOOGLE_APPLICATION_CREDENTIALS, or give the machine a service "
    "account"
)
SESSION_GONE = "SessionGone"
"our name for the fault of an upload that the store has forgotten: it has to begin again"


class GoogleBackend:
    """A `genrec.object_backend.Backend` for `bucket`."""

    conditions = "ifGenerationMatch"
    conditional = "Google's own"
    endpoint_variable = EMULATOR_VARIABLE

    def __init__(self, bucket: str):
        self._bucket = bucket
        host = os.environ.get(EMULATOR_VARIABLE, "")
        self._is_emulator = bool(host)
        self._endpoint = (host if "://" in host else f"http://{host}").rstrip("/") if host else ENDPOINT

    @cached_property
    def _session(self) -> Any:
        try:
            import google.auth
            from google.auth.credentials import AnonymousCredentials
            from google.auth.exceptions import GoogleAuthError
            from google.auth.transport.requests import AuthorizedSession
        except ImportError:
            message = "the package for gs:// is not installed; fix: pip install 'genrec-sweeps[gcs]'"
            raise InputError(f"gs://{self._bucket}: {message}") from None
        if self._is_emulator:
            return AuthorizedSession(AnonymousCredentials())
        try:
            credentials, _ = google.auth.default(scopes=[SCOPE])
        except GoogleAuthError as error:
            raise Fault(type(error).__name__, str(error), fix=f"no credentials ({error}); {_CREDENTIALS}") from None
        return AuthorizedSession(credentials)

    def get(self, key: str) -> tuple[bytes, str]:
        answer = self._ask("GET", self._object(key), params={"alt": "media"})
        return answer.content, self._generation(answer)

    def download(self, key: str, write: Callable[[bytes], object]) -> str:
        from requests import RequestException

        with self._ask("GET", self._object(key), params={"alt": "media"}, stream=True) as answer:
            blocks = answer.iter_content(1 << 20)
            while True:
                try:
                    block = next(blocks, None)
                except RequestException as error:
                    raise _unanswered(error) from None
                if block is None:
                    return self._generation(answer)
                write(block)

    def require(self, key: str) -> None:
        self._ask("GET", self._object(key), params={"fields": "generation"})

    def put(self, key: str, data: bytes, *, absent: bool = False, tag: str | None = None) -> str:
        condition = {"ifGenerationMatch": "0"} if absent else {} if tag is None else {"ifGenerationMatch": tag}
        params = {"uploadType": "media", "name": key, **condition}
        answer = self._ask("POST", self._uploads, params=params, data=data, missing="bucket")
        return str(_json(answer)["generation"])

    def put_file(self, key: str, path: Path) -> str:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return self.put(key, file.read(size)) if size <= CHUNK_BYTES else self._put_in_chunks(key, file, size)

    def _put_in_chunks(self, key: str, file: BinaryIO, size: int) -> str:
        """By an upload that can be resumed: after a fault the store is asked how far it has come."""
        params = {"uploadType": "resumable", "name": key}
        begun = self._ask("POST", self._uploads, params=params, json={}, missing="bucket")
        session, arrived, left = begun.headers["Location"], 0, waits()
        is_known = True  # how far it has come
        while True:
            try:
                now, tag = self._put_chunk(session, _chunk(file, arrived, size) if is_known else b"", arrived, size)
                if tag is not None:
                    return tag
                if is_known and now <= arrived:
                    raise Fault("NoProgress", "the store does not go on with the upload", transient=True)
                left = waits() if now > arrived else left
                arrived, is_known = now, True
            except Fault as fault:
                wait = next(left)
                if wait is None or not fault.transient or fault.code == SESSION_GONE:
                    raise
                time.sleep(wait)
                is_known = False

    def _put_chunk(self, session: str, chunk: bytes, start: int, size: int) -> tuple[int, str | None]:
        """Send a chunk, or with an empty one only ask; how many bytes the store has, and the tag once it has all."""
        sent = f"bytes {start}-{start + len(chunk) - 1}/{size}" if chunk else f"bytes */{size}"
        headers = {"Content-Range": sent}
        answer = self._ask("PUT", session, data=chunk, headers=headers, accepted=(200, 201, 308), missing="session")
        if answer.status_code != 308:
            return size, str(_json(answer)["generation"])
        last = answer.headers.get("Range", "").rpartition("-")[2]  # as in bytes=0-1048575; none: nothing has arrived
        return int(last) + 1 if last else 0, None

    def list(self, prefix: str, delimiter: str = "") -> Listing:
        found, token = Listing({}, []), ""
        while True:
            params = {"prefix": prefix, "fields": "items(name,generation),prefixes,nextPageToken"}
            params |= {"delimiter": delimiter} if delimiter else {}
            params |= {"pageToken": token} if token else {}
            page = _json(
                self._ask("GET", f"{self._endpoint}/storage/v1{self._objects}", params=params, missing="bucket")
            )
            found.tags.update({item["name"]: str(item["generation"]) for item in page.get("items", ())})
            found.prefixes.extend(page.get("prefixes", ()))
            token = page.get("nextPageToken", "")
            if not token:
                return found

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            try:
                self._ask("DELETE", self._object(key), accepted=(200, 204))
            except Refused:  # there is none
                continue

    @property
    def _objects(self) -> str:
        return f"/b/{quote(self._bucket, safe='')}/o"

    @property
    def _uploads(self) -> str:
        return f"{self._endpoint}/upload/storage/v1{self._objects}"

    def _object(self, key: str) -> str:
        return f"{self._endpoint}/storage/v1{self._objects}/{quote(key, safe='')}"

    def _generation(self, answer: Any) -> str:
        generation = answer.headers.get("x-goog-generation")
        if generation is None:
            raise Fault(
                "NoGeneration", "", fix=f"{self._endpoint} tells no generations; fix: unset {EMULATOR_VARIABLE}"
            )
        return str(generation)

    def _ask(
        self, method: str, url: str, *, accepted: Sequence[int] = (200,), missing: str = "object", **options: Any
    ) -> Any:
        """One request and its answer. `missing`: what status 404 says that there is none of."""
        from google.auth.exceptions import GoogleAuthError, TransportError
        from requests import RequestException

        headers = {"Accept-Encoding": "identity", "Content-Type": "application/octet-stream"}
        if "json" in options:
            headers["Content-Type"] = "application/json"
        headers |= options.pop("headers", {})
        seconds = (object_backend.CONNECT_SECONDS, object_backend.READ_SECONDS)
        session = self._session
        try:
            answer = session.request(method, url, headers=headers, timeout=seconds, allow_redirects=False, **options)
        except (RequestException, TransportError) as error:
            raise _unanswered(error) from None
        except GoogleAuthError as error:
            fix = "" if error.retryable else f"the credentials of this machine do not work ({error}); {_CREDENTIALS}"
            raise Fault(type(error).__name__, str(error), transient=error.retryable, fix=fix) from None
        if answer.status_code in accepted:
            return answer
        with answer:
            raise self._fault(answer, missing)

    def _fault(self, answer: Any, missing: str) -> Refused | Fault:
        status, reason, text = answer.status_code, *_told(answer)
        if status == 412:
            return Refused(reason)
        if status in (404, 410) and missing == "session":
            return Fault(SESSION_GONE, "the store has forgotten the upload", transient=True)
        if status == 404 and missing == "object" and "bucket does not exist" not in text:
            return Refused(reason)
        if status == 404:
            fix = f"there is no bucket {self._bucket}; fix: create it, or correct the storage's URL"
            return Fault(reason, text, fix=fix)
        is_rate = "ratelimit" in reason.lower()
        return Fault(
            reason,
            f"HTTP {status} {reason}: {text}",
            transient=is_rate or status in TRANSIENT,
            denied=status in (401, 403) and not is_rate,
        )


def _chunk(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(min(CHUNK_BYTES, size - start))


def _json(answer: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = answer.json()
    except ValueError as error:
        raise _unanswered(error) from None
    return found


def _unanswered(error: Exception) -> Fault:
    return Fault(type(error).__name__, f"{type(error).__name__}: {error}", transient=True)


def _told(answer: Any) -> tuple[str, str]:
    """The store's name for a fault, and its text."""
    try:
        error = answer.json()["error"]
        return str(error["errors"][0]["reason"]), str(error["message"])
    except Exception:  # from a proxy, or from a server that has its own form
        return f"HTTP {answer.status_code}", answer.text.strip()[:200]
