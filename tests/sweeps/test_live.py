"""What the live view prints for a log file, and draws for a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from sweeps.ledger import Ledger
from sweeps.live import LiveView
from sweeps.spec import load_spec


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
    assert "search ends in about" in lines[2]
    assert "\x1b" not in stream.getvalue()


def test_a_pause_is_told_with_its_reason(ledger: Ledger) -> None:
    stream = io.StringIO()
    view = LiveView(ledger, Console(file=stream))
    view.on_event("started", "trial-0000", {"attempt": 1})
    view.on_event("paused", "trial-0000", {"epoch": 3, "reason": "paused at epoch 3: rank 2 of 2"})
    assert stream.getvalue().splitlines()[1].endswith("trial-0000 paused at epoch 3: rank 2 of 2")


@pytest.mark.parametrize("width", [20, 120])
def test_a_terminal_gets_a_table_of_any_width(ledger: Ledger, width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    view = LiveView(ledger, console)
    with view.shown():
        play(view)
        with console.capture() as drawn:
            console.print(view._render())
    assert "s: 1 ended" in drawn.get() or width == 20
    assert "completed" in drawn.get() or width == 20
