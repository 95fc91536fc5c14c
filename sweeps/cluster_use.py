"""How large the cluster was while a sweep was driven, and how much of it the trials kept busy."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise

from sweeps.ledger import Ledger

SIZES = "cluster_sizes"
"fact of the ledger: [seconds since 1970, CPUs, GPUs, nodes] from then on; all 0 while nobody drives the sweep"
NAMES = ("CPU", "GPU")
Size = Sequence[float]


def note_size(ledger: Ledger, size: Mapping[str, float], at: float | None = None) -> None:
    """Record that the cluster has this size from now on. Costs one append to the ledger."""
    ledger.set_fact("cluster", dict(size))
    _note(ledger, [size.get(name, 0.0) for name in (*NAMES, "nodes")], time.time() if at is None else at)


def note_end(ledger: Ledger, at: float | None = None) -> None:
    """Record that nobody drives the sweep from now on."""
    if ledger.fact(SIZES):
        _note(ledger, [0.0, 0.0, 0.0], time.time() if at is None else at)


def note_begin(ledger: Ledger) -> None:
    """End a session whose driver was killed: with the last thing that is known to have happened in it."""
    sizes = ledger.fact(SIZES)
    if sizes and any(sizes[-1][1:]):
        note_end(ledger, max(sizes[-1][0], *_moments(ledger)))


def _note(ledger: Ledger, size: Size, at: float) -> None:
    known = ledger.fact(SIZES) or []
    if not known or list(known[-1][1:]) != list(size):
        ledger.set_fact(SIZES, [*known, [round(at, 3), *size]])


def busy_share(ledger: Ledger) -> dict[str, float]:
    """CPU and GPU -> what trials and re-evaluations held of it, as a share of what was there while the sweep was
    driven. Empty while nothing is known; without what the cluster does not have. Elastic groups count with all their
    workers, as in a budget, which can make more than there was: then all of it."""
    sizes = [tuple(size) for size in ledger.fact(SIZES) or []]
    held = _seconds(ledger)
    if not sizes or not held:
        return {}
    last = max(sizes[-1][0], *_moments(ledger))
    resources = ledger.spec.resources
    each = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    there = there_were(sizes, last)
    held_of = {name: resources.most_workers * each[name] * held for name in NAMES}
    return {name: min(1.0, held_of[name] / there[name]) for name in NAMES if there[name] > 0}


def busy_line(ledger: Ledger) -> str:
    """The busy share as a sentence."""
    shares = busy_share(ledger)
    if not shares:
        return "busy share of the cluster: not known"
    return "busy share of the cluster: " + ", ".join(f"{share:.0%} of its {name}s" for name, share in shares.items())


def there_were(sizes: Sequence[Size], last: float) -> dict[str, float]:
    """CPU-seconds and GPU-seconds of a cluster whose sizes are known, up to the moment `last`."""
    steps = [*pairwise(sizes), (sizes[-1], (last,))]
    return {
        name: sum(size[1 + place] * max(0.0, after[0] - size[0]) for size, after in steps)
        for place, name in enumerate(NAMES)
    }


def _seconds(ledger: Ledger) -> float:
    """For which trials and re-evaluations held their processes, or the workers of their groups."""
    own = [record.duration for record in ledger.trials() if record.duplicate_of is None and record.source is None]
    return sum(filter(None, own)) + sum(run.result.get("duration") or 0.0 for run in ledger.finalist_runs())


def _moments(ledger: Ledger) -> list[float]:
    """When trials and re-evaluations began and ended; never empty."""
    found = [moment for record in ledger.trials() for moment in (record.started, record.finished)]
    found += [
        moment and moment.astimezone()
        for trial in ledger.finalists.trials()
        for moment in (trial.datetime_start, trial.datetime_complete)
    ]
    return [moment.timestamp() for moment in found if moment] or [0.0]
