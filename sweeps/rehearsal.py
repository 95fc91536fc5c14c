"""Plays a sweep's trials on a clock: slots, shared tokenizers, early stopping. No training, no Ray.

The metric of a played trial is a number drawn at random that says how good it is; a scheduler that compares trials at
equal epochs then stops as many as it will stop of a real sweep, whichever they are.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

REPEATS = 24


class Played(NamedTuple):
    """One trial to play: seconds of an epoch, epochs, and the tokenizer that it needs."""

    epoch_seconds: float
    epochs: int
    setup_seconds: float
    tokenizer_key: str
    tokenizer_seconds: float


@dataclass
class Outcome:
    """What one rehearsal came to."""

    wall_seconds: float = 0.0
    busy_seconds: float = 0.0
    "over all slots"
    epochs: int = 0
    started: int = 0
    tokenizers: set[str] = field(default_factory=set)


class Asha:
    """Ray's stopping rule: at a rung a trial goes on if it is among the best 1/`factor` of those that came that far."""

    def __init__(self, grace: int, factor: int, longest: int):
        self.rungs: dict[int, list[float]] = {}
        self.factor, self.longest = factor, longest
        rung = min(grace, longest)
        while rung < longest:
            self.rungs[rung] = []
            rung *= factor

    def stops(self, epoch: int, quality: float) -> bool:
        if epoch not in self.rungs or epoch >= self.longest:
            return False
        known = self.rungs[epoch]
        place = (1 - 1 / self.factor) * (len(known) - 1)
        low = int(place)
        ranked = sorted(known)
        cutoff = ranked[low] + (place - low) * (ranked[min(low + 1, len(ranked) - 1)] - ranked[low]) if ranked else None
        known.append(quality)
        return cutoff is not None and quality < cutoff


def rehearse(
    trials: Sequence[Played],
    slots: int,
    *,
    start_seconds: float = 0.0,
    asha: tuple[int, int] | None = None,
    longest: int = 0,
    seconds: float | None = None,
    seed: int = 0,
) -> Outcome:
    """Run `trials` in order on `slots`; no trial is started after `seconds`. `start_seconds`: until the process of a
    slot can train. `asha`: grace epochs and factor."""
    rng = random.Random(seed)
    scheduler = Asha(*asha, longest) if asha else None
    ready: dict[str, float] = {}
    outcome = Outcome()
    queue = list(enumerate(trials))[::-1]
    quality = [rng.random() for _ in trials]
    events: list[tuple[float, int, int]] = []  # end of an epoch, trial, epoch

    def start(now: float, warm: bool = True) -> None:
        if not queue or (seconds is not None and now >= seconds):
            return
        number, trial = queue.pop()
        outcome.started += 1
        begin = now if warm else now + start_seconds
        if trial.tokenizer_key not in ready:
            ready[trial.tokenizer_key] = begin + trial.tokenizer_seconds
            outcome.tokenizers.add(trial.tokenizer_key)
        begin = max(begin, ready[trial.tokenizer_key]) + trial.setup_seconds
        outcome.busy_seconds += begin - now
        heapq.heappush(events, (begin + trial.epoch_seconds, number, 1))

    for _ in range(slots):
        start(0.0, warm=False)
    while events:
        now, number, epoch = heapq.heappop(events)
        trial = trials[number]
        outcome.wall_seconds = now
        outcome.epochs += 1
        outcome.busy_seconds += trial.epoch_seconds
        stopped = scheduler is not None and scheduler.stops(epoch, quality[number])
        if stopped or epoch >= trial.epochs:
            start(now)
        else:
            heapq.heappush(events, (now + trial.epoch_seconds, number, epoch + 1))
    return outcome
