"""What Weights & Biases, offline, adds to a small sweep: the same trials with and without it, in turns, in one run.

    python tests/benchmarks/tracking_overhead.py [--trials 6] [--epochs 4] [--rounds 2]

Two trials at a time; a sweep of each kind before the measured ones fills the file caches. Sweeps alternate, and the
medians are compared, so that a change of the machine's load does not decide.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
from pathlib import Path

from timed_search import timed_search

from sweeps.ray_cluster import start_ray
from sweeps.trial import TRACKING, run_trial, tracked_sweep

SPEC = """
name: {name}
base: quickstart
set:
  tokenizer.kind: rkmeans
  train.epochs: {epochs}
  tracking.wandb_logging: {tracked}
  tracking.wandb_log_interval: 10
space: {{train.learning_rate: {{type: float, low: 1e-3, high: 1e-2, log: true}}}}
sampler: {{type: random}}
budget: {{trials: {trials}}}
"""


def sweep(folder: Path, name: str, tracked: bool, trials: int, epochs: int) -> float:
    """Seconds of the search; every sweep has a store of its own, so it trains all that it needs."""
    text = SPEC.format(name=name, tracked=str(tracked).lower(), trials=trials, epochs=epochs)
    store, runs = folder / name / "store", tracked_sweep(folder / name)
    seconds, _ = timed_search(folder, name, text, functools.partial(run_trial, store=str(store), tracked=runs))
    written = len(list((folder / name / TRACKING).rglob("*.wandb")))
    assert written == (trials if tracked else 0), written
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    found: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as name, start_ray("local", num_cpus=2):
        for tracked in found:
            sweep(Path(name), f"warm-up-{tracked}", tracked, 2, 1)
        for number in range(options.rounds):
            for tracked in sorted(found, reverse=number % 2 == 1):  # neither kind is always the later one
                seconds = sweep(Path(name), f"{number}-{tracked}", tracked, options.trials, options.epochs)
                found[tracked].append(seconds)
                print(f"{'tracked' if tracked else 'plain':8} {seconds:7.1f} s", flush=True)
    plain, tracked_seconds = (statistics.median(found[tracked]) for tracked in (False, True))
    change = round(100 * (tracked_seconds / plain - 1), 1)
    print(json.dumps({"plain": round(plain, 1), "tracked": round(tracked_seconds, 1), "percent": change}))


if __name__ == "__main__":
    main()
