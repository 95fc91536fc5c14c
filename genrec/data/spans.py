"""Training windows as places in the flat items, before any item is read.

A window is a run of one user's items; its targets are the positions from `first_target` on, and what stands before a
target is its history. Every function here keeps one promise: a target is in exactly one window.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Spans(NamedTuple):
    """Windows as start and length in the flat items, and the place of their first target inside the window."""

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
    return _history_and_next(offsets[user], target, max_items)


def drawn_spans(offsets: np.ndarray, max_items: int, rng: np.random.Generator) -> Spans:
    """One window a user: a target drawn evenly among the user's targets, and its history."""
    lengths = np.diff(offsets)
    user = np.flatnonzero(lengths >= 2)
    return _history_and_next(offsets[user], rng.integers(1, lengths[user]), max_items)


def _history_and_next(begin: np.ndarray, target: np.ndarray, max_items: int) -> Spans:
    history = np.minimum(target, max_items)
    return Spans(begin + target - history, history + 1, history)
