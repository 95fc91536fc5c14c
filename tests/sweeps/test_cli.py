"""The commands' manners: what they check, print and return. Whole sweeps are in test_whole_sweep.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sweeps.cli import main

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
        "assert not {'torch', 'ray', 'optuna'} & set(sys.modules)"
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


@pytest.mark.parametrize("verb", ["run", "resume", "reevaluate"])
def test_a_wait_that_is_no_time_is_refused_with_what_it_may_be(verb: str) -> None:
    result = CliRunner().invoke(main, [verb, "x", "--wait-for-nodes", "ten"])
    assert result.exit_code == 2
    assert "'--wait-for-nodes': expected a duration such as 45s" in result.stderr
