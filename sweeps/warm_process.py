"""Give a trial in a reused process what a new process would have given it.

A warm process keeps everything the trial before it touched: random states, thread counts, environment variables, the
current directory, logging handlers. `fresh_process_state` takes a snapshot when it is first called and goes back to it
at the start of every trial, so that the second trial in a process equals the second trial in a new one, bit by bit.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class _Snapshot:
    """What this process was like before its first trial."""

    directory: str
    environment: dict[str, str]
    handlers: tuple[logging.Handler, ...]
    log_level: int
    dtype: torch.dtype
    matmul_precision: str
    deterministic: tuple[bool, bool]
    cudnn: tuple[bool, bool]

    @classmethod
    def take(cls) -> _Snapshot:
        return cls(
            directory=os.getcwd(),
            environment=dict(os.environ),
            handlers=tuple(logging.root.handlers),
            log_level=logging.root.level,
            dtype=torch.get_default_dtype(),
            matmul_precision=torch.get_float32_matmul_precision(),
            deterministic=_determinism(),
            cudnn=(torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        )

    def restore(self) -> None:
        os.chdir(self.directory)
        for name in set(os.environ) - set(self.environment):
            del os.environ[name]
        os.environ.update(self.environment)
        logging.root.handlers[:] = self.handlers  # a trial's handler would go on writing into that trial's log
        logging.root.setLevel(self.log_level)
        torch.set_default_dtype(self.dtype)
        torch.set_default_device(None)
        torch.set_float32_matmul_precision(self.matmul_precision)
        if _determinism() != self.deterministic:  # setting it loads torch's compiler: 70 MB and 800 modules
            torch.use_deterministic_algorithms(self.deterministic[0], warn_only=self.deterministic[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = self.cudnn


def _determinism() -> tuple[bool, bool]:
    """Whether operations must be deterministic, and whether those that are not only warn."""
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


_first: _Snapshot | None = None


def fresh_process_state(seed: int, threads: int) -> None:
    """Reset all process-wide state of Python, NumPy and torch, then seed it.

    Call it in the thread that will run the trial: grad mode is a property of the thread. What it cannot undo: imported
    modules and their globals, other threads, an open CUDA context (its cached memory is freed).

    `seed` any integer (NumPy gets it modulo 2**32); `threads` torch's intra-op threads, 1 or more.
    """
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, got {threads}")
    global _first
    if _first is None:
        _first = _Snapshot.take()
    _first.restore()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise RuntimeError("a process group is still open: a trial must close what it opened")
    _seed_and_clean(seed, threads)


def fresh_worker_state(seed: int, threads: int) -> None:
    """The same start for a worker of a group: a new process that already holds its process group and environment."""
    _seed_and_clean(seed, threads)


def _seed_and_clean(seed: int, threads: int) -> None:
    gc.collect()
    torch.set_grad_enabled(True)
    torch.set_num_threads(threads)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # also every CUDA generator, now or when CUDA starts
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def hide_gpus() -> None:
    """From a trial that asked for none, before it has looked: Ray leaves it all of them."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@contextlib.contextmanager
def output_to(path: Path | None) -> Iterator[Any]:
    """Append what Python code of this process prints to `path`, line by line; None changes nothing."""
    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(path, "a", buffering=1, encoding="utf-8", errors="backslashreplace") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield log
