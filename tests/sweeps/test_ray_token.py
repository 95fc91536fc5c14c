"""The token of the Rays that we start: who can read it, and that there is no way around it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps import ray_token


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, an environment without a word about tokens, and Ray's own reading of it left alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (ray_token.MODE, ray_token.TOKEN, ray_token.TOKEN_PATH):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(ray_token, "Config", SimpleNamespace(initialize=lambda text: None))
    return tmp_path


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_token_is_for_its_owner_alone(home: Path) -> None:
    ray_token.require_token()
    path = home / ".ray" / "auth_token"
    assert (mode_of(path.parent), mode_of(path)) == (0o700, 0o600)
    assert len(path.read_text()) == 64
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_token_that_ray_left_open_is_closed_and_kept(home: Path) -> None:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o755)
    path.write_text("a" * 64)
    path.chmod(0o644)
    ray_token.require_token()
    assert (mode_of(path.parent), mode_of(path)) == (0o700, 0o600)
    assert path.read_text() == "a" * 64


def test_processes_that_start_together_have_one_token(home: Path) -> None:
    program = "from sweeps.ray_token import require_token, token_file; require_token(); print(token_file().read_text())"
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    tokens = {process.communicate(timeout=120)[0].strip() for process in both}
    assert len(tokens) == 1
    assert len(tokens.pop()) == 64
    assert [path.name for path in (home / ".ray").iterdir()] == ["auth_token"]


def test_without_a_home_the_token_lives_in_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setenv(ray_token.TOKEN, "")
    ray_token.require_token()
    assert len(os.environ[ray_token.TOKEN]) == 64


def test_a_ray_without_a_token_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ray_token.MODE, "disabled")
    with pytest.raises(ValueError, match="RAY_AUTH_MODE=disabled.*fix: unset RAY_AUTH_MODE"):
        ray_token.require_token()


def test_the_sessions_folder_is_closed_to_others(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(home))
    (home / f"sweeps-ray-{os.getuid()}").mkdir(mode=0o777)
    assert mode_of(ray_token.private_folder()) == 0o700


def test_a_sessions_folder_that_someone_else_put_there_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(home))
    (home / "elsewhere").mkdir()
    (home / f"sweeps-ray-{os.getuid()}").symlink_to(home / "elsewhere")
    with pytest.raises(OSError, match="belongs to another user"):
        ray_token.private_folder()
