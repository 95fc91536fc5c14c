"""Weights & Biases in a sweep, without a network: what was written is read back from the files, record by record."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from genrec import uploads
from genrec.uploads import offline_runs
from sweeps.cli import main
from sweeps.ledger import Ledger
from sweeps.records import finalist_id
from sweeps.space import value_at

pytest.importorskip("wandb")
TINY = Path(__file__).with_name("tiny.yaml")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BLOCK, HEAD = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """One `.wandb` file."""

    name: str = ""
    id: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: set[str] = field(default_factory=set)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    "metric, or a pattern of metrics -> what it is drawn over"
    artifacts: dict[str, set[str]] = field(default_factory=dict)
    "name -> files"
    exit_code: int | None = None


def read_runs(folder: Path) -> list[OfflineRun]:
    """All runs below `folder`, oldest first."""
    files = sorted(folder.rglob("offline-run-*/run-*.wandb"), key=lambda path: path.parent.name)
    return [read_run(path) for path in files]


def read_run(path: Path) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2

    run = OfflineRun()
    for content in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            said = record.run
            run.name, run.id, run.project = said.display_name, said.run_id, said.project
            run.group, run.job_type, run.tags = said.run_group, said.job_type, set(said.tags)
            run.config |= {item.key: json.loads(item.value_json) for item in said.config.update}
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "metric":
            name = record.metric.name or record.metric.glob_name
            run.axes[name] = record.metric.step_metric
        elif kind == "artifact":
            files = {entry.path for entry in record.artifact.manifest.contents}
            run.artifacts[record.artifact.name] = files
        elif kind == "request" and record.request.HasField("log_artifact"):
            artifact = record.request.log_artifact.artifact
            run.artifacts[artifact.name] = {entry.path for entry in artifact.manifest.contents}
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    """The payloads of the log; the file begins with seven bytes of its own, within the first block."""
    assert data[:4] == b":W&B"
    place, found = HEAD, b""
    while place + HEAD <= len(data):
        if BLOCK - place % BLOCK < HEAD:
            place += BLOCK - place % BLOCK  # no head fits into the rest of a block
            continue
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        kind = data[place + 6]
        if kind == 0:
            place += BLOCK - place % BLOCK
            continue
        found = (b"" if kind in (FULL, FIRST) else found) + data[place + HEAD : place + HEAD + length]
        place += HEAD + length
        if kind in (FULL, LAST):
            yield found


@pytest.fixture(scope="module")
def storage(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a finished sweep whose trials were tracked, with a key in the environment of its driver."""
    storage = tmp_path_factory.mktemp("tracked")
    settings = yaml.safe_load(TINY.read_text()) | {"name": "tracked", "budget": {"trials": 3}}
    settings["finalists"] = {"top_k": 1, "seeds": 2}
    settings["health"] = {"max_collision_rate": 0.9}
    settings["space"]["tokenizer.kind"] = {"type": "grid", "values": ["rqvae", "rkmeans"]}
    settings["set"] |= {
        "tracking.wandb_logging": True,
        "tracking.wandb_project": "shop",
        "tracking.wandb_tags": ["mine"],
        "tracking.wandb_log_interval": 1,
        "tracking.wandb_artifact": True,
    }
    (storage / "s.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", "canary" * 7)
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        ended = CliRunner().invoke(main, ["run", str(storage / "s.yaml"), "--storage", str(storage)])
    assert ended.exit_code == 0, ended.output
    return storage


@pytest.fixture(scope="module")
def runs(storage: Path) -> list[OfflineRun]:
    return read_runs(storage / "tracked" / "tracking")


def test_every_trial_finalist_and_trained_tokenizer_is_one_run_of_the_sweeps_group(
    storage: Path, runs: list[OfflineRun]
) -> None:
    ledger = Ledger.read(storage / "tracked")
    trials = {record.id for record in ledger.trials()}
    finalists = {finalist_id(run.finalist, run.seed) for run in ledger.finalist_runs()}
    by_gradient = [record for record in ledger.trials() if record.params["tokenizer.kind"] == "rqvae"]
    tokenizers = {f"tokenizer-{record.artifacts['tokenizer']}" for record in by_gradient}
    names = {run.name for run in runs}
    assert names == trials | finalists | tokenizers
    assert {(run.project, run.group, run.job_type) for run in runs} == {
        ("shop", "tracked", kind) for kind in ("trial", "finalist", "tokenizer")
    }
    assert all(run.name.startswith(run.job_type) and "mine" in run.tags for run in runs)
    assert len({(run.name, run.id) for run in runs}) == len(names) == len({run.id for run in runs})


def test_a_trials_run_has_its_config_steps_epochs_health_and_best(storage: Path, runs: list[OfflineRun]) -> None:
    for record in Ledger.read(storage / "tracked").trials():
        [run] = [run for run in runs if run.name == record.id]
        assert run.config["train"]["learning_rate"] == record.params["train.learning_rate"]
        assert (run.axes["train/*"], run.axes["epoch/*"]) == ("step", "epoch")
        epochs = [(row["epoch"], row["epoch/ndcg@10"]) for row in run.history if "epoch" in row]
        assert epochs == [(row["epoch"], row["ndcg@10"]) for row in record.epochs]
        assert [row["step"] for row in run.history if "step" in row] == list(range(1, len(run.history) - 2))
        assert run.summary["health/collision_rate"] == record.health["collision_rate"]
        assert run.summary["health/usage_1"] == record.health["usage"][0]
        assert run.summary["best/ndcg@10"] == record.value
        assert run.exit_code == 0


def test_a_finalists_figures_join_its_own_run_and_the_winners_bundle_is_there(
    storage: Path, runs: list[OfflineRun]
) -> None:
    ledger = Ledger.read(storage / "tracked")
    for found in ledger.finalist_runs():
        mine = [run for run in runs if run.name == finalist_id(found.finalist, found.seed)]
        summary = {key: value for run in mine for key, value in run.summary.items()}
        assert summary["test/ndcg@10"] == found.result["test"]["ndcg@10"]
    [files] = [files for run in runs for files in run.artifacts.values()]
    bundle = storage / "tracked" / "bundle"
    assert files == {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}


def test_what_the_panels_of_the_sweeps_report_ask_for_is_what_the_runs_have(
    storage: Path, runs: list[OfflineRun]
) -> None:
    wr = pytest.importorskip("wandb_workspaces.reports.v2")
    from sweeps.wandb_report import make_report

    report = make_report(Ledger.read(storage / "tracked"))
    trials, finalists = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
    assert report.project == trials.runsets[0].project == runs[0].project
    curve, loss, parallel, importance, _ = trials.panels
    for run in (run for run in runs if run.job_type == "trial"):
        assert f"'{run.group}'" in trials.runsets[0].filters
        rows = [set(row) for row in run.history]
        for plot in (curve, loss):
            assert any({plot.x, *plot.y} <= row for row in rows), plot.y
        *settings, figure = [column.metric.name for column in parallel.columns]
        assert all(value_at(run.config, path) is not None for path in settings)
        assert figure == importance.with_respect_to
        assert figure in run.summary
    for name in {run.name for run in runs if run.job_type == "finalist"}:
        summary = {key for run in runs if run.name == name for key in run.summary}
        assert {finalists.panels[0].x.name, finalists.panels[0].y.name} <= summary


def test_the_key_is_in_no_file(storage: Path) -> None:
    files = [path for path in storage.rglob("*") if path.is_file()]
    assert not [path for path in files if b"canarycanary" in path.read_bytes()]


def sync(storage: Path) -> Any:
    return CliRunner().invoke(main, ["sync", "tracked", "--storage", str(storage)])


def test_without_a_key_or_a_server_nothing_is_uploaded_and_the_exit_code_says_which(
    storage: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    ended = sync(storage)
    assert (ended.exit_code, "set WANDB_API_KEY" in ended.output) == (2, True)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    ended = sync(storage)
    assert (ended.exit_code, "does not answer" in ended.output) == (4, True)


def test_what_has_arrived_is_not_sent_again_and_what_has_not_is(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wandb sync` stands aside: its mark is all that it is known by."""
    sent: list[list[Path]] = []
    refused = set(offline_runs(storage)[:1])

    def send(words: list[str], **options: Any) -> None:
        sent.append([Path(word) for word in words[4:]])
        for run in set(sent[-1]) - refused:
            next(run.glob("*.wandb")).with_suffix(".wandb.synced").touch()

    monkeypatch.setattr(uploads, "require_server", lambda: None)
    monkeypatch.setattr(subprocess, "run", send)
    everything = offline_runs(storage)
    ended = sync(storage)
    assert (ended.exit_code, f"1 of {len(everything)} runs did not arrive" in ended.output) == (4, True)
    assert sorted(run for part in sent for run in part) == sorted(everything)
    for part in sent:
        ids = [run.name.rsplit("-", 1)[1] for run in part]
        assert len(ids) == len(set(ids)), "two folders of one run at the same time"
    refused.clear()
    assert sync(storage).exit_code == 0
    assert sent[-1] == everything[:1]
    assert "nothing to upload" in sync(storage).output
