"""A sweep as a job of a Ray cluster: pack the code, submit, follow the log, come back with the sweep's own exit code.

A job is one attempt at a sweep; all of them run `sweeps run FILE --resume`, and the ledger in the storage knows what is
done. So submitting again joins the job that runs, or starts the next attempt where the last one ended. What travels is
the two packages as they are installed here, the sweep's file and the config that it names: no data, results or keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import genrec
import sweeps
from genrec.config import recipe_files
from genrec.errors import ExitCode, InputError
from genrec.object_store import checked_storage, is_url
from sweeps.cluster_view import PROBE_SECONDS
from sweeps.environment import environment
from sweeps.ray_token import use_token_if_there_is_one, wrong_token
from sweeps.spec import SweepSpec

STOP_SECONDS = 60
"what Ray gives a stopped job to end by itself; its own 3 s are too short for trials to stop"
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
SENTENCE_CODES = tuple(ExitCode)
"exit codes of `sweeps run` that say what became of the sweep"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to run: `spec` as it was read from `file`, with the words of the command line that changed it."""

    spec: SweepSpec
    file: Path
    words: Sequence[str] = ()
    storage: str = ""
    pip: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "storage", checked_storage(self.storage))
        if not is_url(self.storage) and not PurePosixPath(self.storage).is_absolute():
            raise InputError(
                f"--storage {self.storage}: a job works in a folder that is deleted after it; give the absolute path "
                "of a folder that all nodes of the cluster share, or s3:// or gs://BUCKET/PREFIX"
            )


@dataclass(frozen=True)
class Verdict:
    """How a job ended: the exit code for the shell, and the sentence for the person."""

    code: int
    sentence: str


class Cluster:
    """The job server of a Ray cluster's head.

    Raises ConnectionError within seconds when none answers, or one that wants another token.
    """

    def __init__(self, address: str):
        self.address = address if "://" in address else f"http://{address}"
        _probe(self.address)
        use_token_if_there_is_one()
        for name in RAYS_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        # RAY_ADDRESS would go before the address that was asked for.
        with self._errors(), environment({"RAY_API_SERVER_ADDRESS": self.address}):
            self._client = JobSubmissionClient(self.address)

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
        """Show the job's log until its end. Lost connections are taken up again, without showing a line twice.

        Raises ConnectionError when the cluster stays away; the job does not need us.
        """
        shown, heard = 0, time.monotonic()
        while True:
            try:
                shown = asyncio.run(self._show_log(job, shown, show))
                with self._errors():
                    info = self._client.get_job_info(job)
                if info.status.is_terminal():
                    return verdict(info)
                heard = time.monotonic()
            except (ConnectionError, aiohttp.ClientError) as error:
                if time.monotonic() - heard > SILENCE_SECONDS:
                    raise ConnectionError(
                        f"{self.address} has been silent for {SILENCE_SECONDS:g} s: {error}"
                    ) from None
            time.sleep(1)

    async def _show_log(self, job: str, shown: int, show: Say) -> int:
        """Follow the log from its start, of which `shown` characters are known. Returns how many are known then."""
        seen = 0
        with contextlib.suppress(RuntimeError):  # the connection broke; the caller comes again
            async for text in self._client.tail_job_logs(job):
                seen += len(text)
                if seen > shown:
                    show(text[shown - seen :])
                    shown = seen
        return shown

    def _submit(self, job: str, request: Request, folder: Path) -> None:
        pack(request, folder)
        environment: dict[str, Any] = {
            "working_dir": str(folder),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
        }
        if request.pip:
            environment["pip"] = list(request.pip)
        with self._errors():
            self._client.submit_job(
                entrypoint=entrypoint(request),
                submission_id=job,
                runtime_env=environment,
                metadata=_mark(request),
            )

    def _jobs(self) -> list[JobDetails]:
        with self._errors():
            return [job for job in self._client.list_jobs() if job.submission_id]

    def _running(self, request: Request) -> JobDetails | None:
        """The job that works on this sweep in this storage now."""
        mark = _mark(request)
        for job in self._jobs():
            theirs = job.metadata or {}
            if job.status.is_terminal() or any(theirs.get(key) != mark[key] for key in ("sweep", "storage")):
                continue
            if theirs.get("spec") != mark["spec"]:
                raise InputError(
                    f"{job.submission_id} works on a sweep {request.spec.name} with another search; give this one "
                    f"another --name, or stop that: ray job stop --address {self.address} {job.submission_id}"
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
            raise ConnectionError(f"{self.address}: {error}") from error


def entrypoint(request: Request) -> str:
    """The job's command, in the folder that `pack` filled."""
    words = ["run", request.file.name, "--resume", "--storage", request.storage, *request.words]
    return shlex.join(["exec", "python", "-m", "sweeps.cli", *words])


def pack(request: Request, folder: Path) -> None:
    """Put what the job needs into `folder`."""
    for package in (genrec, sweeps):
        [source] = package.__path__
        shutil.copytree(source, folder / Path(source).name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(request.file, folder / request.file.name)
    base = request.spec.base
    if base is not None and base not in recipe_files():
        _copy_base(base, request.file.parent, folder)


def _copy_base(base: str, beside: Path, folder: Path) -> None:
    """The config that the sweep's file names, at the same place relative to it."""
    relative = PurePosixPath(base)
    if relative.is_absolute() or ".." in relative.parts:
        raise InputError(
            f"base: {base}: a job takes a config only from the sweep's own folder or below it; move it there"
        )
    source = beside / base if (beside / base).is_file() else Path(base)
    (folder / relative).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, folder / relative)


def verdict(job: JobDetails) -> Verdict:
    """What `sweeps run` said as it left, or what happened to it instead. Ray itself calls a stopped job no failure."""
    code, name = job.driver_exit_code, job.submission_id
    if job.status == JobStatus.SUCCEEDED:
        return Verdict(ExitCode.DONE, f"{name} is done")
    if code in SENTENCE_CODES:
        return Verdict(code, f"{name} left with exit code {code}")
    if job.status == JobStatus.STOPPED:
        return Verdict(ExitCode.TERMINATED, f"{name} was stopped; the same command continues the sweep")
    if code == 1:
        return Verdict(1, f"{name} left with exit code 1: a bug; its log says where")
    how = f"its process ended by {code}" if code is not None else (job.message or "no reason is known").strip()
    return Verdict(ExitCode.ENVIRONMENT, f"{name} died: {how}; the same command continues the sweep")


def _mark(request: Request) -> dict[str, str]:
    """By what a job is known to work on the same sweep. Anyone who can see the cluster's jobs can read it."""
    return {"sweep": request.spec.name, "storage": request.storage, "spec": request.spec.hash}


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
