"""Downloads against a server on this machine: whole or not there, resumed, checked, https alone."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genrec.data import downloads
from genrec.data.downloads import DownloadError, download, verify

CONTENT = bytes(range(256)) * 5000


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; breaks off after `cut` bytes of an answer; notes the ranges that were asked for."""

    content, etag, cut, status, location = CONTENT, '"one"', 0, 0, ""
    ranges_work = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.location:
            self.send_response(302)
            self.send_header("Location", server.location)
            self.end_headers()
            return
        if server.status:
            self.send_error(server.status)
            return
        start = 0
        if asked and server.ranges_work and self.headers.get("If-Range") == server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(body[: server.cut] if server.cut else body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_a_file_is_fetched_with_its_checksum_beside_it_and_progress_told(tmp_path, server):
    told: list[tuple[int, int | None]] = []
    path = download(server.url, tmp_path / "deep" / "x.bin", progress=lambda done, size: told.append((done, size)))
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == {"x.bin", "x.bin.sha256"}
    assert (path.parent / "x.bin.sha256").read_text() == f"{hashlib.sha256(CONTENT).hexdigest()}  x.bin\n"
    assert told[0] == (0, len(CONTENT))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    verify(path)


def test_a_file_that_is_there_is_not_fetched_again(tmp_path, server):
    (tmp_path / "x.bin").write_text("mine")
    assert download(server.url, tmp_path / "x.bin").read_text() == "mine"
    assert server.asked == []


def test_a_broken_download_leaves_no_file_and_goes_on_where_it_stopped(tmp_path, server):
    server.cut = 1_000_000
    with pytest.raises(DownloadError, match=r"after 1000000 of 1280000 bytes; 1000000 bytes are kept in .*x.bin.part"):
        download(server.url, tmp_path / "x.bin", attempts=1)
    assert names(tmp_path) == {"x.bin.part", "x.bin.part.json"}
    server.cut = 0
    assert download(server.url, tmp_path / "x.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-"]
    assert names(tmp_path) == {"x.bin", "x.bin.sha256"}


def test_a_broken_connection_is_taken_up_again_by_itself(tmp_path, server):
    server.cut = 500_000
    assert download(server.url, tmp_path / "x.bin", pause=0.0).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=500000-", "bytes=1000000-"]


@pytest.mark.parametrize("change", ["etag", "ranges"])
def test_a_changed_file_or_a_server_without_ranges_begins_anew(tmp_path, server, change):
    server.cut = 1000
    with pytest.raises(DownloadError):
        download(server.url, tmp_path / "x.bin", attempts=1)
    server.cut = 0
    if change == "etag":
        server.etag, server.content = '"two"', b"other" * 1000
    else:
        server.ranges_work = False
    assert download(server.url, tmp_path / "x.bin").read_bytes() == server.content


def test_a_part_longer_than_the_file_begins_anew(tmp_path, server):
    server.cut = 1000
    with pytest.raises(DownloadError):
        download(server.url, tmp_path / "x.bin", attempts=1)
    server.cut, server.content = 0, CONTENT[:1000]

    class Strict(Handler):
        def do_GET(self) -> None:
            if self.headers.get("Range"):
                self.send_error(416)
            else:
                super().do_GET()

    server.RequestHandlerClass = Strict
    assert download(server.url, tmp_path / "x.bin", pause=0.0).read_bytes() == CONTENT[:1000]


def test_a_wrong_checksum_is_not_kept(tmp_path, server):
    with pytest.raises(DownloadError, match="checksum is .*, expected 00; it was not kept"):
        download(server.url, tmp_path / "x.bin", sha256="00")
    assert names(tmp_path) == set()
    good = hashlib.sha256(CONTENT).hexdigest()
    assert download(server.url, tmp_path / "x.bin", sha256=good).is_file()


def test_a_file_that_changed_after_its_download_is_refused(tmp_path, server):
    path = download(server.url, tmp_path / "x.bin")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError, match=r"x.bin: its checksum is .* x.bin.sha256 says .* damaged or exchanged"):
        verify(path)
    (tmp_path / "x.bin.sha256").unlink()
    verify(path)


def test_a_refusal_of_the_server_is_told_at_once(tmp_path, server):
    server.status = 404
    with pytest.raises(DownloadError, match=r"file.bin: the server answers 404"):
        download(server.url, tmp_path / "x.bin", pause=100.0)
    assert server.asked == [None]
    server.status = 503
    with pytest.raises(DownloadError, match="503"):
        download(server.url, tmp_path / "x.bin", attempts=3, pause=0.0)
    assert len(server.asked) == 4


def test_plain_http_is_refused_also_behind_a_redirect(tmp_path, server):
    for url in ("http://example.org/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "http://localhost.example.org/x"):
        with pytest.raises(DownloadError, match="only https is fetched"):
            download(url, tmp_path / "x.bin")
    server.location = "http://example.org/x"
    with pytest.raises(DownloadError, match=r"http://example.org/x: only https is fetched"):
        download(server.url, tmp_path / "x.bin")


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, server, monkeypatch):
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5})())
    with pytest.raises(DownloadError, match="needs 1280000 bytes more, and the disk has 5 free"):
        download(server.url, tmp_path / "x.bin")


def test_of_several_callers_one_fetches(tmp_path, server):
    threads = [threading.Thread(target=download, args=(server.url, tmp_path / "x.bin")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == [None]


def test_a_proxy_is_not_asked_for_this_machine(tmp_path, server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert download(server.url, tmp_path / "x.bin", attempts=1).is_file()
