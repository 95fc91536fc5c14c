"""A sweep as a Report of Weights & Biases: what it says, and what arrives at a server that stands in for theirs."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from made_up_trials import finished_sweep
from wandb_server import JsonHandler, serving

from sweeps.cli import main
from sweeps.ledger import Ledger
from sweeps.report.document import Commands, Table, Text
from sweeps.report.markdown import block_lines
from sweeps.report.summary import summary
from sweeps.spec_file import load_spec

wr = pytest.importorskip("wandb_workspaces.reports.v2")
TINY = Path(__file__).with_name("tiny.yaml")
KEY = "canary" * 7
LOCAL = ["report.html", "report.md", "trials.csv", "sweep.yaml"]


def told(storage: Path, hostile: tuple[str, ...] = (), *, tracked: bool = True) -> Path:
    """The storage of a finished sweep that was made up, with foreign texts where a real one has some."""
    settings = {"tracking.wandb_logging": tracked, "tracking.wandb_project": "shop"}
    finished_sweep(storage / "told", load_spec(TINY, {"name": "told", "budget.trials": 4}, settings), hostile)
    return storage


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, hostile: tuple[str, ...]) -> Path:
    return told(tmp_path_factory.mktemp("told"), hostile)


@pytest.fixture(scope="module")
def ledger(storage: Path) -> Ledger:
    return Ledger.read(storage / "told")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no netrc and no server from whoever runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_ENTITY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


# -- the blocks -------------------------------------------------------------------------------------------------------


def flat(text: str) -> str:
    """One line of what may be shown."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def test_its_texts_are_those_of_the_local_report_word_for_word(ledger: Ledger) -> None:
    from sweeps.wandb_report import make_report

    blocks = make_report(ledger).blocks
    expected: list[Any] = []
    for section in summary(ledger, ledger.folder / "report"):
        expected.append(wr.H2(text=section.title))
        for block in section.blocks:
            if isinstance(block, Text):
                expected.append((wr.CalloutBlock if block.strong else wr.P)(text=flat(block.text)))
            elif isinstance(block, Table):
                expected.append(wr.MarkdownBlock(text="\n".join(block_lines(block))))
            elif isinstance(block, Commands):
                lines = [f"# {purpose}\n{line}" for purpose, line in block.lines]
                expected.append(wr.CodeBlock(code="\n".join(lines), language=None))
    assert blocks[: len(expected)] == expected
    assert next(block.text for block in blocks if isinstance(block, wr.CalloutBlock)).startswith("trial-0000 wins")
    [code] = [block.code for block in blocks if isinstance(block, wr.CodeBlock)]
    assert "sweeps run " in code
    assert "genrec recommend " in code


def test_its_panels_ask_for_the_sweeps_runs_and_for_what_these_log(ledger: Ledger) -> None:
    from sweeps.wandb_report import make_report

    trials, finalists = [block for block in make_report(ledger, entity="").blocks if isinstance(block, wr.PanelGrid)]
    assert trials.runsets[0].filters == "Metric(\"Group\") == 'told' and Metric(\"JobType\") == 'trial'"
    assert finalists.runsets[0].filters == "Metric(\"Group\") == 'told' and Metric(\"JobType\") == 'finalist'"
    assert {runs.project for grid in (trials, finalists) for runs in grid.runsets} == {"shop"}
    curve, loss, parallel, importance, comparer = trials.panels
    assert (curve.x, curve.y) == ("epoch", ["epoch/ndcg@10"])
    assert (loss.x, loss.y) == ("step", ["train/loss"])
    axes = {column.metric.name: column.log for column in parallel.columns}
    assert axes == {"tokenizer.kind": None, "train.learning_rate": True, "best/ndcg@10": None}
    assert importance.with_respect_to == "best/ndcg@10"
    assert isinstance(comparer, wr.RunComparer)
    scatter = finalists.panels[0]
    assert (scatter.x.name, scatter.y.name) == ("validation/ndcg@10", "test/ndcg@10")
    places = [(p.layout.x, p.layout.y, p.layout.w, p.layout.h) for p in trials.panels]
    assert places == [(0, 0, 12, 10), (12, 0, 12, 10), (0, 10, 24, 10), (0, 20, 12, 10), (12, 20, 12, 10)]


def test_foreign_texts_mean_nothing_where_markdown_is_read(ledger: Ledger) -> None:
    from sweeps.wandb_report import make_report, outline

    tables = [block.text for block in make_report(ledger).blocks if isinstance(block, wr.MarkdownBlock)]
    text = "\n".join(tables)
    assert "script" in text, "the foreign texts are in the tables"
    assert not re.search(r"(?<!\\)<[a-zA-Z/!]", text), "a tag"
    assert not re.search(r"(?<!\\)\]\(", text), "a link"
    assert not re.search(r"(?<!\\)\$", text), "a formula"
    assert not re.search(r"https?://", text), "a bare address becomes a link"
    assert not re.search(r"(?<![\\\w])@\w", text), "a mention"
    assert all(line.isprintable() for line in outline(make_report(ledger)))


def test_an_unfinished_sweep_has_a_report_without_finalists(tmp_path: Path) -> None:
    from sweeps.wandb_report import make_report

    Ledger.create(tmp_path / "new", load_spec(TINY, {"name": "new"}, {"tracking.wandb_logging": True})).close()
    report = make_report(Ledger.read(tmp_path / "new"))
    assert [block.text for block in report.blocks if isinstance(block, wr.H2)] == ["Verdict", "Commands", "Trials"]


# -- the command ------------------------------------------------------------------------------------------------------


def command(storage: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["report", "told", "--storage", str(storage), *words])


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))


@pytest.mark.usefixtures("no_network")
def test_a_dry_run_prints_all_of_it_without_a_key_or_a_network_and_writes_nothing(tmp_path: Path) -> None:
    told(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    ended = command(tmp_path, "--wandb", "--dry-run")
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.startswith("# Sweep told\n")
    for text in (
        "## Verdict",
        "trial-0000 wins: ndcg@10",
        "| setting | base | winner |",
        "genrec recommend ",
        '"value": "told"',
        'Run History Line Plot {"chartTitle": "Validation ndcg@10", "metrics": ["epoch/ndcg@10"], "xAxis": "epoch"}',
        '"accessor": "config:train.value.learning_rate", "log": true',
        '"targetKey": "best/ndcg@10"',
        '"xAxis": "summary:validation/ndcg@10"',
    ):
        assert text in ended.stdout, text
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("no_network")
def test_without_a_key_the_local_report_is_written_and_the_exit_code_is_2(storage: Path, tmp_path: Path) -> None:
    ended = command(storage, "--wandb", "--out", str(tmp_path))
    assert (ended.exit_code, "set WANDB_API_KEY" in ended.output) == (2, True)
    assert all((tmp_path / name).is_file() for name in LOCAL)


def test_without_a_server_the_local_report_is_written_and_the_exit_code_is_4(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    ended = command(storage, "--wandb", "--out", str(tmp_path))
    assert (ended.exit_code, "http://127.0.0.1:9 does not answer" in ended.output) == (4, True)
    assert KEY not in ended.output
    assert all((tmp_path / name).is_file() for name in LOCAL)


def test_without_the_extra_the_local_report_is_written_and_the_fix_is_named(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "sweeps.wandb_report", raising=False)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    ended = command(storage, "--wandb", "--out", str(tmp_path))
    assert (ended.exit_code, "pip install 'genrec-sweeps[wandb]'" in ended.output) == (2, True)
    assert all((tmp_path / name).is_file() for name in LOCAL)


def test_a_sweep_without_runs_there_is_refused_with_the_setting(tmp_path: Path) -> None:
    ended = command(told(tmp_path, tracked=False), "--wandb", "--dry-run")
    assert (ended.exit_code, "tracking.wandb_logging: true" in ended.output) == (2, True)


@pytest.mark.parametrize("words", [["--dry-run"], ["--wandb", "--csv"], ["--wandb", "--markdown"]])
def test_words_that_do_not_go_together_are_refused(storage: Path, words: list[str]) -> None:
    assert command(storage, *words).exit_code == 2


def test_runs_that_were_not_uploaded_are_named_with_the_command_that_does_it(tmp_path: Path) -> None:
    told(tmp_path)
    for number in range(7):
        run = tmp_path / "told" / "tracking" / f"trial-{number:04d}" / "wandb" / f"offline-run-{number}-id{number}"
        run.mkdir(parents=True)
        (run / f"run-id{number}.wandb").touch()
    (run / f"run-id{number}.wandb.synced").touch()
    ended = command(tmp_path, "--wandb", "--dry-run")
    shown = "trial-0000, trial-0001, trial-0002, trial-0003, trial-0004 and 1 more"
    assert f"6 runs ({shown}); upload them by: sweeps sync told --storage {tmp_path}\n" in ended.stderr


# -- publishing -------------------------------------------------------------------------------------------------------


class Stub(ThreadingHTTPServer):
    """Answers the GraphQL requests that publishing consists of, and keeps the Reports that arrive."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reports: list[dict[str, Any]] = []
        self.errors: list[str] = []
        "what the next Reports are refused with"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView(" in query:
            self.reports.append(variables)
            if self.errors:
                return {"errors": [{"message": self.errors.pop()}]}
            project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
            names = ("name", "displayName", "description", "spec")
            view = {"id": "Vmlldzox", "type": "runs", "project": project} | {name: variables[name] for name in names}
            return {"data": {"upsertView": {"view": view, "inserted": True}}}
        if "ProjectInternalId" in query:
            return {"data": {"project": {"id": "p", "internalId": "17"}}}
        if "GetProjects" in query:
            project = {"id": "p", "name": "shop", "entityName": "me", "createdAt": "2026-01-01T00:00:00"}
            edges = [{"node": project | {"isBenchmark": False, "user": None}, "cursor": "x"}]
            return {"data": {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}}
        assert "viewer" in query, query
        return {"data": {"viewer": {"id": "u", "entity": "me", "username": "me"}}}


class Handler(JsonHandler):
    server: Stub

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/graphql":
            self.answer({})  # the client's own telemetry
            return
        request = json.loads(content)
        self.answer(self.server.answer(request["query"], request.get("variables") or {}))


@pytest.fixture
def server() -> Iterator[Stub]:
    with serving(Stub()) as stub:
        yield stub


def run(server: Stub, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": KEY, "HOME": str(home)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, cwd=home, timeout=250, check=False
    )


AGAIN = """
import sys
from pathlib import Path
from sweeps.ledger import Ledger
from sweeps.wandb_report import publish
ledger = Ledger.read(Path(sys.argv[1]))
try:
    publish(ledger)
except ConnectionError as error:
    print(error)
print(publish(ledger))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_arrives_is_what_a_dry_run_prints_and_a_second_time_it_takes_the_place_of_the_first(
    server: Stub, tmp_path: Path, hostile: tuple[str, ...]
) -> None:
    from sweeps.wandb_report import outlined

    storage, home = told(tmp_path / "storage", hostile), tmp_path / "home"
    home.mkdir()
    printed = command(storage, "--wandb", "--dry-run").stdout
    ended = run(server, home, "-m", "sweeps.cli", "report", "told", "--storage", str(storage), "--wandb")
    assert ended.returncode == 0, ended.stderr
    [first] = server.reports
    assert "\n".join(outlined(first["displayName"], first["description"], first["spec"])) + "\n" == printed
    assert (first["entityName"], first["projectName"], first["id"], first["type"]) == ("me", "shop", None, "runs")
    grids = [block for block in json.loads(first["spec"])["blocks"] if block["type"] == "panel-grid"]
    project = {"name": "shop", "entityName": "me", "id": "17"}
    assert [runs["project"] for grid in grids for runs in grid["metadata"]["runSets"]] == [project, project]
    address = f"{server.address}/me/shop/reports/Sweep-told--Vmlldzox"
    assert ended.stdout.splitlines()[-1] == address
    assert all((storage / "told" / "report" / name).is_file() for name in LOCAL)

    server.errors.append("permission denied")
    again = run(server, home, "-c", AGAIN, str(storage / "told"))
    refusal, published = again.stdout.splitlines()
    assert refusal.startswith("Weights & Biases did not take the Report: ")
    assert refusal.endswith("permission denied")
    assert published == address
    assert [report["id"] for report in server.reports] == [None, "Vmlldzox", "Vmlldzox"]
    assert KEY not in ended.stdout + ended.stderr + again.stdout + again.stderr
    encoded = base64.b64encode(f"api:{KEY}".encode())
    contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [content for content in contents if KEY.encode() in content or encoded in content]
