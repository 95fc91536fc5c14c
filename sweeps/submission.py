"""A sweep as a job of a Ray cluster: what travels with it, its command, and what its end means.

A job is one attempt at a sweep; all of them run `sweeps run FILE --resume`, and the ledger in the storage knows what is
done. So submitting again joins the job that runs, or starts the next attempt where the last one ended. What travels is
the two packages as they are installed here, the sweep's file and the config that it names: no data, results or keys.
`sweeps.job_server` takes it there.
"""

from __future__ import annotations

import posixpath
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ray.job_submission import JobDetails, JobStatus

import genrec
import sweeps
from genrec.config import recipe_files
from genrec.errors import ExitCode, InputError
from genrec.gin_syntax import parse_gin
from genrec.object_store import checked_storage, is_url
from sweeps.spec import SweepSpec

SENTENCE_CODES = tuple(ExitCode)
"exit codes of `sweeps run` that say what became of the sweep"


@dataclass(frozen=True)
class Request:
    """What to run: `spec` as it was read from `file`, with the words of the command line that changed it; or, without a
    file, as the words alone describe it."""

    spec: SweepSpec
    file: Path | None
    words: Sequence[str] = ()
    storage: str = ""
    pip: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "storage", _shared_storage(self.storage))

    @property
    def mark(self) -> dict[str, str]:
        """By what a job is known to work on the same sweep. Anyone who can see the cluster's jobs can read it."""
        return {"sweep": self.spec.name, "storage": self.storage, "spec": self.spec.hash}


def _shared_storage(storage: str) -> str:
    """The storage in the one spelling by which jobs are compared."""
    storage = checked_storage(storage)
    if is_url(storage):
        return storage
    if not PurePosixPath(storage).is_absolute():
        raise InputError(
            f"--storage {storage}: a job works in a folder that is deleted after it; give the absolute path "
            "of a folder that all nodes of the cluster share, or s3:// or gs://BUCKET/PREFIX"
        )
    return "/" + posixpath.normpath(storage).lstrip("/")


@dataclass(frozen=True)
class Verdict:
    """How a job ended: the exit code for the shell, and the sentence for the person."""

    code: int
    sentence: str


def entrypoint(request: Request) -> str:
    """The job's command, in the folder that `pack` filled."""
    file = [request.file.name] if request.file is not None else []
    words = ["run", *file, "--resume", "--revise", "--storage", request.storage, *request.words]
    return shlex.join(["exec", "python", "-m", "sweeps.cli", *words])


def pack(request: Request, folder: Path) -> None:
    """Put what the job needs into `folder`."""
    for package in (genrec, sweeps):
        [source] = package.__path__
        shutil.copytree(source, folder / Path(source).name, ignore=shutil.ignore_patterns("__pycache__"))
    if request.file is not None:
        shutil.copy(request.file, folder / request.file.name)
    base = request.spec.base
    if base is not None and base not in recipe_files():
        beside = request.file.parent / base if request.file is not None else Path(base)
        _pack_base(base, beside if beside.is_file() else Path(base), folder)


def _pack_base(base: str, source: Path, folder: Path) -> None:
    """The config that the sweep names, and the gin files that it includes, where they are found from there."""
    places = {source: PurePosixPath(base)}
    _copy(f"base: {base}", source, places[source], folder)
    if source.suffix != ".gin":
        return
    for include in parse_gin(source).includes:
        inner = PurePosixPath(include.name)
        place = inner if include.found == Path(inner) else places[include.by].parent / inner
        _copy(f"{include.by}: include {include.name!r}", include.found, place, folder)
        places[include.found] = place


def _copy(said: str, source: Path, place: PurePosixPath, folder: Path) -> None:
    """`source` to `place` in the job's folder."""
    if place.is_absolute() or ".." in place.parts:
        raise InputError(
            f"{said}: a job takes a config only from the sweep's own folder or the current one, or below; move it there"
        )
    target = folder / place
    if target.exists() and target.read_bytes() != source.read_bytes():
        raise InputError(f"{said}: another file that travels with the job is called {place}, too; rename one of them")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


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
