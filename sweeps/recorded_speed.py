"""The speed of an earlier sweep, from the times of its trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

    from sweeps.ledger import Ledger
    from sweeps.records import TrialRecord

from sweeps.speed import Pace, Sample, Samples, Speed
from sweeps.work import Work, Workbench


def recorded_speed(ledger: Ledger, bench: Workbench) -> Speed | None:
    """From the trials of a sweep; None when no trial of it trained and validated an epoch.

    Trials that started before any had ended also started their process, and are asked last.
    """
    records = [r for r in ledger.trials() if r.duplicate_of is None and "tiger" not in r.reused and r.duration]
    first_end = min((r.finished for r in records if r.finished), default=None)
    timed = [_timed(record, bench.work(ledger.config_of(record.number)), first_end) for record in records]
    samples = Samples()
    for trial in timed:
        samples.train.extend(trial.epochs)
    for cold in (False, True):
        if not samples.evaluate:
            samples.evaluate.extend(
                Sample(trial.work.users, trial.work.evaluate_flops, trial.rest / trial.evaluations)
                for trial in timed
                if trial.cold == cold and not trial.made_tokenizer and trial.evaluations and trial.rest > 0
            )
    if samples.evaluate:
        _add_tokenizers_and_start(samples, timed)
    return Speed.fitted(samples, f"the trials of {ledger.spec.name}")


class _Timed(NamedTuple):
    """A recorded trial's time: its epochs, and the rest."""

    work: Work
    epochs: list[Sample]
    evaluations: int
    rest: float
    made_tokenizer: bool
    cold: bool

    def unexplained(self, evaluate: Pace) -> float:
        return self.rest - self.evaluations * evaluate.seconds(self.work.users, self.work.evaluate_flops)


def _timed(record: TrialRecord, work: Work, first_end: datetime | None) -> _Timed:
    rows = [row for row in record.epochs if row.get("targets_per_second")]
    epochs = [Sample(work.targets, work.train_flops, work.targets / row["targets_per_second"]) for row in rows]
    return _Timed(
        work=work,
        epochs=epochs,
        evaluations=sum("users" in row for row in rows),  # a row without a validation has none
        rest=(record.duration or 0.0) - sum(sample.seconds for sample in epochs),
        made_tokenizer="tokenizer" in record.trained,
        cold=record.started is not None and first_end is not None and record.started < first_end,
    )


def _add_tokenizers_and_start(samples: Samples, timed: Sequence[_Timed]) -> None:
    """What training and evaluating don't explain of a trial is its tokenizer's time, and the process' start."""
    evaluate = Pace.fitted(samples.evaluate)
    for cold in (False, True):
        seen = set(samples.tokenize)
        for trial in timed:
            kind, seconds = trial.work.tokenizer_kind, trial.unexplained(evaluate)
            if trial.cold == cold and trial.made_tokenizer and trial.work.passes and kind not in seen and seconds > 0:
                sample = Sample(trial.work.passes, trial.work.tokenizer_flops, seconds)
                samples.tokenize.setdefault(kind, []).append(sample)
    paces = {kind: Pace.fitted(found) for kind, found in samples.tokenize.items()}
    for trial in timed:
        if trial.cold:
            pace = paces.get(trial.work.tokenizer_kind) if trial.made_tokenizer else None
            tokenizer = pace.seconds(trial.work.passes, trial.work.tokenizer_flops) if pace else 0.0
            samples.start.append(max(0.0, trial.unexplained(evaluate) - tokenizer))
