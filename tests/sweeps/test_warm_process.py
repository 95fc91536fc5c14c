"""A second trial in a process starts as the first did."""

from __future__ import annotations

import logging
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sweeps.warm_process import fresh_process_state, output_to


@pytest.fixture(autouse=True)
def _put_back() -> None:
    threads = torch.get_num_threads()
    yield
    fresh_process_state(0, threads)


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_all_generators_start_again_from_the_seed() -> None:
    fresh_process_state(7, 1)
    first = drawn()
    drawn()
    fresh_process_state(7, 1)
    assert drawn() == first
    fresh_process_state(8, 1)
    assert drawn() != first


def test_everything_that_a_trial_may_turn_is_turned_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.warm_process._first", None)
    monkeypatch.setenv("KEPT", "before")
    fresh_process_state(0, 1)
    before, handlers = os.getcwd(), list(logging.root.handlers)

    os.chdir(tmp_path)
    os.environ["KEPT"], os.environ["ADDED"] = "after", "1"
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.set_num_threads(2)
    logging.root.addHandler(logging.NullHandler())
    fresh_process_state(0, 1)

    assert os.getcwd() == before
    assert os.environ["KEPT"] == "before"
    assert "ADDED" not in os.environ
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert torch.get_num_threads() == 1
    assert logging.root.handlers == handlers


def test_thread_count_must_be_positive() -> None:
    with pytest.raises(ValueError, match="threads must be 1 or more"):
        fresh_process_state(0, 0)


def test_output_is_appended_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "trial.log"
    with output_to(path):
        print("one")
        assert path.read_text() == "one\n"
    with output_to(path):
        print("two", file=sys.stderr)
    assert path.read_text() == "one\ntwo\n"
