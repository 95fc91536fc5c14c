"""Training histories changed at random; what is predicted never changes.

Every target is still trained exactly once an epoch, as itself. Only what it sees is altered:

- *crop*: the oldest items of the history are missing, so that a random run of recent ones remains.
- *mask*: items of the history are hidden: they keep their place, the encoder reads nothing there.
- *reorder*: a short run of the history is shuffled.

For a window of one target (`bidirectional`, or any window with `subsample`) this is all there is to it. A window of the
`item_causal` encoder serves many targets, whose histories end inside it. There, crop cuts the window in two: targets
after the cut no longer see what is before it, targets before it are trained as they were. Reorder touches only what
lies before every target it serves: a target inside the shuffled run, or before its end, would see itself or its future,
so these are trained in a window of their own with the true order, and the targets after the run see it shuffled. So in
the causal form an altered window alters only its later targets, and costs a little more because it is read twice. A
masked item stays a target.

All draws come from one generator, and for all rows of a step, so that ranks of a group see the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genrec.data.spans import Spans

MAX_RUN = 5
"items in the longest run that is shuffled"


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Probabilities: of a window to be cropped, of an item to be hidden, of a window to be reordered."""

    crop: float = 0.0
    mask: float = 0.0
    reorder: float = 0.0


@dataclass(frozen=True)
class Runs:
    """The run that is shuffled in each window, as begin inside the window and length; length 0 is none."""

    begin: np.ndarray
    length: np.ndarray


def crop(spans: Spans, probability: float, rng: np.random.Generator) -> Spans:
    """Cut windows so that targets after the cut see at least one and not all of the items before them."""
    chosen = (rng.random(len(spans.start)) < probability) & (spans.length >= 3)
    cut = 1 + (rng.random(len(spans.start)) * (spans.length - 2)).astype(np.int64)
    cut = np.where(chosen, cut, 0)
    before = chosen & (cut >= spans.first_target)
    late = Spans(spans.start + cut, spans.length - cut, np.maximum(spans.first_target - cut, 1))
    return _joined(late, Spans(spans.start[before], cut[before] + 1, spans.first_target[before]))


def reorder(spans: Spans, probability: float, rng: np.random.Generator) -> tuple[Spans, Runs]:
    """Choose runs of 2 to `MAX_RUN` items to be shuffled; all targets of their windows lie behind them."""
    chosen = (rng.random(len(spans.start)) < probability) & (spans.length >= 3)
    longest = np.minimum(MAX_RUN, spans.length - 1)
    length = np.where(chosen, 2 + (rng.random(len(chosen)) * (longest - 1)).astype(np.int64), 0)
    begin = np.where(chosen, (rng.random(len(chosen)) * (spans.length - length)).astype(np.int64), 0)
    end = begin + length
    before = chosen & (end > spans.first_target)
    late = Spans(spans.start, spans.length, np.where(before, end, spans.first_target))
    none = np.zeros(int(before.sum()), dtype=np.int64)
    windows = _joined(late, Spans(spans.start[before], end[before], spans.first_target[before]))
    return windows, Runs(np.concatenate([begin, none]), np.concatenate([length, none]))


def shuffled_columns(runs: Runs, num_columns: int, rng: np.random.Generator) -> np.ndarray:
    """(B, L): for each window the order in which its items are read; columns outside the run stay."""
    column = np.arange(num_columns)
    begin, length = runs.begin[:, None], runs.length[:, None]
    inside = (column >= begin) & (column < begin + length)
    key = np.where(inside, begin + rng.random(inside.shape) * length, column)
    return np.argsort(key, axis=1, kind="stable")


def hidden_items(rows: int, num_columns: int, probability: float, rng: np.random.Generator) -> np.ndarray:
    """(B, L): which items are hidden from the encoder. The last is no history of any target."""
    hidden = rng.random((rows, num_columns)) < probability
    hidden[:, -1] = False
    return hidden


def _joined(one: Spans, two: Spans) -> Spans:
    return Spans(*(np.concatenate(pair) for pair in zip(one, two, strict=True)))
