"""Every session says with which code, versions and data it drives the sweep; other data are refused."""

from __future__ import annotations

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
    assert git_state(tmp_path)["difference"] is not None
