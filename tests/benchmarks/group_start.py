"""What the start of a worker group costs, beside one worker in a warm process.

    python tests/benchmarks/group_start.py [--workers 2] [--trials 2]

A trial is one loop that reports once, at once. Counted is the time from the trial's start in its process to that report
(the group's processes start, import torch, join) and to the end of the trial (the group is taken down). The first trial
of each form pays imports that later ones in a warm process do not; all are printed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray

from sweeps.ray_cluster import start_ray
from sweeps.ray_tune import run_queue
from sweeps.records import Task
from sweeps.resources import Resources

Report = Callable[[Mapping[str, Any]], None]


class Trials:
    """So many tasks, and what they returned."""

    def __init__(self, count: int):
        self.results: list[dict[str, Any]] = []
        self._left = [Task(f"trial-{number:04d}", {"seed": 0}) for number in range(count)]

    def next(self) -> Task | None:
        return self._left.pop(0) if self._left else None

    def report(self, task_id: str, metrics: dict[str, Any]) -> None:
        """The times come with the result."""

    def finish(self, task_id: str, status: str, result: dict[str, Any]) -> None:
        assert status == "completed", result
        self.results.append(result)


def trial(payload: dict[str, Any], report: Report, launch: Callable[..., None]) -> dict[str, Any]:
    import time
    from pathlib import Path

    first = Path(payload["first"])

    def loop(argument: dict[str, Any], report: Report) -> None:
        import torch.distributed as dist

        if not dist.is_initialized() or dist.get_rank() == 0:
            Path(argument["first"]).write_text(str(time.time()))
        report({"epoch": 1, "score": 1.0})

    start = time.time()
    launch(loop, {"first": str(first)})
    return {"to_first_report": float(first.read_text()) - start, "to_end": time.time() - start}


def measure(workers: int, trials: int, folder: Path) -> list[dict[str, Any]]:
    """Times of `trials` trials one after another."""
    queue = Trials(trials)
    for task in queue._left:
        task.payload["first"] = str(folder / f"{workers}-{task.id}")
    run_queue(
        queue,
        trial,
        name=f"start-{workers}",
        folder=folder / f"start-{workers}",
        resources=Resources(workers=workers),
        max_concurrent=1,
        metric="score",
    )
    return queue.results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="workers of a group")
    parser.add_argument("--trials", type=int, default=2, help="trials of each form")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name, start_ray("local", num_cpus=options.workers + 1):
        for workers in (1, options.workers):
            results = measure(workers, options.trials, Path(name))
            found[workers] = [(round(r["to_first_report"], 2), round(r["to_end"], 2)) for r in results]
            for first, end in found[workers]:
                print(f"{workers} worker(s): first report after {first:6.2f} s, end after {end:6.2f} s", flush=True)
    print(json.dumps({"ray": ray.__version__, "seconds": found}))


if __name__ == "__main__":
    main()
