"""What travels with a job, what it is called, and what its end means. Real jobs are in tests/cluster/test_jobs.py."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus

from sweeps.spec import load_spec
from sweeps.submission import Cluster, Request, entrypoint, pack, verdict

TINY = Path(__file__).with_name("tiny.yaml")


def request(file: Path, **fields: Any) -> Request:
    return Request(spec=load_spec(file), file=file, **{"storage": "/storage/runs", **fields})


def test_code_sweep_and_config_travel_and_nothing_else(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "configs").mkdir(parents=True)
    for secret in (".env", "data.npy", "configs/key.pem"):
        (home / secret).write_text("secret")
    (home / "configs" / "base.yaml").write_text("train: {epochs: 2}\n")
    (home / "sweep.yaml").write_text(f"base: configs/base.yaml\n{TINY.read_text()}")
    (tmp_path / "parcel").mkdir()
    asked = request(home / "sweep.yaml", words=["--set", "train.epochs=1"])
    pack(asked, tmp_path / "parcel")
    files = {path.relative_to(tmp_path / "parcel") for path in (tmp_path / "parcel").rglob("*") if path.is_file()}
    assert {str(file) for file in files if file.parts[0] not in ("genrec", "sweeps")} == {
        "sweep.yaml",
        "configs/base.yaml",
    }
    assert not any("__pycache__" in file.parts for file in files)

    shutil.move(tmp_path / "parcel", tmp_path / "elsewhere")
    program = (
        "import sys, genrec; from sweeps.spec import load_spec; print(genrec.__file__, load_spec('sweep.yaml').hash)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "elsewhere", env={}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(tmp_path / "elsewhere" / "genrec" / "__init__.py"), asked.spec.hash]
    assert entrypoint(asked) == (
        "exec python -m sweeps.cli run sweep.yaml --resume --storage /storage/runs --set train.epochs=1"
    )


def test_a_config_from_outside_the_sweeps_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {epochs: 2}\n")
    (tmp_path / "searches").mkdir()
    file = tmp_path / "searches" / "sweep.yaml"
    file.write_text(f"base: ../base.yaml\n{TINY.read_text()}")
    (tmp_path / "parcel").mkdir()
    with pytest.raises(ValueError, match="a config only from the sweep's own folder"):
        pack(request(file), tmp_path / "parcel")


def test_a_relative_storage_is_refused() -> None:
    with pytest.raises(ValueError, match="--storage runs: .* absolute path"):
        request(TINY, storage="runs")


@pytest.mark.parametrize(
    ("status", "code", "leaves"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, 3, 3),
        (JobStatus.FAILED, 143, 143),
        (JobStatus.FAILED, 1, 1),
        (JobStatus.FAILED, -9, 4),  # killed, for example for its memory
        (JobStatus.FAILED, None, 4),  # the head's process that watched it has died
        (JobStatus.STOPPED, None, 143),  # for Ray's own command this is no failure
    ],
)
def test_the_exit_code_says_what_became_of_the_sweep(status: JobStatus, code: int | None, leaves: int) -> None:
    job = JobDetails(type="SUBMISSION", submission_id="tiny-1", status=status, entrypoint="x", driver_exit_code=code)
    end = verdict(job)
    assert end.code == leaves
    assert "tiny-1" in end.sentence


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
        mark = {"sweep": request.spec.name, "storage": request.storage, "spec": request.spec.hash}
        self.jobs.append(details(job, JobStatus.RUNNING, mark))


def details(name: str, status: JobStatus, metadata: dict[str, str]) -> JobDetails:
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
