"""What another trial on a machine costs in memory, split into what it is spent on.

    python tests/benchmarks/memory_per_trial.py FOLDER [--base beauty_tuned] [--trials 2] [--users 1000]

FOLDER is the base's data folder. One trial makes the stages that trials share; then `--trials` trials run at once, each
in its process, for an epoch over all training data that is validated on `--users` users. Counted are a process's
private pages: those that another process adds. Pages that are mapped from files (libraries, dataset, item vectors) are
there once, however many trials run; `shared` of them are in a process, and `pss` counts its part of these as well. MB:

- process: Python, torch, Ray and the library, before the trial;
- torch: the part of it that `import torch` is, and compiler: what its compiler, which stays out, would add;
- data: dataset, item vectors, semantic IDs and training windows;
- training: the rest at its highest, that is model, optimizer, activations and what allocators keep;
- model: the part of it that `sweeps plan` counts by arithmetic: weights, gradients, optimizer, activations.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genrec.artifacts import ArtifactStore
from genrec.config import RunConfig, load_config
from genrec.pipeline import run_pipeline
from sweeps.costs import quantity
from sweeps.ray_cluster import start_ray
from sweeps.ray_tune import run_queue
from sweeps.records import Task
from sweeps.resources import Resources

MB = 1e6
SAMPLED_EVERY = 0.25
PARTS = ("process", "data", "training", "all", "shared", "pss")
Figures = dict[str, float]


def pages(process: int | str = "self") -> Figures:
    """Private MB of a process, and MB that it shares with others."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    found = {name: int(kb) * 1024 / MB for name, kb in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return {"private": found["Private_Clean"] + found["Private_Dirty"], "pss": found["Pss"], "rss": found["Rss"]}


def libraries(*modules: str) -> list[float]:
    """Private MB of a fresh process: what each module adds to those before it."""
    program = "import sys\nfor name in ['sys', *sys.argv[1:]]: __import__(name); print(flush=True); input()"
    words = [sys.executable, "-c", program, *modules]
    found = []
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as fresh:
        assert fresh.stdin
        assert fresh.stdout
        for _ in fresh.stdout:
            found.append(pages(fresh.pid)["private"])
            print(file=fresh.stdin, flush=True)
    return [after - before for before, after in itertools.pairwise(found)]


class Peak:
    """The most that this process holds while the block runs."""

    def __init__(self) -> None:
        self.figures = pages()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(SAMPLED_EVERY):
            self.figures = max(self.figures, pages(), key=lambda figures: figures["private"])

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None], *, store: str) -> Figures:
    """The real trial; before and while it runs its process looks at itself."""
    import gc

    from genrec.artifacts import ArtifactStore
    from genrec.config import validate_config
    from genrec.pipeline import open_ids, open_interactions, stage_keys
    from genrec.trainers.tiger_trainer import tiger_batches
    from sweeps.ray_train import run_loop  # noqa: F401  # what a trial imports when it launches
    from sweeps.trial import run_trial

    config, artifacts = validate_config(payload["config"]), ArtifactStore(store)
    gc.collect()
    process = pages()["private"]
    keys = stage_keys(config)
    kept = tiger_batches(config, open_interactions(artifacts, keys)), open_ids(artifacts, keys)
    gc.collect()
    data = pages()["private"] - process
    del kept
    with Peak() as peak:
        run_trial(payload, report, launch, store=store)
    most = peak.figures
    shared = most["rss"] - most["private"]
    return {"process": process, "data": data, "all": most["private"], "shared": shared, "pss": most["pss"]}


class Trials:
    """Trials that differ in their seed alone, and what they returned."""

    def __init__(self, config: RunConfig, seeds: range):
        self.results: list[Figures] = []
        self._left = [
            Task(f"trial-{seed}", {"config": config.to_dict() | {"seed": seed}, "seed": seed, "kind": "trial"})
            for seed in seeds
        ]

    def next(self) -> Task | None:
        return self._left.pop(0) if self._left else None

    def report(self, task_id: str, metrics: dict[str, Any]) -> None:
        """Curves are of no interest here."""

    def finish(self, task_id: str, status: str, result: dict[str, Any]) -> None:
        assert status == "completed", result
        self.results.append(result)


def measure(config: RunConfig, trials: int, folder: Path) -> list[Figures]:
    """Figures of `trials` trials that ran at once."""
    store = folder / "store"
    run_pipeline(config, ArtifactStore(store), until="semantic_ids")
    queue = Trials(config, range(1, trials + 1))
    with start_ray("local", num_cpus=trials):
        run_queue(
            queue,
            functools.partial(trial, store=str(store)),
            name="memory",
            folder=folder / "sweep",
            resources=Resources(),
            metric=config.evaluation.monitor,
        )
    for result in queue.results:
        result["training"] = result["all"] - result["process"] - result["data"]
    return queue.results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the data")
    parser.add_argument("--base", default="beauty_tuned", help="a recipe or a config file")
    parser.add_argument("--trials", type=int, default=2, help="at once")
    parser.add_argument("--users", type=int, default=1000, help="that every epoch is validated on")
    options = parser.parse_args()
    settings = {"train.epochs": 1, "evaluation.max_users": options.users}
    config = load_config(options.base, settings | {"dataset.dataset_folder": str(Path(options.folder).absolute())})
    with tempfile.TemporaryDirectory() as name:
        results = measure(config, options.trials, Path(name))
    found = {part: round(statistics.mean(result[part] for result in results), 1) for part in PARTS}
    found["torch"], found["compiler"] = (round(size, 1) for size in libraries("torch", "torch._dynamo"))
    model = quantity("cost.memory_gb", config.to_dict()) * 1e9 / MB
    for part in (*PARTS, "torch", "compiler"):
        print(f"{part:10} {found[part]:8.1f} MB")
    found |= {"model": round(model, 1), "above the model": round(found["all"] - model, 1)}
    found["above process and model"] = round(found["above the model"] - found["process"], 1)
    print(json.dumps({"base": options.base, "trials": options.trials, **found}))


if __name__ == "__main__":
    main()
