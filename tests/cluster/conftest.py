"""A Ray head as one starts it with `ray start`: with a dashboard and a token, in a home of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START_TRIES = 4
CANARY = "canary_5d41402abc4b2a76b9719d911017c592"
"in every secret of the environment of head, jobs and submitter; it may be written down nowhere"
SECRETS = (
    "WANDB_API_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "PGPASSWORD",
    "MYSQL_PWD",
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass(frozen=True)
class Head:
    folder: Path
    sessions: Path
    environment: dict[str, str]
    dashboard: str

    @property
    def token(self) -> str:
        return (self.folder / ".ray" / "auth_token").read_text()

    @property
    def canary(self) -> str:
        return CANARY

    def with_token(self, token: str) -> Head:
        """The same head as someone sees it who has another token."""
        return replace(self, environment=self.environment | {"RAY_AUTH_TOKEN": token})

    def run(self, *words: str, timeout: float = 800) -> subprocess.CompletedProcess[str]:
        """A command in the environment of someone who has the token."""
        return subprocess.run(
            [sys.executable, "-m", *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=self.environment,
            cwd=ROOT,
        )


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    (folder / ".ray").mkdir(mode=0o700)
    (folder / ".ray" / "auth_token").touch(mode=0o600)
    (folder / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    left_out = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in left_out} | {
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment |= {name: f"{CANARY}_{name.lower()}" for name in SECRETS}
    sessions = Path(f"/tmp/ray-{os.getpid()}/ray")  # short: names of sockets are made from it
    sessions.parent.mkdir(mode=0o700)
    process, dashboard = started(folder, sessions, environment)
    try:
        yield Head(folder, sessions, environment, f"http://127.0.0.1:{dashboard}")
    finally:
        process.terminate()
        process.wait(timeout=60)
        shutil.rmtree(sessions.parent, ignore_errors=True)


def started(folder: Path, sessions: Path, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    """The head's process and its dashboard's port. Ray gives its own helpers 30 s, too little on a busy machine."""
    for tries_left in reversed(range(START_TRIES)):
        port, dashboard, agent, client = (free_port() for _ in range(4))
        words = ["--head", "--block", "--num-cpus=2", f"--port={port}", "--dashboard-host=127.0.0.1"]
        words += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        words += [f"--ray-client-server-port={client}", "--object-store-memory=100000000"]
        words += [f"--temp-dir={sessions}", "--disable-usage-stats"]
        with open(folder / "head.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *words],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        while process.poll() is None:
            if "Ray runtime started" in (folder / "head.log").read_text():
                return process, dashboard
            time.sleep(0.5)
        text = (folder / "head.log").read_text()
        assert tries_left, text
        assert "timed out during startup" in text, text
    raise AssertionError("no tries")
