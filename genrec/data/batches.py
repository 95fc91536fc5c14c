"""Training batches without padding: windows of equal length, grouped, as tensors.

A window is a run of items; its targets are the positions from `first_target` on. For the `item_causal` encoder a window
is a user's whole training sequence (long users are cut into overlapping windows, each target counted once); for the
`bidirectional` one it is one history and its next item. A step holds `batch_size` targets, taken from as few groups as
possible; its order is a function of seed and epoch alone, so a resumed run sees the same batches.

Letters: B rows, L items of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.models.tiger import Window


class Step(NamedTuple):
    """One optimizer step: this rank's batches, and the targets over all ranks that the loss is divided by."""

    batches: list[Any]
    num_targets: int


class Spans(NamedTuple):
    """Windows as start and end in the flat items, and the start of their targets inside the window."""

    start: np.ndarray
    length: np.ndarray
    first_target: np.ndarray


def causal_spans(offsets: np.ndarray, max_items: int) -> Spans:
    """Windows in which every position is trained.

    A sequence of up to `max_items` + 1 items is one window. A longer one goes on in windows that overlap by half, so
    that no target but a user's first ones sees fewer than `max_items` // 2 items.
    """
    lengths = np.diff(offsets)
    size, stride = max_items + 1, max(1, max_items - max_items // 2)
    extra = np.maximum(0, -(-(lengths - size) // stride))
    count = np.where(lengths >= 2, 1 + extra, 0)
    user = np.repeat(np.arange(len(lengths)), count)
    index = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    last_start = np.maximum(0, lengths[user] - size)
    start = np.minimum(index * stride, last_start)
    covered = np.where(index > 0, (index - 1) * stride + size, 1)
    return Spans(offsets[user] + start, np.minimum(lengths[user], size), covered - start)


def single_spans(offsets: np.ndarray, max_items: int) -> Spans:
    """One window for every (history, next item); histories cut to the last `max_items`."""
    lengths = np.diff(offsets)
    count = np.maximum(lengths - 1, 0)
    user = np.repeat(np.arange(len(lengths)), count)
    target = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count) + 1
    history = np.minimum(target, max_items)
    return Spans(offsets[user] + target - history, history + 1, history)


class WindowBatches:
    """Steps of about `batch_size` targets from flat sequences (`offsets` (U+1,), `items` (n,))."""

    def __init__(
        self,
        offsets: np.ndarray,
        items: np.ndarray,
        *,
        causal: bool,
        max_items: int,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        spans = (causal_spans if causal else single_spans)(offsets, max_items)
        if not len(spans.start):
            raise InputError("no training targets: every user has fewer than two training items")
        self.batch_size, self.seed = batch_size, seed
        self.groups = list(_groups(spans, items, device))
        self.num_targets = int((spans.length - spans.first_target).sum())

    def steps(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Step]:
        """The steps of an epoch as rank `rank` of `world` sees them: every row of a batch goes to one rank."""
        for parts in self._plan(epoch):
            windows, targets = [], 0
            for group, rows in parts:
                window = self.groups[group]
                targets += len(rows) * (window.items_BL.shape[1] - window.first_target)
                mine = rows[rank::world]
                if len(mine):
                    windows.append(Window(window.items_BL[mine], window.first_target))
            yield Step(windows, targets)

    def num_steps(self, epoch: int) -> int:
        return len(self._plan(epoch))

    def _plan(self, epoch: int) -> list[list[tuple[int, Tensor]]]:
        """Shuffled rows of every group in full steps; what is left of the groups is packed together into steps."""
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        full: list[list[tuple[int, Tensor]]] = []
        rest: list[tuple[int, Tensor]] = []
        for index, window in enumerate(self.groups):
            rows = torch.randperm(window.items_BL.shape[0], generator=generator)
            targets = window.items_BL.shape[1] - window.first_target
            for chunk in rows.split(max(1, self.batch_size // targets)):
                if len(chunk) * targets * 2 > self.batch_size:
                    full.append([(index, chunk)])
                else:
                    rest.append((index, chunk))
        steps = full + self._pack(rest, generator)
        order = torch.randperm(len(steps), generator=generator).tolist()
        return [steps[i] for i in order]

    def _pack(self, rest: list[tuple[int, Tensor]], generator: torch.Generator) -> list[list[tuple[int, Tensor]]]:
        steps: list[list[tuple[int, Tensor]]] = []
        room = 0
        for i in torch.randperm(len(rest), generator=generator).tolist():
            group, rows = rest[i]
            window = self.groups[group]
            targets = len(rows) * (window.items_BL.shape[1] - window.first_target)
            if targets > room:
                steps.append([])
                room = self.batch_size
            steps[-1].append((group, rows))
            room -= targets
        return steps


def _groups(spans: Spans, items: np.ndarray, device: torch.device | str) -> Iterator[Window]:
    """Windows gathered by length and first target, each group one tensor (rows, L)."""
    flat = torch.from_numpy(np.asarray(items, dtype=np.int64)).to(device)
    kinds, group = np.unique(np.stack([spans.length, spans.first_target]), axis=1, return_inverse=True)
    for index in range(kinds.shape[1]):
        start = torch.from_numpy(spans.start[group == index].astype(np.int64)).to(device)
        length, first_target = (int(value) for value in kinds[:, index])
        yield Window(flat[start[:, None] + torch.arange(length, device=device)], first_target)


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


def _mix(seed: int, epoch: int) -> int:
    """One seed from two numbers, far apart for neighbours."""
    return (seed * 1_000_003 + epoch * 7_919 + 12_345) % (2**63)
