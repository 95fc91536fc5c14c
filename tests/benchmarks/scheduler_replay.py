"""What schedulers spend until they find the winner of the whole grid: learning curves replayed, nothing trained.

    python tests/benchmarks/scheduler_replay.py [--trials 1000] [--repeats 3] [--slots 8]
    python tests/benchmarks/scheduler_replay.py --recorded runs/beauty [--trials 1000]

The ledger, its sampler and the schedulers are those of a sweep; slots and time are played (`sweeps.rehearsal`). Every
scheduler sees the same trials with the same curves. The winner is the trial whose best value is the best of all when
every trial is trained to its end; it is found when it first reports that value. The curves are either recorded ones, of
the completed trials of a sweep, or made up: values that rise as 1 - exp(-epoch / t) towards an end that depends on the
learning rate, the dropout and the width, where a high rate rises fast to a lower end, with noise, and with a decline of
the trials that overfit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.ledger import Ledger
from sweeps.rehearsal import Clock, Played, Rehearsal
from sweeps.spec_file import load_spec
from sweeps.stopping import rule_of

METRIC = "ndcg@10"
MADE_UP = """
set: {train.epochs: 27}
space:
  train.learning_rate: {type: float, low: 1e-4, high: 1e-1, log: true}
  tiger.dropout: {type: float, low: 0.0, high: 0.5}
  tiger.feedforward_dim: {type: int, low: 128, high: 1024, log: true}
"""
SCHEDULERS = {
    "none (grid)": "{type: none}",
    "median": "{type: median, grace_epochs: 1}",
    "asha": "{type: asha, grace_epochs: 1, reduction_factor: 3}",
    "promote": "{type: promote, grace_epochs: 1, reduction_factor: 3}",
}
ValueOf = Callable[[dict[str, Any], int], float]


@dataclass
class Curves:
    """What to replay: a sweep file without its budget, and what its trials cost and report."""

    spec: str
    trials: int
    trial_of: Callable[[dict[str, Any]], Played]
    value_of: ValueOf


def made_up(trials: int, seed: int) -> Curves:
    def facts(payload: dict[str, Any]) -> tuple[float, float, int]:
        config = payload["config"]
        return math.log10(config["train"]["learning_rate"]), config["tiger"]["dropout"], width(payload)

    def width(payload: dict[str, Any]) -> int:
        return int(payload["config"]["tiger"]["feedforward_dim"])

    def trial_of(payload: dict[str, Any]) -> Played:
        return Played(10 + width(payload) / 50, payload["config"]["train"]["epochs"], 5.0, "", 0.0)

    def value_of(payload: dict[str, Any], epoch: int) -> float:
        rate, dropout, wide = facts(payload)
        size = math.log2(wide / 128) / 3
        end = (
            0.05 * math.exp(-(((rate + 2.6) / 0.8) ** 2) - (2 * (dropout - 0.1 - 0.15 * size)) ** 2) * (1 + 0.2 * size)
        )
        slowness = 6 * 10 ** (-0.5 * (rate + 2.6)) * (1 + size / 2) * (1 + dropout)
        overfit = 0.004 * size * max(0.0, 0.15 - dropout) * max(0, epoch - 2 * slowness)
        noise = random.Random(f"{seed}:{payload['number']}:{epoch}").gauss(0, 4e-4)
        return max(0.0, end * (1 - math.exp(-epoch / slowness)) - overfit * end + noise)

    return Curves(MADE_UP + "sampler: {type: random}\n", trials, trial_of, value_of)


def recorded(folder: Path, trials: int | None) -> Curves:
    """The completed trials of a sweep, in their order and again from the first if `trials` are more; the replayed
    ledger has their places as a grid."""
    ledger = Ledger.read(folder)
    metric = ledger.spec.metric
    done = [record for record in ledger.trials() if record.status == "completed" and record.duplicate_of is None]
    if ledger.spec.mode != "max" or len(done) < 3:
        sys.exit(f"{folder}: needs at least three completed trials of a metric that is maximised")
    curves = [[row[metric] for row in record.epochs if metric in row] for record in done]
    seconds = [(record.duration or 1.0) / len(curve) for record, curve in zip(done, curves, strict=True)]
    longest = max(len(curve) for curve in curves)
    count = trials or len(done)
    spec = f"set: {{train.epochs: {longest}}}\nspace: {{seed: {{type: grid, values: {list(range(count))}}}}}\n"

    def place(payload: dict[str, Any]) -> int:
        return int(payload["seed"]) % len(done)

    return Curves(
        spec,
        count,
        lambda payload: Played(seconds[place(payload)], len(curves[place(payload)]), 0.0, "", 0.0),
        lambda payload, epoch: curves[place(payload)][epoch - 1],
    )


@dataclass
class Found:
    """One replay: what it spent in all, and at every better value: epochs, hours, the value."""

    epochs: int
    hours: float
    better: list[tuple[int, float, float]]

    @property
    def best(self) -> float:
        return self.better[-1][2]

    def until(self, value: float) -> tuple[int, float] | None:
        """Epochs and hours until a value was reported, None if it never was."""
        return next(((epochs, hours) for epochs, hours, best in self.better if best >= value), None)


def replay(curves: Curves, scheduler: str, slots: int, folder: Path) -> Found:
    """Drive the real ledger through a rehearsal."""
    file = folder / "replay.yaml"
    file.write_text(f"{curves.spec}metric: {METRIC}\nbudget: {{trials: {curves.trials}}}\nscheduler: {scheduler}\n")
    spec = load_spec(file)
    clock, epochs = Clock(), itertools.count(1)
    better: list[tuple[int, float, float]] = [(0, 0.0, -math.inf)]

    def on_epoch(task_id: str, epoch: int, value: float) -> None:
        spent = next(epochs)
        if value > better[-1][2]:
            better.append((spent, clock.now / 3600, value))

    with Ledger.create(folder / "ledger", spec) as ledger:
        longest = spec.base_config().train.epochs
        outcome = Rehearsal(
            ledger,
            slots,
            trial_of=curves.trial_of,
            value_of=curves.value_of,
            metric=METRIC,
            rule=rule_of(spec.scheduler, "max", longest),
            clock=clock,
            on_epoch=on_epoch,
        ).run()
    return Found(outcome.epochs, outcome.wall_seconds / 3600, better)


def line(name: str, runs: Sequence[Found], all_epochs: float, winner: Sequence[float]) -> dict[str, Any]:
    hits = [hit for run, best in zip(runs, winner, strict=True) if (hit := run.until(best)) is not None]
    behind = [1 - run.best / best for run, best in zip(runs, winner, strict=True)]
    return {
        "scheduler": name,
        "epochs": round(statistics.mean(run.epochs for run in runs)),
        "share": statistics.mean(run.epochs for run in runs) / all_epochs,
        "hours": statistics.mean(run.hours for run in runs),
        "found": f"{len(hits)} of {len(runs)}",
        "winner_epochs": round(statistics.mean(epochs for epochs, _ in hits)) if hits else None,
        "winner_hours": statistics.mean(hours for _, hours in hits) if hits else None,
        "behind": statistics.mean(behind),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = "| scheduler | epochs | of all | hours | winner found | epochs until | hours until | best value behind |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        until = (
            ("-", "-") if row["winner_epochs"] is None else (f"{row['winner_epochs']:,}", f"{row['winner_hours']:.1f}")
        )
        lines.append(
            f"| {row['scheduler']} | {row['epochs']:,} | {row['share']:.0%} | {row['hours']:.1f} | {row['found']} | "
            f"{until[0]} | {until[1]} | {row['behind']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, help="default: 1000, or those that were recorded")
    parser.add_argument("--repeats", type=int, default=3, help="made-up curves with other noise and other trials")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--recorded", type=Path, help="folder of a sweep whose curves are replayed")
    parser.add_argument("--format", choices=["table", "json"], default="table")
    chosen = parser.parse_args()
    sets = (
        [recorded(chosen.recorded, chosen.trials)]
        if chosen.recorded
        else [made_up(chosen.trials or 1000, s) for s in range(chosen.repeats)]
    )
    started, computed = time.monotonic(), time.process_time()
    runs: dict[str, list[Found]] = {name: [] for name in SCHEDULERS}
    for number, curves in enumerate(sets):
        curves.spec += f"seed: {number}\n"
        for name, scheduler in SCHEDULERS.items():
            with tempfile.TemporaryDirectory() as folder:
                runs[name].append(replay(curves, scheduler, chosen.slots, Path(folder)))
    whole = next(iter(runs.values()))
    winners = [run.best for run in whole]
    everything = statistics.mean(run.epochs for run in whole)
    rows = [line(name, found, everything, winners) for name, found in runs.items()]
    took, computed = time.monotonic() - started, time.process_time() - computed
    if chosen.format == "json":
        print(json.dumps({"seconds": took, "cpu_seconds": computed, "rows": rows}, indent=1))
    else:
        trials = sum(c.trials for c in sets) * len(runs)
        print(f"{table(rows)}\n\n{trials} trials replayed in {took:.1f} s, {computed:.1f} s of a core")


if __name__ == "__main__":
    main()
