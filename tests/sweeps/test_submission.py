"""What travels with a job, its command, and what its end means. Real jobs are in tests/cluster/test_jobs.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus

from sweeps.quick_grid import SOURCE, grid_yaml
from sweeps.spec_file import load_spec, parse_spec
from sweeps.submission import Request, entrypoint, pack, verdict

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
        "import genrec; from sweeps.spec_file import load_spec; print(genrec.__file__, load_spec('sweep.yaml').hash)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "elsewhere", env={}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(tmp_path / "elsewhere" / "genrec" / "__init__.py"), asked.spec.hash]
    assert entrypoint(asked) == (
        "exec python -m sweeps.cli run sweep.yaml --resume --revise --storage /storage/runs --set train.epochs=1"
    )


def test_a_config_from_outside_the_sweeps_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {epochs: 2}\n")
    (tmp_path / "searches").mkdir()
    file = tmp_path / "searches" / "sweep.yaml"
    file.write_text(f"base: ../base.yaml\n{TINY.read_text()}")
    (tmp_path / "parcel").mkdir()
    with pytest.raises(ValueError, match="a config only from the sweep's own folder"):
        pack(request(file), tmp_path / "parcel")


def test_a_gin_file_travels_with_what_it_includes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found as gin finds it: from the current folder, or from beside the file that includes it."""
    home = tmp_path / "home"
    (home / "configs" / "shared").mkdir(parents=True)
    (home / "configs" / "m.gin").write_text('include "shared/common.gin"\ninclude "here.gin"\n')
    (home / "configs" / "shared" / "common.gin").write_text('include "deep.gin"\n')
    (home / "configs" / "shared" / "deep.gin").write_text("train.learning_rate=0.003\n")
    (home / "here.gin").write_text("train.batch_size=7\n")
    (home / "sweep.yaml").write_text(f"base: configs/m.gin\n{TINY.read_text()}")
    (tmp_path / "parcel").mkdir()
    monkeypatch.chdir(home)
    asked = request(Path("sweep.yaml"))
    pack(asked, tmp_path / "parcel")
    shutil.rmtree(home)
    monkeypatch.chdir(tmp_path / "parcel")
    assert load_spec("sweep.yaml").hash == asked.spec.hash


def test_two_files_of_one_name_do_not_travel_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "configs").mkdir(parents=True)
    (home / "configs" / "m.gin").write_text('include "m.gin"\n')
    (home / "m.gin").write_text("train.batch_size=7\n")
    (home / "configs" / "sweep.yaml").write_text(f"base: m.gin\n{TINY.read_text()}")
    (tmp_path / "parcel").mkdir()
    monkeypatch.chdir(home)
    with pytest.raises(ValueError, match="include 'm.gin': another file .* is called m.gin, too"):
        pack(request(Path("configs/sweep.yaml")), tmp_path / "parcel")


def test_a_grid_travels_as_the_words_that_describe_it() -> None:
    spec = parse_spec(grid_yaml(None, None, ["train.learning_rate=0.1,0.2"], [], None), SOURCE)
    asked = Request(spec, None, ["--grid", "train.learning_rate=0.1,0.2"], "/storage/runs")
    assert entrypoint(asked).endswith(
        " run --resume --revise --storage /storage/runs --grid train.learning_rate=0.1,0.2"
    )


@pytest.mark.parametrize(
    ("storage", "same"),
    [("/storage/runs/", "/storage/runs"), ("//storage/./runs", "/storage/runs"), ("s3://bucket/x/", "s3://bucket/x")],
)
def test_one_storage_has_one_spelling(storage: str, same: str) -> None:
    assert request(TINY, storage=storage).mark == request(TINY, storage=same).mark
    assert f"--storage {same}" in entrypoint(request(TINY, storage=storage))


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
