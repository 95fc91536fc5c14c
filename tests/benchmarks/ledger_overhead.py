"""What the ledger costs: one trial (ask, five reports, tell) in a journal and in SQLite, and opening a long record.

    python tests/benchmarks/ledger_overhead.py [--trials 300] [--long 1000 5000] [--only journal] [--url postgresql://...]

Trials are made up and proposed at random, so that this is the ledger's time and not a sampler's. Goal: under 20 ms a
trial. The second table shows that a trial does not become dearer as the sweep grows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from sweeps.ledger import Ledger
from sweeps.spec import SweepSpec
from sweeps.spec_file import load_spec

EPOCHS = 5
TEXT = """
name: bench
sampler: {type: random}
space:
  train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
  train.label_smoothing: {type: float, low: 0.0, high: 0.3}
  tokenizer.kind: {type: choice, values: [rkmeans, rqvae]}
"""


def spec_of(folder: Path, trials: int, url: str | None) -> SweepSpec:
    file = folder / "bench.yaml"
    file.write_text(TEXT)
    return load_spec(file, {"budget.trials": trials} | ({"ledger": url} if url else {}))


def run(ledger: Ledger, count: int) -> tuple[float, float]:
    """Milliseconds a trial: by the clock, and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        task = ledger.next()
        assert task is not None
        for epoch in range(1, EPOCHS + 1):
            ledger.report(task.id, {"epoch": epoch, "ndcg@10": 0.1 * epoch, "loss": 1.0 / epoch, "seconds": 1.5})
        ledger.finish(task.id, "completed", {"duration": 7.5, "node": "n", "artifacts": {"tiger": "k"}})
    return 1000 * (time.perf_counter() - wall) / count, 1000 * (time.process_time() - cpu) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--long", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--only", choices=["journal", "sqlite", "database"], help="one of the storages")
    parser.add_argument("--url", help="a further database to measure")
    options = parser.parse_args()
    places = {"journal": None, "sqlite": "sqlite:///ledgers.db"} | ({"database": options.url} if options.url else {})
    print(f"{'storage':<10} {'trials':>7} {'ms/trial':>9} {'cpu ms/trial':>13} {'last 50, cpu ms':>16} {'reopen s':>9}")
    for place, url in places.items():
        if options.only not in (None, place):
            continue
        for trials in [options.trials, *options.long]:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name) / f"bench-{time.time_ns()}"
                with Ledger.create(folder, spec_of(Path(name), trials, url)) as ledger:
                    wall, cpu = run(ledger, trials - 50)
                    _, last = run(ledger, 50)
                began = time.process_time()
                with Ledger.open(folder) as ledger:
                    assert ledger.next() is None
                    assert len(ledger.leaderboard()) == trials
                reopened = time.process_time() - began
            print(f"{place:<10} {trials:>7} {wall:>9.1f} {cpu:>13.1f} {last:>16.1f} {reopened:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
