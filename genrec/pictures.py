"""Pictures of a trained model: its learning curves, and where its encoder looks in one history.

Letters: S encoder layers, B = 1 history, I items in it, H heads, M encoder tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from genrec.inspection import save
from genrec.recommender import Recommender


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path | str) -> Path:
    """`curves_figure` as a .png or .svg file."""
    return save(curves_figure(rows), path)


def curves_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and validation metrics over the epochs, `rows` as `fit` reports them."""
    names = sorted({name for row in rows for name in row})
    recalls = [name for name in names if name.startswith(("recall@", "ndcg@"))]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, metrics = figure.subplots(1, 2)
    _draw_lines(losses, rows, [name for name in names if name.endswith("loss")], "loss")
    _draw_lines(metrics, rows, recalls, "validation")
    return figure


def _draw_lines(axes: Axes, rows: Sequence[Mapping[str, Any]], names: Sequence[str], title: str) -> None:
    for name in names:
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None, label=name)
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if names:
        axes.legend(fontsize=8)


def draw_attention(recommender: Recommender, history: Sequence[str], path: Path | str) -> Path:
    """`attention_figure` as a .png or .svg file."""
    return save(attention_figure(recommender, history), path)


def attention_figure(recommender: Recommender, history: Sequence[str]) -> Figure:
    """The encoder's attention over one history of item ids: the mean of the heads, one panel a layer."""
    weights_SHMM, labels = _attention(recommender, history)
    layers, size = weights_SHMM.shape[0], len(labels)
    side = max(3.0, 0.28 * size)
    figure = Figure(figsize=(layers * side + 1, side + 1), layout="constrained")
    for layer, axes in enumerate(figure.subplots(1, layers, squeeze=False)[0]):
        image = axes.imshow(weights_SHMM[layer].mean(0).numpy(), cmap="Blues", vmin=0)
        axes.set(title=f"layer {layer + 1}", xlabel="attended token")
        axes.set_xticks(range(size), labels, rotation=90, fontsize=6, parse_math=False)
        axes.set_yticks(range(size), labels, fontsize=6, parse_math=False)
        figure.colorbar(image, ax=axes, shrink=0.7)
    return figure


def _attention(recommender: Recommender, history: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Attention (S, H, M, M) over the recent items of a history, and what each of the M tokens is."""
    model = recommender.model
    recent = history[-model.config.max_seq_len :]
    numbers_I = torch.tensor([recommender.number(item) for item in recent], device=model.codes_NC.device)
    weights_SBHMM = model.get_attention_weights(numbers_I, items=True)
    codes = [""] if model.tokens_per_item == 1 else [f" code {code + 1}" for code in range(model.tokens_per_item)]
    plain = ["".join(c for c in item if c.isprintable()) for item in recent]
    labels = ["user"] * model.user_tokens + [f"{item}{code}" for item in plain for code in codes]
    return weights_SBHMM[:, 0].cpu(), labels
