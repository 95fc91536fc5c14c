"""What the runs of a sweep compute on its data: targets, users, operations, passes of the tokenizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genrec.config import RunConfig
from sweeps.costs import Shape, decoding_flops, tokenizer_flops, training_flops

if TYPE_CHECKING:
    from genrec.artifacts import ArtifactStore
    from genrec.data.interactions import Interactions

from sweeps.speed import Speed


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
        self._works: dict[str, Work] = {}

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
        """Counted once a config."""
        if config.hash not in self._works:
            self._works[config.hash] = self._count(config)
        return self._works[config.hash]

    def _count(self, config: RunConfig) -> Work:
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
