"""A trial from config to result, in this process; and the health gate, which ends one before TIGER trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from genrec.artifacts import ArtifactStore
from genrec.pipeline import stage_keys
from sweeps.cli import main
from sweeps.ledger import Ledger
from sweeps.records import Stopped
from sweeps.spec_file import load_spec
from sweeps.trial import run_trial

TINY = Path(__file__).with_name("tiny.yaml")
CONFIG = load_spec(TINY).base_config()


def tried(store: Path, kind: str = "trial", **health: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Result and reports of the tiny config as a trial."""
    reports: list[dict[str, Any]] = []

    def launch(loop: Callable[..., None], argument: dict[str, Any]) -> None:
        loop(argument, reports.append if argument["stage"] == "tiger" else lambda row: None)

    payload = {"config": CONFIG.to_dict(), "seed": 0, "kind": kind, "splits": ["validation"]}
    return run_trial(payload, reports.append, launch, store=str(store), health=health), reports


def test_a_trial_reports_its_epochs_and_returns_what_reports_show(tmp_path: Path) -> None:
    result, reports = tried(tmp_path)
    assert [row["epoch"] for row in reports if "epoch" in row] == [1, 2, 3]
    assert result["validation"]["ndcg@10"] == max(row["ndcg@10"] for row in reports if "epoch" in row)
    assert result["health"] == reports[0]["_notes"]["health"]
    assert len(result["health"]["usage"]) == CONFIG.tokenizer.sem_id_dim


def test_a_trial_that_breaks_a_rule_is_stopped_before_tiger_with_the_figures_and_the_rule(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match=r"^health gate: \d+\.\d% of the items share their tuple \(above 0\.1%\)$"):
        tried(tmp_path, max_collision_rate=0.001, min_usage=0.0)
    with pytest.raises(Stopped, match=r"^health gate: level \d uses [\d.]+% of its codes \(below 100%\)"):
        tried(tmp_path, max_collision_rate=1.0, min_usage=1.0)
    store, keys = ArtifactStore(tmp_path), stage_keys(CONFIG)
    assert store.has("semantic_ids", keys["semantic_ids"])
    assert not list(tmp_path.glob("tiger-*"))


def test_a_finalist_passes_the_gate_because_the_base_is_measured_whatever_it_is(tmp_path: Path) -> None:
    assert "validation" in tried(tmp_path, "finalist", max_collision_rate=0.001)[0]


def test_the_defaults_of_the_gate_stop_nothing(tmp_path: Path) -> None:
    assert tried(tmp_path, **load_spec(TINY).health.model_dump())[0]["validation"]


def test_a_search_of_which_nothing_passes_ends_with_3_and_says_why(ray_cluster: None, tmp_path: Path) -> None:
    spec = yaml.safe_load(TINY.read_text()) | {"health": {"max_collision_rate": 0.001}, "budget": {"trials": 2}}
    (tmp_path / "gated.yaml").write_text(yaml.safe_dump(spec | {"name": "gated"}))
    ended = CliRunner().invoke(main, ["run", str(tmp_path / "gated.yaml"), "--storage", str(tmp_path)])
    assert ended.exit_code == 3, ended.output
    assert "the health gate stopped 2; fix: loosen `health`" in ended.output
    ledger = Ledger.read(tmp_path / "gated")
    assert [record.status for record in ledger.trials()] == ["stopped", "stopped"]
    assert all("(above 0.1%)" in (record.reason or "") for record in ledger.trials())
    assert all(record.health["collision_rate"] > 0.001 for record in ledger.trials())
    assert ledger.best() is None


@pytest.mark.parametrize(("rule", "value"), [("max_collision_rate", 30), ("min_usage", -0.1), ("max_colision", 0.3)])
def test_a_rule_that_is_none_is_refused_before_anything_starts(tmp_path: Path, rule: str, value: float) -> None:
    spec = yaml.safe_load(TINY.read_text()) | {"health": {rule: value}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(spec))
    ended = CliRunner().invoke(main, ["validate", str(tmp_path / "s.yaml")])
    assert ended.exit_code == 2
    assert f"health.{rule}" in ended.output
