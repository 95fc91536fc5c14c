"""The job server of a Ray cluster's head: submit a sweep as a job, or join the one that runs, and follow its log.

Ray's own client waits for ever for a server that takes the call and says nothing; here every wait has an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from genrec.errors import InputError
from sweeps.cluster_view import PROBE_SECONDS
from sweeps.environment import environment
from sweeps.ray_token import use_token_if_there_is_one, wrong_token
from sweeps.spec import SweepSpec
from sweeps.submission import Request, Verdict, entrypoint, pack, verdict

STOP_SECONDS = 60
"what Ray gives a stopped job to end by itself; its own 3 s are too short for trials to stop"
ANSWER_SECONDS = 60.0
"for the server's answer to a request, once it is known to be a Ray dashboard"
QUIET_SECONDS = 20.0
"without a line of the log, until the server is asked whether the job still runs"
SILENCE_SECONDS = 120.0
"how long the cluster may be unreachable before following a job is given up"
ATTEMPTS = 5
"tries to become, or to join, the job of a sweep that others submit at the same time"
RAYS_LOGGERS = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
"that tell of every upload and closed connection"

Say = Callable[[str], None]


class NoAnswer(ConnectionError):
    """The job server did not answer, or not as a job server does."""


class TimedClient(JobSubmissionClient):
    """Ray's client with a limit for every request. The first ones, which it makes as it is built, are the probe."""

    answer_seconds = PROBE_SECONDS

    def _do_request(self, method: str, endpoint: str, **rest: Any) -> requests.Response:
        return super()._do_request(method, endpoint, timeout=(PROBE_SECONDS, self.answer_seconds), **rest)


class JobLog:
    """A job's log as far as it is known. It is read again from its start after every lost connection, in pieces that
    end anywhere; `show` gets each line once, and whole."""

    def __init__(self, show: Say):
        self.heard = time.monotonic()
        "when the server last said anything new"
        self._show = show
        self._known = 0  # characters
        self._open_line = ""

    def take(self, text: str, start: int) -> None:
        """A piece that starts at character `start` of the log."""
        new = text[max(0, self._known - start) :]
        if new:
            self.heard = time.monotonic()
        self._known = max(self._known, start + len(text))
        *lines, self._open_line = (self._open_line + new).split("\n")
        for line in lines:
            self._show(line)

    def end(self) -> None:
        """Nothing follows: a line without an end is one, too."""
        if self._open_line:
            self._show(self._open_line)


class Cluster:
    """The job server of a Ray cluster's head.

    Raises ConnectionError within seconds when none answers, or one that wants another token.
    """

    def __init__(self, address: str):
        self.address = (address if "://" in address else f"http://{address}").rstrip("/")
        _probe(self.address)
        use_token_if_there_is_one()
        for name in RAYS_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = self._connected()

    def _connected(self) -> TimedClient:
        try:
            # RAY_ADDRESS would go before the address that was asked for.
            with environment({"RAY_API_SERVER_ADDRESS": self.address}):
                client = TimedClient(self.address)
        except AuthenticationError:
            raise wrong_token(self.address) from None
        except (requests.JSONDecodeError, KeyError, TypeError):
            raise NoAnswer(f"what answers at {self.address} is no Ray dashboard") from None
        except (RuntimeError, requests.RequestException, ConnectionError) as error:
            raise NoAnswer(f"no Ray dashboard answers at {self.address}: {error}") from error
        client.answer_seconds = ANSWER_SECONDS
        return client

    def submit(self, request: Request, say: Say) -> str:
        """The id of the job that works on the sweep: the one that runs already, or the next attempt.

        Raises `InputError` when the job that runs was submitted with another search.
        """
        for _ in range(ATTEMPTS):
            running = self._running(request)
            if running is not None:
                say(f"{running.submission_id} works on {request.spec.name} already; following it")
                return str(running.submission_id)
            job = self._next_id(request.spec)
            try:
                with tempfile.TemporaryDirectory() as folder:
                    self._submit(job, request, Path(folder))
            except ConnectionError as error:
                if "already exists" not in str(error):
                    raise
                time.sleep(1)  # someone else took that id just now
                continue
            say(f"submitted {job}")
            return job
        raise ConnectionError(f"{self.address}: no job of {request.spec.name} could be submitted in {ATTEMPTS} tries")

    def follow(self, job: str, show: Say) -> Verdict:
        """Show the job's log until its end, line by line. Lost connections are taken up again.

        Raises ConnectionError when the cluster stays away; the job does not need us.
        """
        log = JobLog(show)
        while True:
            whole = self._read_log(job, log)
            try:
                info = self._info(job)
            except NoAnswer as error:
                if time.monotonic() - log.heard > SILENCE_SECONDS:
                    raise ConnectionError(f"nothing was heard of {job} for {SILENCE_SECONDS:g} s: {error}") from None
            else:
                log.heard = time.monotonic()
                if info.status.is_terminal():
                    if not whole:
                        self._read_rest(job, log)
                    log.end()
                    return verdict(info)
            time.sleep(1)

    def _read_log(self, job: str, log: JobLog) -> bool:
        """Whether the log could be followed to its end. Otherwise the connection broke, or it is quiet and the job has
        ended or cannot be asked."""
        start = 0
        with contextlib.closing(self._pieces(job)) as pieces:
            while True:
                try:
                    text = next(pieces)
                    if not text:
                        if self._info(job).status.is_terminal():
                            return False
                        log.heard = time.monotonic()
                except NoAnswer:
                    return False
                except StopIteration:
                    return True
                log.take(text, start)
                start += len(text)

    def _pieces(self, job: str) -> Generator[str]:
        """The log from its start; an empty piece whenever nothing has come for a while. Ray's server answers no ping
        while it sends a log, so only another request can tell whether it lives."""
        with asyncio.Runner() as runner:
            log, coming = self._client.tail_job_logs(job), None
            while True:
                coming = coming or runner.get_loop().create_task(_next(log))
                if not runner.run(_has_come(coming)):
                    yield ""
                    continue
                try:
                    text = coming.result()
                except (RuntimeError, aiohttp.ClientError, OSError, TimeoutError) as error:
                    raise NoAnswer(f"{self.address}: {error}") from error
                if text is None:
                    return
                coming = None
                yield text

    def _read_rest(self, job: str, log: JobLog) -> None:
        """Of a job that has ended. Its node may have gone with it; how it ended is known all the same."""
        try:
            with self._errors():
                text = self._client.get_job_logs(job)
        except NoAnswer:
            return
        log.take(text, 0)

    def _info(self, job: str) -> JobDetails:
        with self._errors():
            return self._client.get_job_info(job)

    def _submit(self, job: str, request: Request, folder: Path) -> None:
        pack(request, folder)
        runtime: dict[str, Any] = {
            "working_dir": str(folder),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
        }
        if request.pip:
            runtime["pip"] = list(request.pip)
        with self._errors():
            self._client.submit_job(
                entrypoint=entrypoint(request),
                submission_id=job,
                runtime_env=runtime,
                metadata=request.mark,
            )

    def _jobs(self) -> list[JobDetails]:
        with self._errors():
            return [job for job in self._client.list_jobs() if job.submission_id]

    def _running(self, request: Request) -> JobDetails | None:
        """The job that works on this sweep in this storage now."""
        mark = request.mark
        for job in self._jobs():
            theirs = job.metadata or {}
            if job.status.is_terminal() or any(theirs.get(key) != mark[key] for key in ("sweep", "storage")):
                continue
            if theirs.get("spec") != mark["spec"]:
                raise InputError(
                    f"{job.submission_id} works on a sweep {request.spec.name} with another search; give this one "
                    f"another --name, or stop that and submit again, which goes on with what changed: "
                    f"ray job stop --address {self.address} {job.submission_id}"
                )
            return job
        return None

    def _next_id(self, spec: SweepSpec) -> str:
        """Name of the sweep, hash of its spec, number of the attempt. An id is never used twice."""
        stem = f"{spec.name}-{spec.hash[:8]}-"
        numbers = [str(job.submission_id).removeprefix(stem) for job in self._jobs()]
        return stem + str(1 + max((int(number) for number in numbers if number.isdigit()), default=0))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What Ray raises as one kind of error, which names the address and never the token."""
        try:
            yield
        except AuthenticationError:
            raise wrong_token(self.address) from None
        except (RuntimeError, requests.RequestException, ConnectionError) as error:
            raise NoAnswer(f"{self.address}: {error}") from error


async def _next(log: AsyncIterator[str]) -> str | None:
    return await anext(log, None)


async def _has_come(piece: asyncio.Task[str | None]) -> bool:
    done, _ = await asyncio.wait({piece}, timeout=QUIET_SECONDS)
    return bool(done)


def _probe(address: str) -> None:
    """Fail now: a request to an address where nobody answers can take minutes."""
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise InputError(f"--address {address}: expected http://HOST:8265, the dashboard of the cluster's head")
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname, port), timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"no Ray dashboard answers at {address}: {error}") from error
