"""Uploading by the real `wandb sync`, to a stub of Weights & Biases' server on this machine."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from wandb_server import JsonHandler, serving

from genrec.uploads import offline_runs

pytest.importorskip("wandb")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
KEY = "canary" * 7
HISTORY = "wandb-history.jsonl"
PROJECT = {"id": "p", "name": "shop", "entity": {"id": "e", "name": "me"}}


class Stub(ThreadingHTTPServer):
    """Knows of one run what a client of it asks for, and keeps the lines that it gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lines: dict[int, dict[str, Any]] = {}
        "of the run's history, by their place in it"
        self.names: set[str] = set()
        self.keys: set[str] = set()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            self.names.add(variables["name"])
            run = {"id": "r", "name": variables["name"], "displayName": "d", "config": "{}", "sweepName": None}
            return {"upsertBucket": {"bucket": run | {"project": PROJECT, "historyLineCount": len(self.lines)}}}
        if "RunResumeStatus" in query:
            return {"model": PROJECT | {"bucket": self._known() if self.lines else None}}
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}
        if "viewer" in query.lower():
            viewer = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None}}
        return {}

    def _known(self) -> dict[str, Any]:
        last = json.dumps(self.lines[max(self.lines)])
        counts = {"historyLineCount": len(self.lines), "logLineCount": 0, "eventsLineCount": 0}
        texts = {"summaryMetrics": last, "historyTail": json.dumps([last]), "eventsTail": "[]", "config": "{}"}
        return {"id": "r", "name": "r", "displayName": "d", "tags": [], "wandbConfig": '{"t": 1}', **counts, **texts}


class Handler(JsonHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_PUT(self) -> None:
        self._content()
        self.answer({})

    def do_POST(self) -> None:
        try:
            request = json.loads(self._content())
        except ValueError:
            request = {}
        if self.path.endswith("/graphql"):
            self.server.keys.add(self.headers["Authorization"])
            self.answer({"data": self.server.answer(request["query"], request.get("variables") or {})})
            return
        sent = (request.get("files") or {}).get(HISTORY, {"content": []})
        for place, line in enumerate(sent["content"], sent.get("offset", 0)):
            self.server.lines[place] = json.loads(line)
        self.answer({"limits": {}})

    def _content(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content


@pytest.fixture
def server() -> Iterator[Stub]:
    with serving(Stub()) as stub:
        yield stub


TRIAL = """
from genrec.settings import TrackingConfig
from genrec.tracking import TrackedRun, open_tracker
run = TrackedRun("trial-0000", "tracking", group="s", job_type="trial", offline=True)
for first, last in ((0, 5), (5, 8)):
    with open_tracker(TrackingConfig(wandb_logging=True, wandb_project="shop"), run, {"x": 1}) as tracker:
        for step in range(first, last):
            tracker.log({"loss": float(step)}, step)
"""
UPLOAD = """
from pathlib import Path
from genrec.uploads import upload
print(upload(Path("tracking"), print))
"""


def test_a_trial_that_was_started_again_arrives_as_one_run_without_gaps_and_only_once(
    server: Stub, tmp_path: Path
) -> None:
    environment = os.environ | {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": KEY}

    def run(program: str) -> str:
        command, own = [sys.executable, "-c", program], environment | {"HOME": str(tmp_path)}
        return subprocess.run(command, env=own, cwd=tmp_path, stdout=subprocess.PIPE, check=True, text=True).stdout

    run(TRIAL)
    assert not server.keys, "a trial of a sweep asks no server"
    assert run(UPLOAD).splitlines()[-1] == "2"
    rows = [server.lines[place] for place in sorted(server.lines)]
    assert list(server.lines) == sorted(server.lines) == list(range(8))
    assert [(row["step"], row["train/loss"]) for row in rows] == [(step, float(step)) for step in range(8)]
    assert len(server.names) == 1
    assert offline_runs(tmp_path / "tracking") == [], "what has arrived is not sent again"
