"""Handing jobs to a job server and following them, without a server or with one that fails. Real ones are in
tests/cluster/test_jobs.py."""

from __future__ import annotations

import asyncio
import http.server
import json
import shlex
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ray.job_submission import JobDetails, JobStatus

from sweeps import api, job_server
from sweeps.cli import main
from sweeps.job_server import Cluster, TimedClient
from sweeps.spec import SweepSpec
from sweeps.spec_file import load_spec
from sweeps.submission import Request, entrypoint

TINY = Path(__file__).with_name("tiny.yaml")


def request(file: Path, **fields: Any) -> Request:
    return Request(spec=load_spec(file), file=file, **{"storage": "/storage/runs", **fields})


class JobServer(Cluster):
    """The job server's own list of jobs, without a server."""

    def __init__(self, *jobs: JobDetails):
        self.address = "http://head:8265"
        self.jobs = list(jobs)

    def _jobs(self) -> list[JobDetails]:
        return self.jobs

    def _submit(self, job: str, request: Request, folder: Path) -> None:
        if job in {known.submission_id for known in self.jobs}:
            raise ConnectionError(f"{self.address}: Job with submission_id {job} already exists.")
        self.jobs.append(details(job, JobStatus.RUNNING, request.mark))


def details(name: str, status: JobStatus, metadata: dict[str, str] | None = None) -> JobDetails:
    return JobDetails(type="SUBMISSION", submission_id=name, status=status, entrypoint="x", metadata=metadata)


def test_submitting_again_joins_what_runs_and_follows_what_has_ended_with_the_next_attempt() -> None:
    server, said = JobServer(), list[str]()
    first = server.submit(request(TINY), said.append)
    assert first == f"tiny-{load_spec(TINY).hash[:8]}-1"
    assert server.submit(request(TINY), said.append) == first
    assert len(server.jobs) == 1
    assert "works on tiny already" in said[-1]
    server.jobs = [details(first, JobStatus.FAILED, server.jobs[0].metadata or {})]
    assert server.submit(request(TINY), said.append) == first.removesuffix("-1") + "-2"


def test_another_search_of_the_same_name_does_not_join() -> None:
    server, said = JobServer(), list[str]()
    server.submit(request(TINY), said.append)
    other = Request(load_spec(TINY, {"budget.trials": 7}), TINY, ["--trials", "7"], "/storage/runs")
    with pytest.raises(ValueError, match="another search; give this one another --name"):
        server.submit(other, said.append)
    elsewhere = Request(load_spec(TINY, {"budget.trials": 7}), TINY, ["--trials", "7"], "/storage/others")
    assert server.submit(elsewhere, said.append).endswith("-1")


def test_of_two_that_submit_at_once_one_joins_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    server, said = JobServer(), list[str]()
    taken = server.submit(request(TINY), said.append)
    views = [[], [], server.jobs]  # the job appears after this one has looked for it and chosen its name
    monkeypatch.setattr(server, "_jobs", lambda: views.pop(0) if len(views) > 1 else server.jobs)
    assert server.submit(request(TINY), said.append) == taken


@pytest.mark.parametrize("address", ["ftp://head:8265", "http://", "file:///etc/passwd"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected http://HOST:8265"):
        Cluster(address)


def test_a_dead_dashboard_is_named_within_seconds() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        since = time.monotonic()
        with pytest.raises(ConnectionError, match=f"no Ray dashboard answers at {address}"):
            Cluster(address)
        assert time.monotonic() - since < 20


@pytest.mark.parametrize("source", [[str(TINY)], ["--recipe", "paper", "--grid", "train.learning_rate=0.1,0.2"]])
def test_the_job_runs_what_the_command_line_describes(
    source: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep that `sweeps run` makes of the job's words is the one that is submitted."""
    made, changes = list[Request](), ["--name", "s", "--trials", "3", "--time", "2h", "--set", "train.epochs=2"]
    server = JobServer()
    monkeypatch.setattr(server, "_submit", lambda job, request, folder: made.append(request))
    monkeypatch.setattr(job_server, "Cluster", lambda address: server)
    place = ["--address", server.address, "--storage", "/storage/runs/"]
    done = CliRunner().invoke(main, ["submit", *source, *changes, *place, "--no-wait"])
    assert done.exit_code == 0, done.output
    assert f"submitted s-{made[0].spec.hash[:8]}-1" in done.output

    started = list[SweepSpec]()
    monkeypatch.setattr(api, "start", lambda spec, **options: started.append(spec))
    words = shlex.split(entrypoint(made[0]).partition(" sweeps.cli ")[2])
    monkeypatch.chdir(TINY.parent)
    CliRunner().invoke(main, [str(tmp_path) if word == "/storage/runs" else word for word in words])
    assert started == [made[0].spec]


# ------------------------------------------------------- servers that fail


def test_a_dashboard_that_takes_calls_and_says_nothing_is_given_up_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TimedClient, "answer_seconds", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        since = time.monotonic()
        with pytest.raises(ConnectionError, match=f"no Ray dashboard answers at {address}"):
            Cluster(address)
        assert time.monotonic() - since < 25


class Dashboard(http.server.BaseHTTPRequestHandler):
    """One that is asked for its version, and for nothing else."""

    version: str

    def do_GET(self) -> None:
        if self.path != "/api/version":
            return threading.Event().wait(60) and None
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.version.encode())

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def dashboard(request: pytest.FixtureRequest) -> Iterator[str]:
    handler = type("Handler", (Dashboard,), {"version": request.param})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("dashboard", [json.dumps({"ray_version": "2.60.0"})], indirect=True)
def test_no_request_waits_for_ever(dashboard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "ANSWER_SECONDS", 0.3)
    cluster = Cluster(dashboard + "/")
    assert cluster.address == dashboard
    with pytest.raises(ConnectionError, match=f"{dashboard}: .*timed out"):
        cluster.submit(globals()["request"](TINY), lambda line: None)


@pytest.mark.parametrize("dashboard", ["{}", "<html>"], indirect=True)
def test_what_is_no_dashboard_is_told_from_one(dashboard: str) -> None:
    with pytest.raises(ConnectionError, match=f"what answers at {dashboard} is no Ray dashboard"):
        Cluster(dashboard)


# ------------------------------------------------------------ following a job

BROKEN, QUIET = "broken", "quiet"
"instead of a piece of the log: the connection breaks, or nothing comes any more"


class LoggedJob:
    """A job's log in pieces, one list a connection, and what the server says of the job each time it is asked."""

    def __init__(self, logs: list[list[str]], states: list[JobStatus | Exception]):
        self.logs, self.states = logs, states

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for piece in self.logs.pop(0) if len(self.logs) > 1 else self.logs[0]:
            if piece == BROKEN:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            if piece == QUIET:
                await asyncio.sleep(1e6)
            yield piece

    def get_job_info(self, job: str) -> JobDetails:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return details(job, state)

    def get_job_logs(self, job: str) -> str:
        return "first\nsecond\nlast"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(job_server, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def followed(logs: list[list[str]], *states: JobStatus | Exception) -> list[str]:
    server, lines = JobServer(), list[str]()
    server._client = LoggedJob(logs, list(states))  # type: ignore[assignment]
    assert server.follow("tiny-1", lines.append).code == 0
    return lines


RUNNING, DONE = JobStatus.RUNNING, JobStatus.SUCCEEDED


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("logs", "states"),
    [
        ([["fir", "st\nsec", "ond\n", "last"]], [DONE]),
        ([["first\nsec", BROKEN], ["first", "\nsecond\nlast"]], [RUNNING, DONE]),
        ([["first\n", QUIET]], [RUNNING, RUNNING, DONE]),
        ([["first\n", BROKEN]], [ConnectionError("away"), ConnectionError("away"), RUNNING, DONE]),
    ],
    ids=["cut anywhere", "broken within a line", "quiet until the job has ended", "away for a while"],
)
def test_every_line_of_the_log_is_shown_once_and_whole(
    logs: list[list[str]], states: list[JobStatus | Exception]
) -> None:
    assert followed(logs, *states) == ["first", "second", "last"]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("piece", [BROKEN, QUIET])
def test_a_head_that_is_gone_is_not_waited_for_without_end(piece: str) -> None:
    with pytest.raises(ConnectionError, match="nothing was heard of tiny-1 for 0.5 s: .*away"):
        followed([["first\n", piece]], RUNNING, RUNNING, ConnectionError("away"))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("error", [RuntimeError("no"), BrokenPipeError()])
def test_what_goes_wrong_with_showing_is_no_lost_connection(error: Exception) -> None:
    def show(line: str) -> None:
        raise error

    server = JobServer()
    server._client = LoggedJob([["first\n"]], [DONE])  # type: ignore[assignment]
    with pytest.raises(type(error)):
        server.follow("tiny-1", show)
