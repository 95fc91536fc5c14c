"""Database servers for tests, on loopback; skipped with a reason where they are not installed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 60


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """A server process and the URL of its database."""

    def __init__(self, url: str, command: Sequence[str], stop_by: signal.Signals, user: dict[str, Any]):
        self.url = url
        self._command, self._stop_by, self._user = command, stop_by, user
        self._port = int(url.rsplit(":", 1)[1].split("/")[0])
        self.start()

    def start(self) -> None:
        """Come back when it answers."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(self._command, **quiet, **self._user)
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self._port):
            assert self._process.poll() is None, f"{self._command[0]} did not start"
            assert time.monotonic() < deadline, f"{self._command[0]} does not answer"
            time.sleep(0.2)
        time.sleep(1)

    def stop(self) -> None:
        self._process.send_signal(self._stop_by)
        self._process.wait(60)


@contextmanager
def postgresql_server(folder: Path) -> Iterator[Server]:
    """One of our own, with its data in `folder`."""
    _need("initdb", "postgres")
    user, data, port = _unprivileged(folder), str(folder / "data"), free_port()
    subprocess.run(["initdb", "-D", data, "-U", "sweeps", "--auth=trust"], check=True, capture_output=True, **user)
    command = ["postgres", "-D", data, "-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-F"]
    server = Server(f"postgresql://sweeps@127.0.0.1:{port}/postgres", command, signal.SIGINT, user)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def mysql_server(folder: Path) -> Iterator[Server]:
    """MariaDB, which speaks MySQL's protocol, with its data in `folder`."""
    _need("mariadb-install-db", "mariadbd", "mariadb")
    user, port, socket_path = _unprivileged(folder), free_port(), f"{folder}/socket"
    data = ["--no-defaults", f"--datadir={folder / 'data'}"]
    install = ["mariadb-install-db", *data, "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(install, check=True, capture_output=True, cwd=folder, **user)
    command = ["mariadbd", *data, "--bind-address=127.0.0.1", f"--port={port}", f"--socket={socket_path}"]
    server = Server(f"mysql://sweeps@127.0.0.1:{port}/sweeps", command, signal.SIGTERM, user)
    try:
        who = "sweeps@'127.0.0.1'"
        statements = f"CREATE USER {who}; CREATE DATABASE sweeps; GRANT ALL ON sweeps.* TO {who}"
        client = ["mariadb", "--no-defaults", f"--socket={socket_path}", "--user=root", "--execute", statements]
        subprocess.run(client, check=True, capture_output=True)
        yield server
    finally:
        server.stop()


def _need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")


def _unprivileged(folder: Path) -> dict[str, Any]:
    """Whom a server runs as: it refuses to be root."""
    if os.getuid() != 0:
        return {}
    shutil.chown(folder, "nobody")
    for parent in folder.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    return {"user": "nobody"}


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
