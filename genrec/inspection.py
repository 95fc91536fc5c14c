"""A look at the semantic IDs of a catalogue: a table and a picture, and in words whether they are healthy.

Letters: N items, L levels of the tokenizer, K codebook size, G groups of items with one tuple.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from genrec.data.interactions import Items
from genrec.errors import InputError
from genrec.semantic_ids import MAX_COLLISION_RATE, MIN_USAGE, Health, SemanticIds

SUFFIXES = (".png", ".svg")
EXAMPLES, TITLE_WIDTH = 3, 60


def inspect_ids(ids: SemanticIds, items: Items) -> str:
    """Health per level and of the whole, verdict, and items of the commonest codes and of the largest group."""
    health, num_items = ids.health, len(ids.codes_NC)
    lines = [f"{'level':>5} {'codes':>7} {'used':>7} {'usage':>7} {'perplexity':>11}  items of its commonest code"]
    for level, (usage, perplexity) in enumerate(zip(health.usage, health.perplexity, strict=True)):
        size = ids.level_sizes[level]
        common = int(torch.bincount(ids.codes_NC[:, level]).argmax())
        examples = _titles((ids.codes_NC[:, level] == common).nonzero().flatten(), items)
        lines.append(f"{level + 1:5} {size:7} {round(usage * size):7} {usage:7.1%} {perplexity:11.1f}  {examples}")
    lines += [
        f"items            {num_items}",
        f"distinct tuples  {health.distinct} (duplicates: {1 - health.distinct / num_items:.1%})",
        f"collision rate   {health.collision_rate:.1%} of the items share their tuple",
        f"largest group    {health.largest_group} items",
    ]
    together = _largest_group(ids)
    if len(together) > 1:  # not where the items of a group have moved to free tuples
        lines.append(f"items of one     {_titles(together, items)}")
    if len(ids.level_sizes) > ids.tuple_levels:
        lines.append(f"collision code   {ids.level_sizes[-1]} values, appended to the {ids.tuple_levels} levels")
    return "\n".join([*lines, verdict(health)])


def verdict(health: Health) -> str:
    """`healthy`, or `unhealthy: ` and why."""
    faults = health.faults()
    return f"unhealthy: {'; '.join(faults)}" if faults else "healthy"


def draw_ids(ids: SemanticIds, items: Items, path: Path | str) -> Path:
    """`ids_figure` as a .png or .svg file."""
    return save(ids_figure(ids, items), path)


def ids_figure(ids: SemanticIds, items: Items) -> Figure:
    """How items spread over the codes of every level, and over groups of one tuple."""
    levels = len(ids.health.usage)
    figure = Figure(figsize=(4.2 * (levels + 1), 3.6), layout="constrained")
    axes = figure.subplots(1, levels + 1, squeeze=False)[0]
    for level in range(levels):
        _draw_level(axes[level], ids, level)
    _draw_groups(axes[levels], ids)
    figure.suptitle(f"{len(items)} items, {levels} levels: {verdict(ids.health)}", fontsize=10, wrap=True)
    return figure


def save(figure: Figure, path: Path | str) -> Path:
    """Write a picture to a file whose suffix says how. Raises `InputError` for any but .png and .svg."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: a picture's name must end in {' or '.join(SUFFIXES)}")
    figure.savefig(path, dpi=120)
    return path


def _draw_level(axes: Axes, ids: SemanticIds, level: int) -> None:
    size = ids.level_sizes[level]
    count_K = torch.bincount(ids.codes_NC[:, level], minlength=size).sort(descending=True).values
    axes.fill_between(range(1, size + 1), count_K.numpy(), step="mid", color="tab:blue", alpha=0.7)
    axes.axhline(len(ids.codes_NC) / size, color="black", linewidth=1, linestyle=":", label="evenly spread")
    axes.axvline(MIN_USAGE * size, color="tab:red", linewidth=1, linestyle="--", label=f"{MIN_USAGE:.0%} of the codes")
    usage, perplexity = ids.health.usage[level], ids.health.perplexity[level]
    axes.set(title=f"level {level + 1}: usage {usage:.0%}, perplexity {perplexity:.0f} of {size}")
    axes.set(xlabel="codes, commonest first", ylabel="items", xlim=(1, max(2, size)), ylim=(0, None))
    axes.legend(fontsize=8, loc="upper right")


def _draw_groups(axes: Axes, ids: SemanticIds) -> None:
    """Items by the size of their group: what stands right of 1 shares its tuple."""
    size_G = _groups(ids)[1]
    items_of_size = torch.bincount(size_G, weights=size_G.double())[1:]
    axes.bar(range(1, len(items_of_size) + 1), items_of_size.numpy(), color="tab:orange")
    rate = ids.health.collision_rate
    axes.set(title=f"collision rate {rate:.1%} (healthy up to {MAX_COLLISION_RATE:.0%})")
    axes.set(xlabel="items with the same tuple", ylabel="items", yscale="symlog")


def _groups(ids: SemanticIds) -> tuple[Tensor, Tensor]:
    tuples_NL = ids.codes_NC[:, : ids.tuple_levels]
    _, group_N, size_G = torch.unique(tuples_NL, dim=0, return_inverse=True, return_counts=True)
    return group_N, size_G


def _largest_group(ids: SemanticIds) -> Tensor:
    group_N, size_G = _groups(ids)
    return (group_N == int(size_G.argmax())).nonzero().flatten()


def _titles(numbers: Tensor, items: Items) -> str:
    """Some titles, cut; control characters of foreign titles must not reach a terminal."""
    shown = [items.titles[number] for number in numbers[:EXAMPLES].tolist()]
    plain = ["".join(c if c.isprintable() else " " for c in title)[:TITLE_WIDTH] for title in shown]
    return " | ".join(plain) + (f" | ... {len(numbers) - EXAMPLES} more" if len(numbers) > EXAMPLES else "")
