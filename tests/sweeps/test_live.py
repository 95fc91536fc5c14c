"""What the live view prints for a log file, and draws for a terminal."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from sweeps.cli import main
from sweeps.finalists import plan_finalists
from sweeps.ledger import FinalistQueue, Ledger
from sweeps.live import LiveView, fitting
from sweeps.spec_file import load_spec
from sweeps.watch import LedgerNews, watch


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    (tmp_path / "s.yaml").write_text("space: {train.learning_rate: {type: grid, values: [1e-3, 2e-3]}}\n")
    with Ledger.create(tmp_path / "s", load_spec(tmp_path / "s.yaml")) as opened:
        yield opened


def play(view: LiveView) -> None:
    """One trial from start to end."""
    view.on_event("started", "trial-0000", {"attempt": 1})
    view.on_event("report", "trial-0000", {"epoch": 1, "ndcg@10": 0.25})
    view.on_event("finished", "trial-0000", {"status": "completed", "duration": 3.0, "reused": ["tokenizer"]})


def test_a_log_file_gets_one_plain_line_an_event(ledger: Ledger) -> None:
    stream = io.StringIO()
    view = LiveView(ledger, Console(file=stream))
    with view.shown():
        play(view)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "trial-0000 epoch 1 ndcg@10 0.2500" in lines[1]
    assert "completed after 3 s (tokenizer reused)" in lines[2]
    assert "\x1b" not in stream.getvalue()


def test_a_pause_is_told_with_its_reason(ledger: Ledger) -> None:
    stream = io.StringIO()
    view = LiveView(ledger, Console(file=stream))
    view.on_event("started", "trial-0000", {"attempt": 1})
    view.on_event("paused", "trial-0000", {"epoch": 3, "reason": "paused at epoch 3: rank 2 of 2"})
    assert stream.getvalue().splitlines()[1].endswith("trial-0000 paused at epoch 3: rank 2 of 2")


def test_a_trial_that_goes_on_after_a_pause_tells_no_epoch_twice(ledger: Ledger) -> None:
    """Its process reports from the first epoch on."""
    stream = io.StringIO()
    view = LiveView(ledger, Console(file=stream))
    for epochs in ((1,), (1, 2)):
        view.on_event("started", "trial-0000", {"attempt": 1})
        for epoch in epochs:
            view.on_event("report", "trial-0000", {"epoch": epoch, "ndcg@10": 0.25})
        view.on_event("paused", "trial-0000", {"epoch": epochs[-1], "reason": "paused"})
    told = [line.split("trial-0000 ")[1] for line in stream.getvalue().splitlines()]
    assert told == ["started", "epoch 1 ndcg@10 0.2500", "paused", "goes on", "epoch 2 ndcg@10 0.2500", "paused"]


def test_restarts_and_avoided_nodes_are_told(ledger: Ledger) -> None:
    """In the plain form, and to someone who comes to look on later."""
    stream = io.StringIO()
    view = LiveView(ledger, Console(file=stream))
    view.on_event("cluster", "", {"CPU": 4.0, "GPU": 0.0, "nodes": 2})
    view.on_event("restarted", "trial-0000", {"reason": "lost with node a; started again"})
    view.on_event("avoided", "b", {"reason": "no disk"})
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("trial-0000 lost with node a; started again")
    assert lines[1].endswith("node b is avoided from now on: no disk")
    assert list(view.rows) == ["trial-0000"]
    ledger.set_fact("avoided", {"b": "no disk"})
    later = LiveView(ledger, Console(file=stream))
    later.catch_up(LedgerNews(ledger).poll())
    assert stream.getvalue().splitlines()[-1].endswith("node b is avoided from now on: no disk")


def drawn(ledger: Ledger, width: int, **options: bool) -> str:
    """The table after one trial has ended and while another waits."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, **options)
    view = LiveView(ledger, console)
    with view.shown():
        play(view)
        view.on_event("waiting", "trial-0001", {})
        with console.capture() as captured:
            console.print(view._render())
    return captured.get()


def test_a_wide_terminal_gets_every_column(ledger: Ledger) -> None:
    ledger.set_fact("cluster", {"CPU": 4.0, "GPU": 0.0})
    text = drawn(ledger, 120, no_color=True)
    assert "s: 1 ended" in text
    assert "0 of 4 CPU" in text
    assert "GPU" not in text
    for word in ("trial-0000", "completed", "0.2500", "best", "reused", "0:03", "trial-0001", "waiting"):
        assert word in text


@pytest.mark.parametrize("width", [20, 30, 40])
def test_a_narrow_terminal_keeps_what_matters_and_no_line_is_wider(ledger: Ledger, width: int) -> None:
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn(ledger, width))
    assert max(map(len, text.splitlines())) <= width
    for word in ("0000", "complete", "waiting") if width > 20 else ("0000", "comp", "wait", "0.2500"):
        assert word in text


def test_the_least_important_columns_go_first_and_then_the_beginning_of_the_names() -> None:
    row = {"trial": "trial-0007", "status": "completed", "epoch": "3", "loss": "0.1234", "best": "0.1234"}
    rows = [row | {"tokenizer": "reused", "time": "0:10"}]
    columns = ["trial", "status", "epoch", "loss", "best", "tokenizer", "time"]
    assert fitting(columns, rows, 80) == columns
    assert fitting(columns, rows, 50) == ["trial", "status", "epoch", "loss", "best", "time"]
    assert fitting(columns, rows, 32) == ["trial", "status", "loss"]
    assert rows[0]["trial"] == "trial-0007"
    assert fitting(columns, rows, 24) == ["trial", "status", "loss"]
    assert rows[0]["trial"] == "0007"


def test_no_color_is_respected(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|38|4[0-7]|48)[0-9;]*m", drawn(ledger, 100))


def test_a_driver_that_nobody_hears_any_more_goes_on(ledger: Ledger) -> None:
    program = (
        "import sys; from pathlib import Path; from sweeps.ledger import Ledger\n"
        "from sweeps.live import DriverConsole, LiveView\n"
        "view = LiveView(Ledger.read(Path(sys.argv[1])), DriverConsole())\n"
        "for number in range(3): view.say(f'line {number}'); sys.stdin.readline()\n"
        "print('told by others', file=sys.stderr); print('done')\n"
    )
    words = [sys.executable, "-c", program, str(ledger.folder)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stderr
    assert process.stdin
    assert process.stderr.readline() == "line 0\n"
    process.stderr.close()
    process.stdin.write("\n" * 3)
    process.stdin.close()
    assert process.stdout
    assert process.stdout.read() == "done\n"
    assert process.wait(timeout=250) == 0


# ---------------------------------------------------------------------- watch


def news_of(reader: LedgerNews) -> list[tuple[str, str]]:
    return [(event, task_id) for event, task_id, _ in reader.poll()]


def test_a_reader_of_the_ledger_gets_the_drivers_events(ledger: Ledger) -> None:
    reader = LedgerNews(Ledger.read(ledger.folder))
    assert news_of(reader) == []
    first, second = ledger.next(), ledger.next()
    assert first
    assert second
    assert news_of(reader) == [("started", first.id), ("started", second.id)]
    ledger.report(first.id, {"epoch": 1, "ndcg@10": 0.25})
    assert [data["ndcg@10"] for _, _, data in reader.poll()] == [0.25]
    ledger.report(first.id, {"epoch": 2, "ndcg@10": 0.5})
    ledger.finish(first.id, "completed", {"reused": ["tokenizer"], "duration": 3.0})
    assert news_of(reader) == [("report", first.id), ("finished", first.id)]
    assert news_of(reader) == []
    late = list(LedgerNews(Ledger.read(ledger.folder)).poll())
    assert [event for event, _, _ in late] == ["started", "report", "report", "finished", "started"]


def test_a_reader_sees_a_trial_pause_go_on_and_not_be_promoted(ledger: Ledger) -> None:
    first, second = ledger.next(), ledger.next()
    assert first
    assert second
    reader = LedgerNews(Ledger.read(ledger.folder))
    news_of(reader)
    for task in (first, second):
        ledger.report(task.id, {"epoch": 1, "ndcg@10": 0.25})
        ledger.pause(task.id, 1)
    paused = [("report", first.id), ("paused", first.id), ("report", second.id), ("paused", second.id)]
    assert news_of(reader) == paused
    assert news_of(reader) == []
    view = LiveView(ledger, Console(file=io.StringIO()))
    view.catch_up(LedgerNews(Ledger.read(ledger.folder)).poll())
    assert {row.status for row in view.rows.values()} == {"paused"}, "also to someone who comes to look on later"
    ledger.report(first.id, {"epoch": 2, "ndcg@10": 0.5})
    ledger.finish(second.id, "stopped", {"reason": "not promoted"})
    assert news_of(reader) == [("started", first.id), ("report", first.id), ("finished", second.id)]


def test_a_reader_gets_the_epochs_of_the_finalists(ledger: Ledger) -> None:
    [plan] = plan_finalists(ledger.spec, [], ledger.spec.finalists)[:1]
    queue = FinalistQueue(ledger, [plan])
    task = queue.next()
    assert task
    queue.report(task.id, {"epoch": 1, "ndcg@10": 0.25})
    events = list(LedgerNews(Ledger.read(ledger.folder)).poll())
    assert [(event, task_id) for event, task_id, _ in events] == [("started", task.id), ("report", task.id)]
    assert events[1][2]["ndcg@10"] == 0.25


def test_watching_ends_when_the_sweep_ends(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    task = ledger.next()
    assert task
    steps = iter(
        [
            lambda: ledger.report(task.id, {"epoch": 1, "ndcg@10": 0.25}),
            lambda: ledger.finish(task.id, "completed", {}),
            lambda: ledger.mark("finished"),
        ]
    )
    monkeypatch.setattr("sweeps.watch.time.sleep", lambda seconds: next(steps)())
    stream = io.StringIO()
    watch(Ledger.read(ledger.folder), Console(file=stream))
    lines = [line[9:] for line in stream.getvalue().splitlines()]
    assert lines[0] == "trial-0000 epoch 1 ndcg@10 0.2500"
    assert lines[1].startswith("trial-0000 completed")
    assert next(steps, None) is None


def test_a_sweep_that_nobody_drives_is_not_waited_for(ledger: Ledger) -> None:
    ledger.close()
    ended = CliRunner().invoke(main, ["status", "s", "--storage", str(ledger.folder.parent), "--watch"])
    assert ended.exit_code == 0, ended.output
    assert "s: interrupted" in ended.output


def test_a_reader_that_has_gone_away_is_no_error(ledger: Ledger) -> None:
    words = ["status", "s", "--storage", str(ledger.folder.parent), "--watch"]
    command = [sys.executable, "-m", "sweeps.cli", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.close()
    ledger.next()
    ledger.mark("finished")
    _, errors = process.communicate(timeout=250)
    assert "Traceback" not in errors
    assert process.returncode in (0, 1)
