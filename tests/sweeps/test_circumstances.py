"""Every session says with which code, versions and data it drives the sweep; other data are refused."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from made_up_trials import SAMPLED, run_one, spec_of

from genrec.errors import InputError
from sweeps import circumstances
from sweeps.circumstances import git_state, note_session
from sweeps.ledger import Ledger


@pytest.fixture
def around(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Circumstances to change between sessions."""
    found = {
        "host": "h",
        "command": "sweeps run x.yaml",
        "seed": 0,
        "git": {"commit": "c" * 40, "difference": None},
        "versions": {"torch": "2.10", "genrec-sweeps": "1"},
        "stages": {"tiger": 1},
        "data": "d1",
    }
    monkeypatch.setattr(circumstances, "circumstances", lambda ledger: {"at": "now", **found})
    return found


def session(folder: Path, **options: Any) -> list[str]:
    said: list[str] = []
    with Ledger.open(folder) as ledger:
        note_session(ledger, said.append, **options)
        run_one(ledger, ledger.next())
    return said


def test_a_session_is_noted_when_it_differs_and_what_differs_is_said(tmp_path: Path, around: dict[str, Any]):
    Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=9)).close()
    assert session(tmp_path / "x") == []
    assert session(tmp_path / "x") == []
    around["versions"] = {"torch": "2.11", "genrec-sweeps": "1"}
    around["git"] = {"commit": "d" * 40, "difference": "e" * 64}
    said = session(tmp_path / "x")
    assert "warning: since the last session versions torch changed from 2.10 to 2.11" in said
    assert any("git commit changed from ccc" in line for line in said)
    ledger = Ledger.read(tmp_path / "x")
    assert [one["versions"]["torch"] for one in ledger.fact("sessions")] == ["2.10", "2.11"]
    assert [record.code for record in ledger.trials()] == ["c" * 12, "c" * 12, "d" * 12 + "+" + "e" * 12]


def test_other_data_are_refused_unless_they_are_accepted(tmp_path: Path, around: dict[str, Any]):
    Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=9)).close()
    session(tmp_path / "x")
    around["data"] = None  # not there: the trials will say so
    session(tmp_path / "x")
    around["data"] = "d2"
    with pytest.raises(InputError, match=r"data are not those of its trials \(dataset d1, now d2\); fix:"):
        session(tmp_path / "x")
    assert len(Ledger.read(tmp_path / "x").trials()) == 2
    session(tmp_path / "x", accept_data=True)
    assert [one["data"] for one in Ledger.read(tmp_path / "x").fact("sessions")] == ["d1", "d2"]


def test_the_real_circumstances_name_code_versions_and_data(tmp_path: Path):
    spec = spec_of(tmp_path, "base: quickstart\n" + SAMPLED, budget__trials=1)
    with Ledger.create(tmp_path / "x", spec) as ledger:
        found = circumstances.circumstances(ledger)
    assert found["versions"]["optuna"].startswith("5.")
    assert found["versions"].keys() == {"python", "torch", "ray", "optuna", "numpy", "genrec-sweeps"}
    assert found["seed"] == 0
    assert found["stages"]["tiger"] >= 1
    assert found["command"]
    assert found["data"]


def test_a_checkout_is_named_by_commit_and_by_what_is_not_committed(tmp_path: Path):
    def git(*words: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    (tmp_path / "__init__.py").write_text("one\n")
    assert git_state(tmp_path) is None
    git("init")
    assert git_state(tmp_path) is None  # a checkout of something else
    git("add", "__init__.py")
    git("commit", "-m", "first")
    clean = git_state(tmp_path)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert clean["difference"] is None
    (tmp_path / "__init__.py").write_text("two\n")
    changed = git_state(tmp_path)["difference"]
    assert changed is not None
    git("commit", "-a", "-m", "second")
    assert git_state(tmp_path)["difference"] is None
    (tmp_path / ".gitignore").write_text("*.log\n")
    git("add", ".gitignore")
    git("commit", "-m", "third")
    (tmp_path / "run.log").write_text("ignored\n")
    assert git_state(tmp_path)["difference"] is None
    (tmp_path / "new.py").write_text("one\n")
    added = git_state(tmp_path)["difference"]
    (tmp_path / "new.py").write_text("two\n")
    edited = git_state(tmp_path)["difference"]
    (tmp_path / "new.py").rename(tmp_path / "other.py")
    renamed = git_state(tmp_path)["difference"]
    assert len({None, added, edited, renamed}) == 4


def test_of_a_large_file_that_git_does_not_know_name_and_size_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    subprocess.run(["git", "-C", str(tmp_path), "init"], check=True, capture_output=True)
    monkeypatch.setattr(circumstances, "MOST_CODE_BYTES", 4)
    (tmp_path / "weights").write_text("12345")
    before = [circumstances._fingerprint(path) for path in circumstances._untracked(tmp_path)]
    (tmp_path / "weights").write_text("54321")
    assert [circumstances._fingerprint(path) for path in circumstances._untracked(tmp_path)] == before
    (tmp_path / "weights").write_text("123456")
    assert [circumstances._fingerprint(path) for path in circumstances._untracked(tmp_path)] != before


def test_other_code_in_a_stage_is_refused_unless_it_is_accepted(tmp_path: Path, around: dict[str, Any]):
    Ledger.create(tmp_path / "its sweeps" / "x", spec_of(tmp_path, SAMPLED, budget__trials=9)).close()
    folder = tmp_path / "its sweeps" / "x"
    session(folder)
    around["stages"] = {"tiger": 2, "a stage that is new": 1}
    with pytest.raises(InputError, match=r"not that of its trials \(stage versions tiger 1 -> 2\); fix:") as refused:
        session(folder)
    command = str(refused.value).partition("all the same: ")[2]
    assert shlex.split(command) == ["sweeps", "resume", "x", "--accept-code", "--storage", str(folder.parent)]
    assert len(Ledger.read(folder).trials()) == 1
    session(folder, accept_code=True)
    assert [one["stages"]["tiger"] for one in Ledger.read(folder).fact("sessions")] == [1, 2]


def test_a_new_reader_of_the_data_is_other_code_and_not_other_data(tmp_path: Path, around: dict[str, Any]):
    Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=9)).close()
    around["stages"] = {"dataset": 1}
    session(tmp_path / "x")
    around |= {"stages": {"dataset": 2}, "data": "d2"}
    with pytest.raises(InputError, match=r"dataset 1 -> 2") as refused:
        session(tmp_path / "x")
    assert "data are not" not in str(refused.value)
    session(tmp_path / "x", accept_code=True)
