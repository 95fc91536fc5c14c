"""Training batches without padding: windows of equal length, grouped, as tensors.

For the `item_causal` encoder a window is a user's whole training sequence (`genrec.data.spans`); for the
`bidirectional` one, and with `subsample` for both, it is one history and its next item. A step holds as many targets as
asked for, taken from as few groups as possible. Its windows, their order and what augmentation does to them are
functions of seed and epoch alone, so a resumed run sees the same batches.

Letters: B rows, L items of a window, R rows of a group, U users.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genrec.data.augmentation import Augmentation, Runs, crop, hidden_items, reorder, shuffled_columns
from genrec.data.spans import Spans, causal_spans, drawn_spans, single_spans
from genrec.errors import InputError
from genrec.models.tiger import Window

NO_AUGMENTATION = Augmentation()


class Step(NamedTuple):
    """One optimizer step: this rank's batches, and the targets over all ranks that the loss is divided by."""

    batches: list[Any]
    num_targets: int


class Group(NamedTuple):
    """Windows of one length and first target: where they start, what is shuffled in them, whose they are."""

    start_R: np.ndarray
    length: int
    first_target: int
    runs: Runs | None
    user_R: np.ndarray | None

    @property
    def targets(self) -> int:
        """Targets of one row."""
        return self.length - self.first_target


Part = tuple[int, Tensor]
"number of a group, and some of its rows"


class WindowBatches:
    """Steps of about `batch_size` x `accumulate` targets from flat sequences (`offsets` (U+1,), `items` (n,)).

    No batch of a step holds more than `batch_size` targets over all ranks, unless one row does. `user_U`: the bucket
    of each user's embedding.
    """

    def __init__(
        self,
        offsets: np.ndarray,
        items: np.ndarray,
        *,
        causal: bool,
        max_items: int,
        batch_size: int,
        seed: int,
        accumulate: int = 1,
        subsample: bool = False,
        augmentation: Augmentation = NO_AUGMENTATION,
        user_U: Tensor | None = None,
        device: torch.device | str = "cpu",
    ):
        self.offsets, self.max_items, self.causal, self.subsample = offsets, max_items, causal, subsample
        self.batch_size, self.step_size, self.seed = batch_size, batch_size * accumulate, seed
        self.augmentation, self.user_U, self.device = augmentation, user_U, device
        self.items = torch.from_numpy(np.asarray(items, dtype=np.int32))
        targets = np.maximum(np.diff(offsets) - 1, 0)
        self.num_targets = int(np.count_nonzero(targets) if subsample else targets.sum())
        if not self.num_targets:
            raise InputError("no training targets: every user has fewer than two training items")
        changing = subsample or augmentation.crop or augmentation.reorder
        self._fixed = None if changing else self._grouped(self._spans(_generator(seed, 0)), None)

    def steps(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Step]:
        """The steps of an epoch as rank `rank` of `world` sees them: every row of a batch goes to one rank."""
        rng = _generator(self.seed, epoch)
        groups = self._groups(rng)
        for parts in self._plan(groups, epoch):
            windows, targets = [], 0
            for number, rows in parts:
                group = groups[number]
                targets += len(rows) * group.targets
                for chunk in rows.split(max(1, self.batch_size // group.targets)):
                    window = self._window(group, chunk, slice(rank, None, world), rng)
                    if len(window.items_BL):
                        windows.append(window)
            yield Step(windows, targets)

    def num_steps(self, epoch: int) -> int:
        return len(self._plan(self._groups(_generator(self.seed, epoch)), epoch))

    # ---------------------------------------------------------------- windows

    def _spans(self, rng: np.random.Generator) -> Spans:
        if self.subsample:
            return drawn_spans(self.offsets, self.max_items, rng)
        return (causal_spans if self.causal else single_spans)(self.offsets, self.max_items)

    def _groups(self, rng: np.random.Generator) -> list[Group]:
        if self._fixed is not None:
            return self._fixed
        spans, runs = self._spans(rng), None
        if self.augmentation.crop:
            spans = crop(spans, self.augmentation.crop, rng)
        if self.augmentation.reorder:
            spans, runs = reorder(spans, self.augmentation.reorder, rng)
        return self._grouped(spans, runs)

    def _grouped(self, spans: Spans, runs: Runs | None) -> list[Group]:
        """Windows gathered by length and first target."""
        kind = spans.length * (self.max_items + 2) + spans.first_target
        order = np.argsort(kind, kind="stable")
        groups = []
        for rows in np.split(order, np.flatnonzero(np.diff(kind[order])) + 1):
            start_R = spans.start[rows]
            some = Runs(runs.begin[rows], runs.length[rows]) if runs and runs.length[rows].any() else None
            user_R = None if self.user_U is None else np.searchsorted(self.offsets, start_R, side="right") - 1
            groups.append(Group(start_R, int(spans.length[rows[0]]), int(spans.first_target[rows[0]]), some, user_R))
        return groups

    def _window(self, group: Group, rows: Tensor, mine: slice, rng: np.random.Generator) -> Window:
        """Rows `mine` of `rows`. All rows draw, so that every rank uses the generator alike."""
        row_B, columns, hidden_BL = rows.numpy(), np.arange(group.length), None
        if group.runs:
            runs = Runs(group.runs.begin[row_B], group.runs.length[row_B])
            columns = shuffled_columns(runs, group.length, rng)[mine]
        if self.augmentation.mask:
            hidden = hidden_items(len(row_B), group.length, self.augmentation.mask, rng)[mine]
            hidden_BL = torch.from_numpy(hidden).to(self.device)
        row_B = row_B[mine]
        place_BL = torch.from_numpy(group.start_R[row_B][:, None] + columns)
        user_B = None
        if self.user_U is not None and group.user_R is not None:
            user_B = self.user_U[torch.from_numpy(group.user_R[row_B])].to(self.device)
        return Window(self.items[place_BL].to(self.device).long(), group.first_target, user_B, hidden_BL)

    # ------------------------------------------------------------------ steps

    def _plan(self, groups: list[Group], epoch: int) -> list[list[Part]]:
        """Shuffled rows of every group in full steps; what is left of the groups is packed together into steps."""
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        full: list[list[Part]] = []
        rest: list[Part] = []
        for index, group in enumerate(groups):
            rows = torch.randperm(len(group.start_R), generator=generator)
            for chunk in rows.split(max(1, self.step_size // group.targets)):
                if len(chunk) * group.targets * 2 > self.step_size:
                    full.append([(index, chunk)])
                else:
                    rest.append((index, chunk))
        steps = full + self._packed(rest, groups, generator)
        order = torch.randperm(len(steps), generator=generator).tolist()
        return [steps[i] for i in order]

    def _packed(self, rest: list[Part], groups: list[Group], generator: torch.Generator) -> list[list[Part]]:
        steps: list[list[Part]] = []
        room = 0
        for i in torch.randperm(len(rest), generator=generator).tolist():
            number, rows = rest[i]
            targets = len(rows) * groups[number].targets
            if targets > room:
                steps.append([])
                room = self.step_size
            steps[-1].append((number, rows))
            room -= targets
        return steps


class RowBatches:
    """Shuffled rows of one tensor (N, ...) in steps of `batch_size`: the tokenizer's training set."""

    def __init__(self, rows: Tensor, *, batch_size: int, seed: int):
        self.rows, self.batch_size, self.seed = rows, min(batch_size, len(rows)), seed

    def steps(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Step]:
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(_mix(self.seed, epoch)))
        for chunk in order.split(self.batch_size):
            mine = chunk[rank::world]
            yield Step([self.rows[mine]] if len(mine) else [], len(chunk))

    def num_steps(self, epoch: int) -> int:
        return -(-len(self.rows) // self.batch_size)


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng(_mix(seed, epoch))


def _mix(seed: int, epoch: int) -> int:
    """One seed from two numbers, far apart for neighbours."""
    return (seed * 1_000_003 + epoch * 7_919 + 12_345) % (2**63)
