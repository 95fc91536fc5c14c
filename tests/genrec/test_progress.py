"""A bar on a terminal, lines in a log, silence from other ranks."""

from __future__ import annotations

import io
import logging
import os
import pty
import subprocess
import sys

import pytest
import torch

from genrec import progress
from genrec.progress import Pace, TrainingStep, training_progress


def step(number: int, total: int = 100) -> TrainingStep:
    return TrainingStep(
        epoch=1 + (number - 1) // 10,
        epochs=10,
        step=number,
        total_steps=total,
        learning_rate=1e-3,
        targets=256,
        loss_sum=torch.tensor(256 * 3.5, dtype=torch.float64),
    )


def test_the_line_says_loss_rate_speed_and_what_is_left(monkeypatch):
    clock = iter([0.0, 50.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    pace = Pace()
    for number in range(11, 61):
        pace.count(step(number))
    assert pace.describe(step(60)) == "loss 3.500  lr 1.0e-03  256 targets/s  0:40 left"


def test_time_left_of_hours_is_written_as_hours(monkeypatch):
    clock = iter([0.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    pace = Pace()
    pace.count(step(1))
    assert pace.describe(step(1, total=50)).endswith("1:21:40 left")


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (54, "loss 3.500  lr 1.0e-03  256 targets/s  0:00 left"),
        (40, "loss 3.500  lr 1.0e-03  0:00 left"),
        (25, "loss 3.500  0:00 left"),
        (9, "0:00 left"),
        (3, "0:00 left"),
    ],
)
def test_what_is_left_is_said_even_where_there_is_little_room(monkeypatch, width: int, line: str):
    clock = iter([0.0, 1.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    pace = Pace()
    pace.count(step(1, total=1))
    assert pace.describe(step(1, total=1), width) == line


def test_a_log_gets_a_line_now_and_then(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO), training_progress("tiger") as show:
        for number in range(1, 4):
            show(step(number))
    assert len(caplog.messages) == 3
    assert caplog.messages[1].startswith("tiger: epoch 1/10  step 2/100  loss 3.500")


def test_short_epochs_leave_the_log_to_their_own_lines(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO), training_progress("tiger") as show:
        for number in range(1, 50):
            show(step(number))
    assert caplog.messages == []


def test_other_ranks_show_nothing(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO), training_progress("tiger", show=False) as show:
        show(step(1))
    assert caplog.messages == []


TERMINAL = """
import logging, sys, time, torch
from genrec.progress import TrainingStep, training_progress
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
before = logging.root.handlers[0].stream
with training_progress("tiger") as show:
    for number in range(1, 6):
        show(TrainingStep(1, 2, number, 5, 1e-3, 256, torch.tensor(256 * 3.5)))
        time.sleep(0.25)
        if number == 3:
            logging.info("a line of the log")
assert logging.root.handlers[0].stream is before is sys.stderr
"""


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
def test_on_a_terminal_a_bar_shows_and_log_lines_stand_above_it():
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", TERMINAL], stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    assert process.wait(timeout=100) == 0
    text = shown.decode()
    assert "tiger 1/2" in text
    assert "loss 3.500  lr 1.0e-03" in text
    assert "a line of the log\r\n" in text
