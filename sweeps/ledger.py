"""The ledger: the only record of a sweep's trials, as two Optuna studies in a journal file or a database.

`search` holds the trials, `finalists` the re-evaluations. A trial enters by one append with all its parameters, so a
kill leaves the whole trial or none; its parameters depend on the sweep's seed, its number and the trials before it, and
on nothing else. One process writes (`sweeps.driver_lock`); any number may read. Not safe for several threads.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from genrec.config import ConfigError, RunConfig
from sweeps import selection
from sweeps.driver_lock import DriverLock
from sweeps.errors import LedgerError, SweepExists
from sweeps.finalist_queue import FinalistQueue
from sweeps.folders import storage_of, sweeps_command
from sweeps.proposer import Progress, Proposer
from sweeps.records import STATUSES, FinalistRun, PlannedRun, State, Status, Task, TrialRecord
from sweeps.reuse import EarlierResults
from sweeps.revisions import KEY, Revision, revise, stored_revisions
from sweeps.spec import SweepSpec
from sweeps.study_record import STATUS, StudyRecord, condemned, epochs_of, trial_record
from sweeps.study_storage import SPEC, Place, place_of

__all__ = ["FinalistQueue", "FinalistRun", "Ledger", "LedgerError", "PlannedRun", "Study", "Task", "TrialRecord"]

MAX_INFEASIBLE = 200
"sampled points in a row that break a constraint before the sweep gives up"
MAX_DUPLICATES = 50
"sampled points in a row that were tried before: a space that cannot be listed is taken as exhausted"
_HEARTBEAT = 1.0  # seconds between two notes of a session's length
_TRIALS_HEARTBEAT = 5.0  # where there are many occasions


class Ledger:
    """The record of one sweep, and the queue of its search. Open it by `create`, `open` or `read`."""

    def __init__(self, folder: Path, place: Place, storage: BaseStorage, lock: DriverLock | None):
        self.folder = folder
        self.stop_reason: str | None = None
        "why `next` handed out nothing: budget, time, grid done, space exhausted, points that are infeasible, stopped"
        self._place = place
        self._storage = storage
        self._lock = lock
        self._stopping = False
        self._records: dict[int, tuple[FrozenTrial, TrialRecord]] = {}
        self._load()
        self._session = sum(key.startswith("session:") for key in self._record.attrs())
        self._earlier_sessions = self._seconds_noted("session")
        self._since = self._noted = time.monotonic()
        self.earlier_trial_seconds = self._seconds_noted("trials")
        "what the trials of the search ran in earlier sessions, all together"
        self._trial_seconds = 0.0
        self._earlier_searching = self._earlier_search_seconds()
        self._searching_since: float | None = None
        self._searched = 0.0
        if lock is not None:
            self._end_condemned()
            self._proposer.settle_duplicates()

    def _load(self) -> None:
        """Take in the spec and the trials as they are stored."""
        guard = self._lock.check if self._lock else None
        study_id = self._storage.get_study_id_from_name(self._place.search)
        attrs = self._storage.get_study_user_attrs(study_id)
        self.revisions = stored_revisions(attrs)
        "what the sweep was made into after its start, oldest first"
        self._specs = [_stored_spec(self.folder, d) for d in (attrs[SPEC], *(r.spec for r in self.revisions))]
        self.spec = self._specs[-1]
        self.space = self.spec.search_space
        self._record = StudyRecord(self._storage, self._place.search, self.spec.objectives, guard)
        metric = {self.spec.metric: self.spec.mode}
        self.finalists = StudyRecord(self._storage, self._place.finalists, metric, guard)
        self.__dict__.pop("_proposer", None)  # it knows the spec
        self._reissue = [t.number for t in self._record.trials() if t.state == TrialState.RUNNING]

    @cached_property
    def _proposer(self) -> Proposer:
        wider = [number for number, revision in enumerate(self.revisions, start=1) if revision.widens]
        specs = [self._specs[number] for number in (0, *wider)]
        specs[-1] = self.spec  # whose space is the same
        since = self.revisions[wider[-1] - 1].trials if wider else 0
        earlier = self._earlier() if self.spec.reuse else None
        return Proposer(specs, self._record, since, earlier)

    def _earlier(self) -> EarlierResults:
        return EarlierResults(self.spec, storage_of(self.folder.parent), self.dataset, Ledger.read)

    def dataset(self) -> str | None:
        """Key of the data that the last session ran on; None while it is not known."""
        sessions = self.fact("sessions") or [{}]
        data: str | None = sessions[-1].get("data")
        return data

    def revise(self, spec: SweepSpec) -> Revision | None:
        """Go on with another spec, from the next trial on; None where it is the same. The search is open again.

        Raises `InputError` when the spec contradicts what is recorded."""
        revision = revise(self.spec, spec, self.trials())
        if revision is None:
            return None
        self.mark("searching")  # first: a kill between the two leaves a search that has nothing to do
        self._record.set_attr(f"{KEY}:{len(self.revisions) + 1}", revision.to_dict())
        self._load()
        return revision

    # -- opening and closing ------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: str | Path, spec: SweepSpec) -> Ledger:
        """Start the record of a new sweep in `folder` and become its driver."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        place = place_of(folder, spec.ledger)
        place.prepare(spec)
        lock = place.lock()
        lock.acquire()
        try:
            if place.exists():
                storage = storage_of(folder.parent)
                resume = sweeps_command("resume", folder.name, storage=storage)
                raise SweepExists(
                    f"{storage}/{folder.name}: exists; use {resume} "
                    "(with --trials, --time or --file where there is more to do)"
                )
            place.write(spec)
            ledger = cls._opened(folder, place, place.writing(), lock)
            ledger.set_fact("identity", uuid.uuid4().hex)
            return ledger
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, folder: str | Path) -> Ledger:
        """Become the driver of an existing sweep. What was running when its last driver died is handed out again."""
        folder = Path(folder)
        place = place_of(folder)
        place.must_exist()
        lock = place.lock()
        lock.acquire()
        try:
            place.repair()
            ledger = cls._opened(folder, place, place.writing(), lock)
            if ledger.fact("phase") == "failed":
                ledger.mark("searching")
            return ledger
        except BaseException:
            lock.release()
            raise

    @classmethod
    def attach(cls, folder: str | Path, spec: SweepSpec) -> bool:
        """Make `folder` know a sweep of its name that was begun on another machine, in the database that `spec` names.
        Whether there is one."""
        if spec.ledger is None:
            return False
        place = place_of(Path(folder), spec.ledger)
        if place.exists():
            place.attach()
        return place.exists()

    @classmethod
    def read(cls, folder: str | Path) -> Ledger:
        """Look at a sweep, driven or not. Waits for nobody and writes nothing; sees what is appended later."""
        folder = Path(folder)
        place = place_of(folder)
        place.must_exist()
        return cls._opened(folder, place, place.reading(), None)

    @classmethod
    def _opened(cls, folder: Path, place: Place, storage: BaseStorage, lock: DriverLock | None) -> Ledger:
        try:
            return cls(folder, place, storage, lock)
        except LedgerError:
            raise
        except Exception as error:
            raise place.damaged(error) from error

    def close(self) -> None:
        """Note how long this session took and let the next driver in."""
        if self._lock is not None:
            try:
                self.heartbeat(at_least=0.0)
            finally:
                self._lock.release()
                self._lock = None

    def discard(self) -> None:
        """Take back a sweep of which no trial has begun, and let go of it: its name is free again."""
        assert self._lock is not None
        assert not self._record.trials()
        lock, self._lock = self._lock, None
        try:
            self._place.remove(lock)
        finally:
            lock.release()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the queue of the search --------------------------------------------------------------------------------------

    def next(self) -> Task | None:
        """The next trial to run, or None (`stop_reason` says why).

        First what was running when a driver died, with the same number, parameters and seed; then new trials.
        """
        if self._searching_since is None:
            self._searching_since = time.monotonic()
        if self._stopping:
            self.stop_reason = "stopped"
            return None
        if self._reissue:
            return self._task(self._record.trials()[self._reissue.pop(0)])
        while True:
            self.stop_reason = self._why_stop(self._proposer.look())
            if self.stop_reason is not None:
                return None
            trial = self._proposer.propose()
            if trial.state == TrialState.RUNNING:
                return self._task(trial)

    def report(self, task_id: str, metrics: Mapping[str, Any]) -> None:
        """Record one epoch; `metrics` has `epoch`. Late reports of finished trials are ignored."""
        self._record.report(task_id, metrics)

    def pause(self, task_id: str, epoch: int) -> None:
        """Record that a trial waits, holding nothing, until a rule lets it go on; samplers learn from it as from one
        that was stopped there."""
        self._record.pause(task_id, epoch)

    def note_runs(self, task_id: str, runs: Sequence[Sequence[str | None]]) -> None:
        """Record when and where a trial or re-evaluation that has not ended ran in this session: [start, end, node] of
        every time."""
        record = self._record if self._record.knows(task_id) else self.finalists
        record.note_runs(task_id, self._session, runs)

    def condemn(self, task_id: str, epoch: int, reason: str, by: str) -> None:
        """Record that a rule ends a trial at an epoch, before that epoch is reported and before the trial knows. Should
        the driver die before the trial has ended, the next one ends it."""
        self._record.condemn(task_id, {"epoch": epoch, "reason": reason, "stopped_by": by})

    def _end_condemned(self) -> None:
        """Where the epoch was not reported any more, the trial reports it again and is judged again."""
        for trial in self._record.trials():
            verdict = condemned(trial)
            if verdict is not None:
                self._record.finish(trial.user_attrs["id"], "stopped", verdict)
                self._reissue.remove(trial.number)

    def finish(self, task_id: str, status: str, result: Mapping[str, Any]) -> None:
        """Record the end of a trial as `stopped`, `completed` or `failed`. Its value is the best of its epochs; a
        metric that was not finite, or never reported, makes it failed. A second end is ignored."""
        number = self._record.finish(task_id, status, result)
        if number is not None:
            self._proposer.settle_duplicates()
            self.heartbeat()

    def stop_asking(self) -> None:
        """Hand out nothing any more in this session."""
        self._stopping = True

    @property
    def search_seconds(self) -> float:
        """Seconds that the search has taken in all sessions, from the first trial that each asked for to the end of the
        search. Re-evaluation, conclusion and the start of Ray are not in it."""
        if self._lock is None:
            return self._earlier_search_seconds()
        since = self._searching_since
        return self._earlier_searching + self._searched + (0.0 if since is None else time.monotonic() - since)

    def _earlier_search_seconds(self) -> float:
        """Of all sessions as noted. Sessions of earlier versions noted their whole length alone."""
        attrs = self._record.attrs()
        lengths = {key.partition(":")[2]: value for key, value in attrs.items() if key.startswith("session:")}
        return float(sum(attrs.get(f"search:{session}", length) for session, length in lengths.items()))

    @property
    def elapsed(self) -> float:
        """Seconds that drivers have spent on this sweep, this session included."""
        if self._lock is not None:
            return self._earlier_sessions + time.monotonic() - self._since
        return self._seconds_noted("session")

    def _seconds_noted(self, what: str) -> float:
        """Of all sessions together: how long they were (`session`), or their trials ran (`trials`)."""
        return float(sum(value for key, value in self._record.attrs().items() if key.startswith(f"{what}:")))

    def heartbeat(self, at_least: float = _HEARTBEAT) -> None:
        """Note the length of this session, unless it was noted less than `at_least` seconds ago."""
        now = time.monotonic()
        if now - self._noted >= at_least:
            self._noted = now
            # First the part, then the whole: without its part a session counts as nothing but search.
            self._record.set_attr(f"search:{self._session}", round(self.search_seconds - self._earlier_searching, 3))
            self._record.set_attr(f"session:{self._session}", round(now - self._since, 3))
            if self._trial_seconds:
                self._record.set_attr(f"trials:{self._session}", round(self._trial_seconds, 3))

    def note_trial_seconds(self, seconds: float) -> None:
        """Note what the trials of the search have run in this session, all together; a kill loses seconds of it."""
        self._trial_seconds = seconds
        self.heartbeat(_TRIALS_HEARTBEAT)

    def _task(self, trial: FrozenTrial) -> Task:
        config = self._config(trial).to_dict()
        payload = {"config": config, "seed": config["seed"], "number": trial.number, "kind": "trial"}
        return Task(trial.user_attrs["id"], payload)

    def _why_stop(self, progress: Progress) -> str | None:
        budget = self.spec.budget
        if budget.trials is not None and progress.assigned >= budget.trials:
            return "budget"
        if budget.time is not None and self.search_seconds >= budget.time:
            return "time"
        if progress.grid_index is None:
            return "grid done" if self.space.pure_grid else "space exhausted"
        if progress.duplicates >= MAX_DUPLICATES and not self.space.is_listable:
            return "space exhausted"
        if progress.infeasible >= MAX_INFEASIBLE:
            if progress.duplicates:
                return "space exhausted"
            tried = progress.assigned + progress.all_infeasible
            return (
                f"{progress.infeasible} points in a row are infeasible, {progress.all_infeasible} of {tried} in all; "
                f"the last: {progress.example}"
            )
        return None

    # -- reading ------------------------------------------------------------------------------------------------------

    def trials(self) -> list[TrialRecord]:
        """All trials, by number."""
        return [self._trial_record(trial) for trial in self._record.trials()]

    def _trial_record(self, trial: FrozenTrial) -> TrialRecord:
        """A trial that has not changed keeps its record: a live view asks for thousands several times a second."""
        known = self._records.get(trial.number)
        if known is None or known[0] is not trial:
            known = self._records[trial.number] = (trial, trial_record(trial, list(self.spec.objectives)))
        return known[1]

    def completed(self) -> Iterator[tuple[TrialRecord, dict[str, Any]]]:
        """Trials of this sweep that ran to their end here, with their results as they were stored."""
        for record, trial in zip(self.trials(), self._record.trials(), strict=False):
            if record.status == "completed" and record.duplicate_of is None:
                yield record, trial.user_attrs["result"]

    def counts(self) -> dict[Status, int]:
        """How many trials have each status."""
        statuses = [record.status for record in self.trials()]
        return {status: statuses.count(status) for status in STATUSES}

    def config_of(self, number: int) -> RunConfig:
        """The config that trial `number` ran with, its own seed in it."""
        trials = self._record.trials()
        if not 0 <= number < len(trials):
            raise LedgerError(f"trial {number}: no such trial; the ledger has {len(trials)}")
        return self._config(trials[number])

    def _config(self, trial: FrozenTrial) -> RunConfig:
        base = {**self.spec.base_values, "seed": trial.user_attrs["seed"]}
        return self.space.build(base, trial.user_attrs["values"])

    def leaderboard(self) -> list[TrialRecord]:
        """Trials with a value, best first (`sweeps.selection`)."""
        return selection.leaderboard(self.trials(), self.spec)

    def select(self, count: int) -> list[TrialRecord]:
        """The best `count` trials to re-evaluate."""
        return selection.select(self.trials(), self.spec, count)

    def pareto_front(self) -> list[TrialRecord]:
        """Trials that no other beats in one objective without losing in another, by the metric; one of equals."""
        return selection.pareto_front(self.trials(), self.spec)

    def best(self) -> TrialRecord | None:
        """The first of the leaderboard."""
        return selection.best(self.trials(), self.spec)

    def number_of(self, task_id: str) -> int:
        """The number of a trial. Raises `LedgerError` for an id that is none."""
        return self._record.number_of(task_id)

    @property
    def storage(self) -> BaseStorage:
        """Both studies as Optuna's tools want them; a ledger opened by `read` refuses to be written through it."""
        return self._storage

    @property
    def study(self) -> Study:
        """The search in Optuna's own terms, for its plots and importances."""
        return optuna.load_study(study_name=self._place.search, storage=self._storage)

    # -- facts and state ----------------------------------------------------------------------------------------------

    def set_fact(self, key: str, value: Any) -> None:
        """Keep something about the whole sweep (baselines, oracle, verdict): plain JSON."""
        self._record.set_attr(f"fact:{key}", value)

    def fact(self, key: str) -> Any:
        """What `set_fact` kept, or None."""
        return self._record.attrs().get(f"fact:{key}")

    @property
    def identity(self) -> str | None:
        """Of this sweep and no other, also of the same name; None in ledgers that are older than it."""
        identity: str | None = self.fact("identity")
        return identity

    def stamp(self, **attrs: Any) -> None:
        """What every trial and re-evaluation that begins from now on has among its attributes."""
        self._record.stamp = self.finalists.stamp = attrs

    def mark(self, phase: Literal["searching", "finalists", "finished", "failed"]) -> None:
        """Where the sweep has got to."""
        if phase != "searching" and self._searching_since is not None:
            self._searched += time.monotonic() - self._searching_since
            self._searching_since = None
        self.set_fact("phase", phase)

    @property
    def state(self) -> State:
        """Where the sweep is; `interrupted` when it is neither at its end nor driven by a living process."""
        phase: State = self.fact("phase") or "searching"
        if phase in ("finished", "failed"):
            return phase
        driven = self._lock is not None or self._place.is_driven()
        return phase if driven else "interrupted"

    def finalist_runs(self) -> list[FinalistRun]:
        """The re-evaluations; of one that was tried again, the last."""
        latest: dict[tuple[int | str, int], FinalistRun] = {}
        for trial in self.finalists.trials():
            attrs = trial.user_attrs
            status, result, epochs = STATUS[trial.state], attrs.get("result", {}), epochs_of(trial)
            run = FinalistRun(attrs["finalist"], attrs["seed"], status, result, epochs)
            latest[(run.finalist, run.seed)] = run
        return list(latest.values())


def _stored_spec(folder: Path, data: Mapping[str, Any]) -> SweepSpec:
    try:
        return SweepSpec.from_dict(data)
    except ConfigError as error:
        raise LedgerError(f"{folder}: this version does not understand the sweep's spec:\n{error}") from None
