"""The search of a small sweep, two trials at a time, and how long it took: what several benchmarks compare."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweeps.ledger import Ledger, TrialRecord
from sweeps.ray_tune import run_queue
from sweeps.spec_file import load_spec


def timed_search(
    folder: Path, name: str, text: str, function: Callable[..., Any], **options: Any
) -> tuple[float, list[TrialRecord]]:
    """Seconds, and the trials, all of which must complete. `text`: the sweep file; `options`: of `run_queue`."""
    path = folder / f"{name}.yaml"
    path.write_text(text)
    with Ledger.create(folder / name, load_spec(path)) as ledger:
        start = time.perf_counter()
        run_queue(
            ledger, function, name=name, folder=ledger.folder, metric=ledger.spec.metric, max_concurrent=2, **options
        )
        seconds = time.perf_counter() - start
        assert ledger.counts()["completed"] == ledger.spec.budget.trials, ledger.counts()
        return seconds, ledger.trials()
