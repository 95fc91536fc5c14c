"""The commands' manners: what they check, print and return. Whole sweeps are in test_whole_sweep.py."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sweeps.cli import main
from sweeps.errors import LedgerError, SweepDriven, SweepExists, SweepFailed
from sweeps.folders import has_sweep, sweeps_command
from sweeps.interruption import Interrupted

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_search_space_is_valid(path: Path) -> None:
    result = CliRunner().invoke(main, ["validate", str(path)])
    assert result.exit_code == 0, result.output
    assert f"a valid sweep named {path.stem}" in result.output


def test_validate_reports_all_faults_with_their_lines_and_leaves_2(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("space:\n  train.learning_rte: {type: float, low: 1, high: 2}\nmetrik: ndcg@10\n")
    result = CliRunner().invoke(main, ["validate", str(path)])
    assert result.exit_code == 2
    assert f"{path}:2" in result.output
    assert "did you mean 'train.learning_rate'" in result.output
    assert f"{path}:3" in result.output
    assert "Traceback" not in result.output


def test_validate_loads_neither_torch_nor_ray() -> None:
    program = (
        "import sys; from sweeps.cli import main\n"
        f"try: main(['validate', {str(ROOT / 'search_spaces' / 'quickstart.yaml')!r}])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'torch', 'ray', 'optuna'} & set(sys.modules)\n"
        "import time; assert time.process_time() < 2, time.process_time()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_command_is_answered_with_the_nearest() -> None:
    result = CliRunner().invoke(main, ["rezume", "x"])
    assert result.exit_code == 2
    assert "resume" in result.output


@pytest.mark.parametrize("name", ["nope", "../x", ""])
def test_an_unknown_sweep_is_refused(tmp_path: Path, name: str) -> None:
    for verb in ("resume", "status"):
        result = CliRunner().invoke(main, [verb, name, "--storage", str(tmp_path)])
        assert result.exit_code == 2
        assert "no sweep" in result.output


def test_a_dead_ray_address_is_named_within_seconds(tmp_path: Path) -> None:
    spec = ROOT / "search_spaces" / "quickstart.yaml"
    words = ["run", str(spec), "--storage", str(tmp_path), "--address", "127.0.0.1:9"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 4
    assert "127.0.0.1:9" in result.output
    assert "nothing recorded is lost; continue with: the same command" in result.output
    assert not has_sweep("quickstart", tmp_path)


def test_data_that_are_named_and_not_there_are_refused_unless_a_cluster_has_them(tmp_path: Path) -> None:
    spec = str(ROOT / "search_spaces" / "beauty.yaml")
    named = ["--set", f"dataset.dataset_folder={tmp_path / 'typo'}", "--storage", str(tmp_path / "runs")]
    for verb in ("validate", "run"):
        result = CliRunner(env={"RAY_ADDRESS": ""}).invoke(main, [verb, spec, *named])
        assert result.exit_code == 2, result.output
        assert f"{tmp_path / 'typo'}/sequential_data.txt: no such file" in result.output
        assert "item_emb_minilm.f16.npy: no such file" in result.output
    assert not (tmp_path / "runs").exists()
    assert CliRunner().invoke(main, ["validate", spec, *named, "--address", "head:6379"]).exit_code == 0


def test_what_a_sweep_leaves_open_and_this_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    spec = str(ROOT / "search_spaces" / "seed_grid.yaml")
    result = CliRunner(env={"RAY_ADDRESS": ""}).invoke(main, ["validate", spec])
    assert result.exit_code == 0
    assert "warning: not on this machine: dataset.dataset_folder dataset/amazon" in result.output
    assert "warning: not on this machine: resources: a trial needs 1 x (2 CPU, 1 GPU)" in result.output
    assert "warning" not in CliRunner().invoke(main, ["validate", spec, "--address", "auto"]).output


def test_a_command_to_copy_is_quoted_and_names_the_storage_unless_it_is_the_usual_one() -> None:
    assert sweeps_command("resume", "x", storage="runs") == "sweeps resume x"
    command = sweeps_command("report", "x", "--wandb", storage="/my files/$HOME")
    assert shlex.split(command) == ["sweeps", "report", "x", "--wandb", "--storage", "/my files/$HOME"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SweepFailed("none"), 3),
        (SweepExists("words that say nothing"), 2),
        (SweepDriven("words that say nothing"), 2),
        (LedgerError("what exists; is being driven"), 4),
        (ConnectionError("gone"), 4),
        (Interrupted(signal.SIGHUP), 129),
        (KeyboardInterrupt(), 130),
        (Interrupted(signal.SIGTERM), 143),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_exit_code_is_that_of_the_kind_of_error(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def load(name: str, storage: str) -> None:
        raise error

    monkeypatch.setattr("sweeps.api.load", load)
    result = CliRunner().invoke(main, ["status", "x", "--storage", "a b"])
    assert result.exit_code == code
    if code not in (2, 3) and not isinstance(error, LedgerError):
        assert "continue with: sweeps status x --storage 'a b'" in result.output


@pytest.mark.parametrize("verb", ["run", "resume", "reevaluate"])
def test_a_wait_that_is_no_time_is_refused_with_what_it_may_be(verb: str) -> None:
    result = CliRunner().invoke(main, [verb, "x", "--wait-for-nodes", "ten"])
    assert result.exit_code == 2
    assert "'--wait-for-nodes': expected a duration such as 45s" in result.stderr
