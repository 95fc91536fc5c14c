"""How fast training goes: measured over a few batches of chosen configs, or read from an earlier sweep's trials.

Either gives samples, from which `Speed.fitted` takes two numbers each for training and for evaluating: seconds a unit
(target, user) and seconds an operation. Measuring calls the trainers themselves on a part of the data, as many at once
as the sweep will run trials, since processes slow each other down.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from genrec.config import RunConfig, validate_config
from sweeps.costs import Shape, decoding_flops, tokenizer_flops, training_flops

if TYPE_CHECKING:
    from datetime import datetime

    from genrec.artifacts import ArtifactStore
    from genrec.data.batches import Step
    from genrec.data.interactions import Interactions
    from genrec.semantic_ids import SemanticIds
    from genrec.trainers.fit import Batches
    from sweeps.ledger import Ledger
    from sweeps.records import TrialRecord

FLOPS_OF_A_PROBE = {"cpu": 5e10, "cuda": 1e13}
"training operations of one measured epoch: seconds on one core or one GPU"
STEPS = (3, 60)
"of a measured epoch, at least and at most"
PROBE_USERS = 1000
TOKENIZER_EPOCHS = (2, 12)


class Sample(NamedTuple):
    """Something that took `seconds`: so many units (targets, users, passes over the catalogue), so many operations."""

    units: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class Samples:
    """What was seen of each part of a trial."""

    train: list[Sample] = field(default_factory=list)
    evaluate: list[Sample] = field(default_factory=list)
    tokenize: dict[str, list[Sample]] = field(default_factory=dict)
    "by the tokenizer's kind"
    setup: list[float] = field(default_factory=list)
    "seconds of a trial that are none of these"
    start: list[float] = field(default_factory=list)
    "seconds until a new process can train; trials share processes"

    def add(self, other: Samples) -> None:
        self.train.extend(other.train)
        self.evaluate.extend(other.evaluate)
        self.setup.extend(other.setup)
        self.start.extend(other.start)
        for kind, samples in other.tokenize.items():
            self.tokenize.setdefault(kind, []).extend(samples)


class Pace(NamedTuple):
    """Seconds = units * `per_unit` + operations * `per_flop`."""

    per_unit: float
    per_flop: float

    def seconds(self, units: float, flops: float) -> float:
        return units * self.per_unit + flops * self.per_flop

    @classmethod
    def fitted(cls, samples: Sequence[Sample]) -> Pace:
        """The two numbers, neither negative, with the least squared relative error."""
        import numpy as np
        from scipy.optimize import nnls

        rows = np.array([[s.units / s.seconds, s.flops / s.seconds] for s in samples])
        scale = rows.max(axis=0)
        scale[scale == 0] = 1.0
        found, _ = nnls(rows / scale, np.ones(len(rows)))
        return cls(*(float(x) for x in found / scale))


@dataclass(frozen=True)
class Speed:
    """What turns work into seconds, and where it comes from."""

    train: Pace
    evaluate: Pace
    tokenize: dict[str, Pace]
    setup: float
    start: float
    source: str

    @classmethod
    def fitted(cls, samples: Samples, source: str) -> Speed | None:
        """None where training or evaluating was not seen."""
        if not samples.train or not samples.evaluate:
            return None
        return cls(
            train=Pace.fitted(samples.train),
            evaluate=Pace.fitted(samples.evaluate),
            tokenize={kind: Pace.fitted(found) for kind, found in samples.tokenize.items()},
            setup=statistics.median(samples.setup or [0.0]),
            start=statistics.median(samples.start or [0.0]),
            source=source,
        )

    def over(self, workers: int) -> Speed:
        """Of a group of `workers` that share every batch, as if sharing cost nothing."""
        if workers == 1:
            return self
        share = 1 / workers
        return dataclasses.replace(
            self,
            train=Pace(self.train.per_unit * share, self.train.per_flop * share),
            evaluate=Pace(self.evaluate.per_unit * share, self.evaluate.per_flop * share),
            source=f"{self.source}, divided by {workers} workers",
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "train": self.train._asdict(),
            "evaluate": self.evaluate._asdict(),
            "tokenize": {kind: pace._asdict() for kind, pace in self.tokenize.items()},
        }


# -- work -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What one run computes."""

    targets: int
    "an epoch"
    steps: int
    "of the optimizer, an epoch; somewhat low, as if every batch were full"
    train_flops: float
    "an epoch"
    users: int
    "of one validation"
    evaluate_flops: float
    "of one validation"
    test_users: int
    epochs: int
    eval_every: int
    tokenizer_key: str
    tokenizer_kind: str
    passes: int
    "of the tokenizer over the catalogue"
    tokenizer_flops: float
    "of all passes"

    @property
    def evaluations(self) -> int:
        return -(-self.epochs // self.eval_every)

    def epoch_seconds(self, speed: Speed) -> float:
        """With its share of the validations."""
        share = self.evaluations / self.epochs
        evaluation = speed.evaluate.seconds(self.users, self.evaluate_flops)
        return speed.train.seconds(self.targets, self.train_flops) + share * evaluation

    def tokenizer_seconds(self, speed: Speed) -> float:
        pace = speed.tokenize.get(self.tokenizer_kind)
        return pace.seconds(self.passes, self.tokenizer_flops) if pace else 0.0

    def test_seconds(self, speed: Speed) -> float:
        """Reading validation and test over all users, as finalists do."""
        per_user = self.evaluate_flops / max(1, self.users)
        return 2 * speed.evaluate.seconds(self.test_users, self.test_users * per_user)


class Workbench:
    """The data of a sweep's configs, and what each config computes on it. Makes dataset and embeddings in the store,
    which the sweep needs anyway."""

    def __init__(self, store: ArtifactStore):
        self.store = store
        self._windows: dict[str, list[tuple[int, int, int]]] = {}
        self._vectors: dict[str, tuple[int, int]] = {}

    def interactions(self, config: RunConfig) -> Interactions:
        from genrec.pipeline import open_interactions, stage_keys

        self.vectors(config)
        return open_interactions(self.store, stage_keys(config))

    def vectors(self, config: RunConfig) -> tuple[int, int]:
        """Number of items and width of their vectors, which are made if they are not in the store."""
        from genrec.pipeline import open_embeddings, run_pipeline, stage_keys

        keys = stage_keys(config)
        if keys["embeddings"] not in self._vectors:
            run_pipeline(config, self.store, until="embeddings")
            num_items, width = open_embeddings(self.store, keys).shape
            self._vectors[keys["embeddings"]] = (num_items, width)
        return self._vectors[keys["embeddings"]]

    def work(self, config: RunConfig) -> Work:
        from genrec.evaluation import sample_users
        from genrec.pipeline import stage_keys

        interactions, keys, values = self.interactions(config), stage_keys(config), config.to_dict()
        shape = Shape.of(values)
        windows = self.windows(config, interactions)
        users = sample_users(interactions.users_of("validation"), config.evaluation.max_users)
        history = _mean_history(interactions, config.tiger.max_seq_len)
        num_items, input_dim = self.vectors(config)
        rqvae = config.tokenizer.kind == "rqvae"
        passes = 0 if config.tokenizer.pretrained_rqvae_path else config.tokenizer.rqvae.epochs if rqvae else 1
        targets = sum(rows * targets for rows, _, targets in windows)
        return Work(
            targets=targets,
            steps=math.ceil(targets / (config.train.batch_size * config.train.gradient_accumulate_every)),
            train_flops=sum(rows * training_flops(shape, items, targets) for rows, items, targets in windows),
            users=len(users),
            evaluate_flops=len(users) * decoding_flops(shape, history, config.evaluation.beam_size),
            test_users=len(interactions.users_of("test")),
            epochs=config.train.epochs,
            eval_every=config.train.eval_every,
            tokenizer_key=keys["tokenizer"],
            tokenizer_kind=config.tokenizer.kind,
            passes=passes,
            tokenizer_flops=passes * tokenizer_flops(values, num_items, input_dim),
        )

    def windows(self, config: RunConfig, interactions: Interactions) -> list[tuple[int, int, int]]:
        """Rows, items of the history and targets of every kind of training window in an epoch."""
        from genrec.pipeline import stage_keys
        from genrec.trainers.tiger_trainer import tiger_batches

        read = {"encoder": config.tiger.encoder, "items": config.tiger.max_seq_len} | config.train.model_dump(
            include={"max_users", "subsample", "augmentation", "crop_probability"}
        )
        key = f"{stage_keys(config)['dataset']} {read}"
        if key not in self._windows:
            counted: dict[tuple[int, int], int] = {}
            for step in tiger_batches(config, interactions).steps(1):
                for window in step.batches:
                    rows, length = window.items_BL.shape
                    kind = (length - 1, length - window.first_target)
                    counted[kind] = counted.get(kind, 0) + rows
            self._windows[key] = [(rows, *kind) for kind, rows in counted.items()]
        return self._windows[key]


def _mean_history(interactions: Interactions, longest: int) -> int:
    import numpy as np

    users = interactions.users_of("validation")
    lengths = interactions.history_ends("validation")[users] - interactions.offsets[users]
    return max(1, round(float(np.minimum(lengths, longest).mean())))


# -- measuring --------------------------------------------------------------------------------------------------------


def measure_speed(configs: Sequence[RunConfig], store: str, *, processes: int = 1, threads: int = 1) -> Speed:
    """Train every config for a few batches in `processes` processes at once; their samples together."""
    payload = {"configs": [config.to_dict() for config in configs], "store": store, "threads": threads}
    payloads = [payload | {"asked_at": time.time()}] * processes
    context = multiprocessing.get_context("spawn")  # a fork would inherit this process' threads
    samples = Samples()
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for found in pool.map(_measure, payloads):
            samples.add(found)
    from genrec.pipeline import pick_device

    speed = Speed.fitted(samples, f"measured here on {pick_device()}, {processes} at once")
    assert speed is not None
    return speed


def _measure(payload: dict[str, Any]) -> Samples:
    """In a process of its own: all configs one after the other, warm from the second epoch on."""
    import logging

    from genrec.artifacts import open_store
    from sweeps.trial import run_trial  # noqa: F401 - what a trial's process imports before it can train
    from sweeps.warm_process import fresh_process_state

    logging.disable(logging.WARNING)
    bench = Workbench(open_store(payload["store"]))
    samples = Samples(start=[time.time() - payload["asked_at"]])
    measured: set[str] = set()
    for values in payload["configs"]:
        config = validate_config(values)
        fresh_process_state(0, payload["threads"])
        work = bench.work(config)
        if work.passes and work.tokenizer_key not in measured:
            samples.add(_tokenizer_samples(config, bench, work))
            measured.add(work.tokenizer_key)
        samples.add(_tiger_samples(config, bench, work))
    return samples


def _tokenizer_samples(config: RunConfig, bench: Workbench, work: Work) -> Samples:
    """k-means as a whole; of the RQ-VAE two short trainings, which tell the start from the epochs."""
    from genrec.pipeline import open_embeddings, stage_keys
    from genrec.trainers.rqvae_trainer import train_tokenizer

    vectors_NE = open_embeddings(bench.store, stage_keys(config))
    per_pass = work.tokenizer_flops / work.passes
    if config.tokenizer.kind != "rqvae":
        started = time.perf_counter()
        train_tokenizer(config.tokenizer, vectors_NE)
        return Samples(tokenize={config.tokenizer.kind: [Sample(0.0, per_pass, time.perf_counter() - started)]})
    seconds = []
    for epochs in TOKENIZER_EPOCHS:
        rqvae = config.tokenizer.rqvae.model_copy(update={"epochs": epochs})
        started = time.perf_counter()
        train_tokenizer(config.tokenizer.model_copy(update={"rqvae": rqvae}), vectors_NE)
        seconds.append(time.perf_counter() - started)
    few, many = TOKENIZER_EPOCHS
    epoch = max((seconds[1] - seconds[0]) / (many - few), seconds[1] / many / 10)
    start = max(0.0, seconds[0] - few * epoch)
    whole = start + work.passes * epoch
    return Samples(tokenize={"rqvae": [Sample(work.passes, work.tokenizer_flops, whole)]})


def _tiger_samples(config: RunConfig, bench: Workbench, work: Work) -> Samples:
    """The first steps of an epoch, twice, and a validation, twice: the first time warms up and is not counted."""
    import torch

    from genrec.evaluation import evaluate, sample_users
    from genrec.models.tiger import Tiger
    from genrec.pipeline import pick_device
    from genrec.trainers.fit import fit
    from genrec.trainers.tiger_trainer import fit_settings, tiger_batches
    from genrec.trie import Trie

    device, shape = pick_device(), Shape.of(config.to_dict())
    interactions, ids = bench.interactions(config), _semantic_ids(config, bench)
    started = time.perf_counter()
    model = Tiger(config.tiger, ids.codes_NC, ids.level_sizes).to(device)
    steps = _FirstSteps(tiger_batches(config, interactions, device), FLOPS_OF_A_PROBE[device], shape)
    setup = time.perf_counter() - started
    rows: list[dict[str, Any]] = []
    settings = dataclasses.replace(fit_settings(config), epochs=2, eval_every=1, patience=None, monitor="loss")
    smoothing = config.train.label_smoothing
    fit(model, lambda window: model.loss(window, smoothing), steps, settings, report=rows.append)
    samples = Samples(setup=[setup])
    samples.train.append(Sample(steps.targets, steps.flops, steps.targets / rows[-1]["targets_per_second"]))
    users = sample_users(interactions.users_of("validation"), min(work.users, PROBE_USERS))
    trie = Trie(ids.codes_NC).to(device)
    for _ in range(2):
        started = time.perf_counter()
        evaluate(model, trie, interactions, "validation", config.evaluation, ids.tuple_levels, users)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    flops = work.evaluate_flops * len(users) / work.users
    samples.evaluate.append(Sample(len(users), flops, seconds))
    return samples


def _semantic_ids(config: RunConfig, bench: Workbench) -> SemanticIds:
    """Those of k-means cost seconds and branch as trained ones do, which is what decoding depends on."""
    from genrec.pipeline import open_embeddings, stage_keys
    from genrec.semantic_ids import assign_ids
    from genrec.trainers.rqvae_trainer import train_tokenizer

    vectors_NE = open_embeddings(bench.store, stage_keys(config))
    return assign_ids(train_tokenizer(config.tokenizer.model_copy(update={"kind": "rkmeans"}), vectors_NE), vectors_NE)


class _FirstSteps:
    """Of every epoch as many steps as about `flops` operations take; counts those of the last epoch."""

    def __init__(self, batches: Batches, flops: float, shape: Shape):
        self.batches, self.shape = batches, shape
        self.targets, self.flops = 0, 0.0
        first = next(iter(batches.steps(1)))
        wanted = round(flops / self._flops_of(first))
        self.count = min(max(wanted, STEPS[0]), STEPS[1], batches.num_steps(1))

    def steps(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Step]:
        self.targets, self.flops = 0, 0.0
        for step in itertools.islice(self.batches.steps(epoch, rank, world), self.count):
            self.targets += step.num_targets
            self.flops += self._flops_of(step)
            yield step

    def num_steps(self, epoch: int) -> int:
        return self.count

    def _flops_of(self, step: Step) -> float:
        shapes = ((*window.items_BL.shape, window.first_target) for window in step.batches)
        return sum(rows * training_flops(self.shape, length - 1, length - first) for rows, length, first in shapes)


# -- an earlier sweep -------------------------------------------------------------------------------------------------


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
