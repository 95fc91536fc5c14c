"""The items' semantic IDs: are they healthy, and what lies together? From the artifacts; left out where they are gone.

Letters: N items, C codes an item, K codebook size, G groups of items with one tuple.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import torch

from genrec.artifacts import ArtifactStore
from genrec.data.interactions import Interactions
from genrec.inspection import verdict
from genrec.pipeline import open_ids, open_interactions
from genrec.semantic_ids import MAX_COLLISION_RATE, MIN_USAGE, SemanticIds
from sweeps.finalists import winning_run
from sweeps.folders import artifact_store
from sweeps.ledger import Ledger
from sweeps.report.document import Block, Cell, Picture, Section, Table, Text
from sweeps.report.figures import as_json, label, whole_numbers
from sweeps.report.standing import best_so_far
from sweeps.wording import counted

MAX_NODES = 3000
"of the tree of semantic IDs"
READABLE = 40
"items whose titles can be read in the tree at once"
MAX_BRANCHES = 20
"of a level, in the table below the tree"
MAX_TOKENIZERS = 20
_TITLES = 3  # in a branch's text
TREE_ROOT = "#3b4650"
TREE_COLOURS = ["#24618f", "#7d5200", "#22693f", "#933228", "#5f4596", "#176b6b", "#8f3269", "#4d5761"]
"white stands out from all of them"


def catalogue_sections(ledger: Ledger) -> list[Section]:
    """Health of the winner's semantic IDs (before there is a winner, of the best trial's), and their tree."""
    store = store_of(ledger)
    artifacts = chosen_artifacts(ledger)
    found = _open(store, artifacts)
    if isinstance(found, str):
        missing: list[Block] = [Picture("Semantic IDs", None, f"Left out: {found}.")]
        return [Section("tokenizer", "Semantic IDs", missing)]
    ids, interactions = found
    titles = interactions.catalogue.titles
    return [
        Section("tokenizer", "Health of the semantic IDs", [*health(ids), *tokenizers(ledger, store)]),
        Section("tree", "Tree of semantic IDs", [tree(ids, titles), branches(ids, titles)]),
    ]


def store_of(ledger: Ledger) -> ArtifactStore:
    """Where the sweep's stages are."""
    return artifact_store(ledger.folder.parent)


def chosen_artifacts(ledger: Ledger) -> Mapping[str, str]:
    """Keys of the stages of the winner, or of the best trial so far."""
    run = winning_run(ledger)
    if run is not None:
        return run.result.get("artifacts") or {}
    best = best_so_far(ledger)
    return best.artifacts if best else {}


def open_dataset(store: ArtifactStore, artifacts: Mapping[str, str]) -> Interactions | str:
    """The interactions, or why they can't be read."""
    key = artifacts.get("dataset")
    if key is None or not store.has("dataset", key):
        return f"the dataset's artifact is not in {store.address}"
    try:
        return open_interactions(store, {"dataset": key})
    except Exception as error:  # an artifact of another version, or a damaged one: the report is still worth having
        return f"the dataset's artifact can't be read ({type(error).__name__})"


def _open(store: ArtifactStore, artifacts: Mapping[str, str]) -> tuple[SemanticIds, Interactions] | str:
    key = artifacts.get("semantic_ids")
    if key is None:
        return "no trial has told yet which semantic IDs it used"
    if not store.has("semantic_ids", key):
        return f"their artifact is not in {store.address}"
    interactions = open_dataset(store, artifacts)
    if isinstance(interactions, str):
        return interactions
    try:
        return open_ids(store, {"semantic_ids": key}), interactions
    except Exception as error:  # as above
        return f"their artifact can't be read ({type(error).__name__})"


# -- health -----------------------------------------------------------------------------------------------------------


def health(ids: SemanticIds) -> list[Block]:
    """Verdict, numbers a level, and how items spread over codes and tuples."""
    found, num_items = ids.health, len(ids.codes_NC)
    rows: list[list[Cell]] = [
        [level + 1, ids.level_sizes[level], round(usage * ids.level_sizes[level]), f"{usage:.1%}", perplexity]
        for level, (usage, perplexity) in enumerate(zip(found.usage, found.perplexity, strict=True))
    ]
    note = (
        f"{counted(num_items, 'item')}, {found.distinct:,} distinct tuples; {found.collision_rate:.1%} share theirs "
        f"(healthy up to {MAX_COLLISION_RATE:.0%}), at most {counted(found.largest_group, 'item')} one. "
        f"Healthy usage is {MIN_USAGE:.0%} and more."
    )
    table = Table("Codes a level", ["level", "codes", "used", "usage", "perplexity"], rows, note)
    return [Text(f"These semantic IDs are {verdict(found)}.", strong=True), table, usage(ids), groups(ids)]


def usage(ids: SemanticIds) -> Picture:
    """Items a code, the commonest code first, for every level."""
    figure = go.Figure()
    for level in range(ids.tuple_levels):
        size = ids.level_sizes[level]
        count_K = torch.bincount(ids.codes_NC[:, level], minlength=size).sort(descending=True).values
        figure.add_trace(
            go.Scatter(
                x=list(range(1, size + 1)),
                y=count_K.tolist(),
                mode="lines",
                line={"shape": "hvh"},
                name=f"level {level + 1}",
                hovertemplate="code %{x}: %{y} items<extra></extra>",
            )
        )
    figure.update_layout(xaxis={"title": "codes, the commonest first"}, yaxis={"title": "items", "rangemode": "tozero"})
    note = "A level line means that codes are used evenly; a steep one that a few codes carry most items."
    return Picture("Items a code", as_json(figure, 300), note)


def groups(ids: SemanticIds) -> Picture:
    """How many items share their tuple with how many others."""
    tuples_NL = ids.codes_NC[:, : ids.tuple_levels]
    size_G = torch.unique(tuples_NL, dim=0, return_counts=True)[1]
    counts = Counter(size_G.tolist())
    figure = go.Figure(
        go.Bar(
            x=sorted(counts),
            y=[size * counts[size] for size in sorted(counts)],
            hovertemplate="groups of %{x}: %{y} items<extra></extra>",
            marker_color="#c9820a",
        )
    )
    figure.update_layout(
        xaxis={"title": "items with the same tuple", **whole_numbers(list(counts))}, yaxis={"title": "items"}
    )
    note = "What stands right of 1 collides" + (
        "; a further code tells these items apart." if len(ids.level_sizes) > ids.tuple_levels else "."
    )
    if len(size_G) == len(ids.codes_NC) and ids.health.collision_rate:
        note = "Colliding items were moved to free tuples: none is shared any more."
    return Picture("Collisions", as_json(figure, 300), note)


def tokenizers(ledger: Ledger, store: ArtifactStore) -> list[Block]:
    """Health of all sets of semantic IDs that trials used, beside what the trials came to."""
    best: dict[str, Any] = {}
    trials: Counter[str] = Counter()
    for record in ledger.leaderboard():
        key = record.artifacts.get("semantic_ids")
        if key is not None:
            best.setdefault(key, record)
            trials[key] += 1
    rows: list[list[Cell]] = []
    for key, record in list(best.items())[:MAX_TOKENIZERS]:
        if not store.has("semantic_ids", key):
            continue
        try:
            found = open_ids(store, {"semantic_ids": key}).health
        except Exception:  # one unreadable set is no reason to hide the others
            continue
        kind = ledger.config_of(record.number).tokenizer.kind
        least = min(found.usage)
        row: list[Cell] = [key[:8], kind, trials[key], record.value, f"{least:.1%}", f"{found.collision_rate:.1%}"]
        rows.append([*row, found.largest_group])
    if len(rows) < 2:
        return []
    columns = ["semantic IDs", "kind", "trials", f"best {ledger.spec.metric}", "lowest usage", "collisions"]
    more = f" The first {MAX_TOKENIZERS} of {len(best)}." if len(best) > MAX_TOKENIZERS else ""
    return [Table("Semantic IDs of the search", [*columns, "largest group"], rows, f"Best trial first.{more}")]


# -- tree -------------------------------------------------------------------------------------------------------------

Prefix = tuple[int, ...]


def tree(ids: SemanticIds, titles: Sequence[str]) -> Picture:
    """Items below their codes, level by level, to be walked through; of a big catalogue the largest branches."""
    members: dict[Prefix, list[int]] = defaultdict(list)
    for item, codes in enumerate(ids.codes_NC.tolist()):
        for depth in range(len(codes) + 1):
            members[tuple(codes[:depth])].append(item)
    children = _children(members)
    kept = _kept(members, children)
    names = {prefix: "/".join(map(str, prefix)) or "all" for prefix in kept}
    figure = go.Figure(
        go.Icicle(
            ids=[names[prefix] for prefix in kept],
            labels=[_name(prefix, members[prefix], titles) for prefix in kept],
            parents=[names[prefix[:-1]] if prefix else "" for prefix in kept],
            values=[len(members[prefix]) for prefix in kept],
            text=[_examples(members[prefix], titles) for prefix in kept],
            branchvalues="total",
            maxdepth=3,
            textinfo="label+text",
            textfont={"color": "#ffffff"},
            root={"color": TREE_ROOT},
            leaf={"opacity": 1},
            hovertemplate="%{id}: %{value} items<br>%{label}<br>%{text}<extra></extra>",
        )
    )
    margin = {"t": 10, "l": 0, "r": 0, "b": 10}
    start = _start(members, children, names)
    figure.update_traces(level=names[start])
    figure.update_layout(margin=margin, iciclecolorway=TREE_COLOURS, extendiciclecolors=False)
    note = "A click opens a branch, a click on the bars above it leads back. What a branch holds stands in its text."
    if start:
        note += f" It begins in branch {names[start]}, where single items can be read."
    closed = sum(bool(children[prefix]) and children[prefix][0] not in names for prefix in kept)
    if closed:
        shown = sum(len(members[prefix]) for prefix in kept if not children[prefix] or len(members[prefix]) == 1)
        note += (
            f" {shown:,} of {len(ids.codes_NC):,} items are drawn one by one, those of the largest branches; of "
            f"{closed:,} other branches the first items stand in the text."
        )
    return Picture("Items below their codes", as_json(figure, 520), note)


def branches(ids: SemanticIds, titles: Sequence[str]) -> Table:
    """The largest branches of the first two levels, for who can't click through the picture."""
    rows: list[list[Cell]] = []
    for depth in (1, 2):
        members: dict[Prefix, list[int]] = defaultdict(list)
        for item, codes in enumerate(ids.codes_NC[:, :depth].tolist()):
            members[tuple(codes)].append(item)
        largest = sorted(members, key=lambda prefix: (-len(members[prefix]), prefix))[:MAX_BRANCHES]
        rows += [
            ["/".join(map(str, prefix)), len(members[prefix]), "; ".join(titles[i] for i in members[prefix][:_TITLES])]
            for prefix in largest
        ]
    note = f"Of the first and of the second level at most {MAX_BRANCHES} each, the largest first."
    return Table("Largest branches", ["codes", "items", "first titles"], rows, note, ["items"])


def _children(members: Mapping[Prefix, Sequence[int]]) -> dict[Prefix, list[Prefix]]:
    """The branches below each, the largest first; none below one item, which is drawn by its title at once."""
    found: dict[Prefix, list[Prefix]] = {prefix: [] for prefix in members}
    for prefix in members:
        if prefix and (len(prefix) == 1 or len(members[prefix[:-1]]) > 1):
            found[prefix[:-1]].append(prefix)
    for below in found.values():
        below.sort(key=lambda prefix: (-len(members[prefix]), prefix))
    return found


def _kept(members: Mapping[Prefix, Sequence[int]], children: Mapping[Prefix, Sequence[Prefix]]) -> list[Prefix]:
    """What is drawn: the first level, then branch by branch, the largest first, everything down to the items, as long
    as there is room. A branch is drawn with all that is directly below it or closed."""
    kept: list[Prefix] = [()]
    waiting: list[Prefix] = [()]
    while waiting:
        prefix = waiting.pop()
        below = children[prefix][: MAX_NODES - 1] if not prefix else children[prefix]
        if len(kept) + len(below) <= MAX_NODES:
            kept += below
            waiting += reversed(below)
    return kept


def _start(
    members: Mapping[Prefix, Sequence[int]], children: Mapping[Prefix, Sequence[Prefix]], drawn: Container[Prefix]
) -> Prefix:
    """The branch that is seen first: from the top the largest each time, until there is room for titles."""
    prefix: Prefix = ()
    while len(members[prefix]) > READABLE and children[prefix] and children[prefix][0] in drawn:
        prefix = children[prefix][0]
    return prefix


def _name(prefix: Prefix, items: Sequence[int], titles: Sequence[str]) -> str:
    if not prefix:
        return f"{len(items)} items"
    if len(items) == 1:
        return label(titles[items[0]])
    return f"{prefix[-1]} ({counted(len(items), 'item')})"


def _examples(items: Sequence[int], titles: Sequence[str]) -> str:
    """First titles of a branch; a single item has its own as its name."""
    if len(items) == 1:
        return ""
    more = len(items) - _TITLES
    shown = [label(titles[item]) for item in items[:_TITLES]]
    return "<br>".join([*shown, f"... {more} more"] if more > 0 else shown)
