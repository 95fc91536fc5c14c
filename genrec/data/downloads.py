"""Files of others over https: whole or not there, resumed where they broke off, checked when they are read.

`NAME` is fetched as `NAME.part` and renamed when its last byte is on disk; `NAME.sha256` beside it, in the form of
`sha256sum`, is written before that, so that a damaged or exchanged file is found by `verify`. A broken download goes on
where it stopped if the server still has the same file (`NAME.part.json` holds its validator), else it begins anew.
Plain http is refused, also behind a redirect; only the loopback may use it.
"""

from __future__ import annotations

import http.client
import json
import logging
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from filelock import FileLock

from genrec.data.interactions import DataError
from genrec.durable import file_hash, flush, put, write_json, write_text

logger = logging.getLogger(__name__)
Progress = Callable[[int, int | None], None]
"called with the bytes that are there and the size, where the server tells it"
CHUNK = 1 << 18
TIMEOUT_SECONDS = 60.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class DownloadError(DataError):
    """A file that could not be fetched; the message names the address, the fault and what to do."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    attempts: int = 4,
    pause: float = 2.0,
) -> Path:
    """Fetch `url` to `path` unless it is there. Of several processes one fetches; the others wait for it.

    Args:
        sha256: what the file must hash to, where that is known beforehand.
        progress: told about the bytes so far; by default the log is, every tenth of the file.
        attempts: how often a broken connection is taken up again, after `pause` seconds and longer.
    """
    _require_https(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.is_file():
            return path
        part = path.with_name(path.name + ".part")
        for attempt in range(1, attempts + 1):
            try:
                _fetch(url, part, progress or LoggedProgress(path.name))
                break
            except (OSError, http.client.HTTPException) as error:
                if getattr(error, "code", None) == 416:
                    _forget(part)  # it holds as many bytes as the server's file, or more
                fault = _final_fault(url, error)
                if fault or attempt == attempts:
                    raise DownloadError(fault or _interrupted(url, part, error)) from None
                logger.warning("%s: %s; trying again", url, error)
                time.sleep(pause * 2 ** (attempt - 1))
        _finish(url, part, path, sha256)
    return path


def verify(path: Path) -> None:
    """Refuse a file that differs from the checksum beside it; a file without one is taken as it is."""
    record = path.with_name(path.name + ".sha256")
    if not record.is_file():
        return
    expected, found = record.read_text(encoding="utf-8", errors="replace").split(" ")[0].strip(), file_hash(path)
    if found != expected:
        raise DownloadError(
            f"{path}: its checksum is {found[:12]}..., but {record.name} says {expected[:12]}...: the file was damaged "
            f"or exchanged. Delete both to fetch it again, or {record.name} alone to use the file as it is"
        )


class LoggedProgress:
    """Writes a line into the log for every tenth of a file, or every 32 MiB where the size is unknown."""

    def __init__(self, name: str):
        self.name, self.told = name, -1

    def __call__(self, done: int, size: int | None) -> None:
        step = done * 10 // size if size else done >> 25
        if step != self.told:
            self.told = step
            share = f" of {size / 1e6:,.1f} MB ({done / size:.0%})" if size else " MB"
            logger.info("%s: %s%s", self.name, f"{done / 1e6:,.1f}", share)


def _fetch(url: str, part: Path, progress: Progress) -> None:
    """One connection: from where `part` ends, or from the start, to the last byte."""
    facts = part.with_name(part.name + ".json")
    have, validator = _resumable(url, part, facts)
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
    request = urllib.request.Request(url, headers=headers | {"User-Agent": "genrec"})
    with _opener(url).open(request, timeout=TIMEOUT_SECONDS) as response:
        if have and not _continues(response, have):
            have = 0
        length = response.headers.get("Content-Length")
        size = have + int(length) if length and length.isdecimal() else None
        _require_space(part, (size or have) - have)
        write_json(facts, {"url": url, "validator": _validator(response)})
        with open(part, "ab" if have else "wb") as file:
            done = _copy(response, file, have, size, progress)
    if size is not None and done != size:
        raise ConnectionError(f"the connection ended after {done} of {size} bytes")


def _copy(response: IO[bytes], file: IO[bytes], done: int, size: int | None, progress: Progress) -> int:
    progress(done, size)
    while chunk := response.read(CHUNK):
        file.write(chunk)
        done += len(chunk)
        progress(done, size)
    return done


def _resumable(url: str, part: Path, facts: Path) -> tuple[int, str]:
    """Bytes of `part` that may be kept, and what tells whether the server's file is still the same."""
    try:
        known = json.loads(facts.read_text(encoding="utf-8"))
        if known["url"] == url and isinstance(known["validator"], str):
            return part.stat().st_size, known["validator"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, ""


def _continues(response: Any, have: int) -> bool:
    """Whether the answer is the rest of the file, and not the file from its start."""
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    return response.status == 206 and found is not None and int(found[1]) == have


def _validator(response: Any) -> str | None:
    """A strong ETag or the time of change; None: the file cannot be told from another one."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _finish(url: str, part: Path, path: Path, sha256: str | None) -> None:
    flush(part)
    found = file_hash(part)
    if sha256 and found != sha256:
        _forget(part)
        raise DownloadError(f"{url}: the file's checksum is {found}, expected {sha256}; it was not kept")
    write_text(path.with_name(path.name + ".sha256"), f"{found}  {path.name}\n")
    put(part, path)
    _forget(part)


def _forget(part: Path) -> None:
    for path in (part, part.with_name(part.name + ".json")):
        path.unlink(missing_ok=True)


def _final_fault(url: str, error: Exception) -> str | None:
    """The message of a fault that another attempt cannot mend."""
    if isinstance(error, urllib.error.HTTPError):
        if error.code in (408, 416, 429) or error.code >= 500:
            return None
        return f"{url}: the server answers {error.code} {error.reason}"
    if isinstance(error, (FileNotFoundError, PermissionError)) or getattr(error, "errno", None) in (28, 30):
        return f"{url}: cannot be saved ({error})"
    return None


def _interrupted(url: str, part: Path, error: Exception) -> str:
    kept = part.stat().st_size if part.is_file() else 0
    return f"{url}: {error}; {kept} bytes are kept in {part}, the same command goes on from there"


def _require_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise DownloadError(f"{part}: needs {needed} bytes more, and the disk has {free} free")


def _require_https(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise DownloadError(f"{url}: only https is fetched, because nothing else keeps a file from being exchanged")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(url: str) -> urllib.request.OpenerDirector:
    # A proxy is for the world, not for this machine.
    proxies = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in _LOOPBACK else []
    return urllib.request.build_opener(_SafeRedirects, *proxies)
