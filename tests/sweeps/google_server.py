"""What `genrec.gcs_backend` asks of Google Cloud Storage's JSON API, on loopback and in memory.

Of the kind of a request, faults know S3's names: PUT writes an object, HEAD asks whether there is one, GET reads or
lists, POST deletes. A bucket whose name begins with "careless" ignores the conditions of writes, and one with "short"
takes half of every chunk.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

from faulty_server import Faulty, FaultyServer, serve

PAGE = 3  # objects


class Server(FaultyServer):
    """The server as its tests see it."""

    def __init__(self) -> None:
        super().__init__(__file__)
        self.environment = {"STORAGE_EMULATOR_HOST": self.address}

    def make_bucket(self, name: str) -> None:
        self.ask("POST", "storage/v1/b?project=test", {"name": name})

    def forget_uploads(self) -> None:
        """As the store does with those that are a week old."""
        self.ask("POST", "_forget")


class Answer(Exception):
    """Raised where an answer is due before the end of a function."""

    def __init__(self, status: str, body: bytes = b"", **headers: str):
        self.status, self.body = status, body
        self.headers = [(name.replace("_", "-"), value) for name, value in headers.items()]


class Upload(NamedTuple):
    bucket: str
    name: str
    data: bytearray


class Store:
    """The WSGI application: buckets, each with name -> (generation, data)."""

    def __init__(self) -> None:
        self._buckets: dict[str, dict[str, tuple[int, bytes]]] = {}
        self._uploads: dict[str, Upload] = {}
        self._generation = 1_700_000_000_000_000

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            self._serve(environ)
            raise AssertionError("every request has its answer")
        except Answer as answer:
            length = ("Content-Length", str(len(answer.body)))
            start_response(answer.status, [length, ("Content-Type", "application/json"), *answer.headers])
            return [answer.body]

    def _serve(self, environ: dict[str, Any]) -> None:
        method, path = environ["REQUEST_METHOD"], environ["RAW_URI"].partition("?")[0]
        query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if path == "/_forget":
            self._uploads.clear()
            raise Answer("200 OK")
        if path == "/storage/v1/b":
            self._buckets[json.loads(body)["name"]] = {}
            raise Answer("200 OK", b"{}")
        if path.startswith("/session/"):
            self._go_on(path.rpartition("/")[2], environ["HTTP_CONTENT_RANGE"], body)
        words = path.partition("/storage/v1/b/")[2].split("/")
        bucket = unquote(words[0])
        if bucket not in self._buckets:
            raise error("404 Not Found", "notFound", "The specified bucket does not exist.")
        if path.startswith("/upload"):
            self._begin(environ, bucket, query, body)
        if len(words) < 3:
            self._list(bucket, query)
        self._object(method, bucket, unquote(words[2]), query)

    def _begin(self, environ: dict[str, Any], bucket: str, query: dict[str, str], body: bytes) -> None:
        """An upload in one request, or one that comes in chunks."""
        if query["uploadType"] == "resumable":
            session = secrets.token_hex(8)
            self._uploads[session] = Upload(bucket, query["name"], bytearray())
            raise Answer("200 OK", Location=f"http://{environ['HTTP_HOST']}/session/{session}")
        wanted = query.get("ifGenerationMatch")
        found = self._buckets[bucket].get(query["name"], (0, b""))[0]
        if wanted is not None and int(wanted) != found and not bucket.startswith("careless"):
            raise error("412 Precondition Failed", "conditionNotMet", "At least one of the conditions does not hold.")
        self._put(bucket, query["name"], body)

    def _go_on(self, session: str, sent: str, body: bytes) -> None:
        if session not in self._uploads:
            raise error("404 Not Found", "notFound", "No such upload")
        upload = self._uploads[session]
        where, _, size = sent.removeprefix("bytes ").partition("/")
        if where != "*":
            start = int(where.partition("-")[0])
            assert start <= len(upload.data), "a gap"
            assert len(body) % 2**18 == 0 or start + len(body) == int(size), "chunks are multiples of 256 KiB"
            if upload.bucket.startswith("short"):
                body = body[: -(-len(body) // 2)]
            upload.data[start:] = body
        if len(upload.data) == int(size):
            self._put(upload.bucket, upload.name, bytes(upload.data))
        ranged = {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {}
        raise Answer("308 Resume Incomplete", **ranged)

    def _put(self, bucket: str, name: str, data: bytes) -> None:
        self._generation += 1
        self._buckets[bucket][name] = (self._generation, data)
        raise Answer("200 OK", json.dumps({"name": name, "generation": str(self._generation)}).encode())

    def _object(self, method: str, bucket: str, name: str, query: dict[str, str]) -> None:
        objects = self._buckets[bucket]
        if name not in objects:
            raise error("404 Not Found", "notFound", f"No such object: {bucket}/{name}")
        generation, data = objects[name]
        if method == "DELETE":
            del objects[name]
            raise Answer("204 No Content")
        if query.get("alt") == "media":
            raise Answer("200 OK", data, x_goog_generation=str(generation))
        raise Answer("200 OK", json.dumps({"generation": str(generation)}).encode())

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        rows: dict[str, dict[str, str] | None] = {}
        for name, (generation, _) in sorted(self._buckets[bucket].items()):
            if name.startswith(prefix):
                inner, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                row = {"name": name, "generation": str(generation)}
                rows.update({prefix + inner + found: None} if found else {name: row})
        start = int(query.get("pageToken", 0))
        some = list(rows.items())[start : start + PAGE]
        page: dict[str, Any] = {
            "items": [row for _, row in some if row],
            "prefixes": [name for name, row in some if row is None],
        }
        page |= {"nextPageToken": str(start + PAGE)} if start + PAGE < len(rows) else {}
        raise Answer("200 OK", json.dumps({key: value for key, value in page.items() if value}).encode())


def error_body(reason: str, text: str = "asked for") -> str:
    return json.dumps({"error": {"message": text, "errors": [{"reason": reason}]}})


def error(status: str, reason: str, text: str) -> Answer:
    return Answer(status, error_body(reason, text).encode())


def method(environ: dict[str, Any]) -> str:
    path, query, found = environ["PATH_INFO"], environ["QUERY_STRING"], environ["REQUEST_METHOD"]
    if path.startswith(("/upload", "/session")):
        return "PUT"
    if found == "DELETE":
        return "POST"
    return "HEAD" if "/o/" in path and "alt=media" not in query else str(found)


if __name__ == "__main__":
    serve(Faulty(Store(), error_body, method))
