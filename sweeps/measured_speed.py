"""A speed measured here: the trainers themselves on a part of the data of chosen configs, as many at once as the sweep
will run trials, since processes slow each other down."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from genrec.config import RunConfig, validate_config
from genrec.errors import InputError
from sweeps.costs import Shape, training_flops

if TYPE_CHECKING:
    from genrec.data.batches import Step
    from genrec.semantic_ids import SemanticIds
    from genrec.trainers.fit import Batches

from sweeps.speed import Sample, Samples, Speed
from sweeps.work import Work, Workbench

FLOPS_OF_A_PROBE = {"cpu": 5e10, "cuda": 1e13}
"training operations of one measured epoch: seconds on one core or one GPU"
STEPS = (3, 60)
"of a measured epoch, at least and at most"
PROBE_USERS = 1000
PATIENCE = 1800.0
"seconds that a measurement may take"
TOKENIZER_EPOCHS = (2, 12)


def measure_speed(configs: Sequence[RunConfig], store: str, *, processes: int = 1, threads: int = 1) -> Speed:
    """Train every config for a few batches in `processes` processes at once; their samples together. Raises
    `InputError` when that takes longer than `PATIENCE`."""
    payload = {"configs": [config.to_dict() for config in configs], "store": store, "threads": threads}
    payloads = [payload | {"asked_at": time.time()}] * processes
    context = multiprocessing.get_context("spawn")  # a fork would inherit this process' threads
    samples = Samples()
    pool = ProcessPoolExecutor(processes, mp_context=context)
    try:
        for found in pool.map(_measure, payloads, timeout=PATIENCE):
            samples.add(found)
    except TimeoutError:
        for process in list(pool._processes.values()):  # `shutdown` would wait for them
            process.kill()
        raise InputError(
            f"measuring the speed of {len(configs)} configs, {processes} at once, took more than {PATIENCE:g} s; fix: "
            "plan when the machine is less busy, by an earlier sweep (--like NAME), or without times (--no-measure)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
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
