"""What the winner recommends to a few users: their histories, what they took next, and its list. Ids of users only."""

from __future__ import annotations

import math
from collections.abc import Sequence

from genrec.data.interactions import Interactions
from genrec.recommender import Recommendation, Recommender
from sweeps.ledger import Ledger
from sweeps.report.catalogue import chosen_artifacts, open_dataset, store_of
from sweeps.report.document import Block, Cell, Picture, Section, Table, Text

USERS = 5
LENGTH = 10
HISTORY = 8
"last items of a history that are shown"


def examples(ledger: Ledger) -> Section:
    """Users spread evenly over the test split."""
    return Section("examples", "Recommendations of the winner", _blocks(ledger))


def _blocks(ledger: Ledger) -> list[Block]:
    title = "Examples"
    if ledger.fact("winner") is None:
        return [Picture(title, None, "Left out: there is no winner yet.")]
    interactions = open_dataset(store_of(ledger), chosen_artifacts(ledger))
    if isinstance(interactions, str):
        return [Picture(title, None, f"Left out: {interactions}.")]
    try:
        recommender = Recommender.load(ledger.folder / "bundle")
    except Exception as error:  # a bundle that is gone, damaged or of another version
        return [Picture(title, None, f"Left out: the bundle can't be read ({type(error).__name__}).")]
    users = interactions.users_of("test")
    chosen = [int(users[index * len(users) // USERS]) for index in range(min(USERS, len(users)))]
    histories = [_history(interactions, user) for user in chosen]
    ids = interactions.catalogue.ids
    lists = recommender.recommend(
        [[ids[item] for item in history] for history in histories],
        k=min(LENGTH, len(ids)),
        users=[interactions.users[user] for user in chosen],
    )
    targets = interactions.targets("test")
    blocks: list[Block] = []
    if ledger.state != "finished":
        blocks.append(Text("By the previous winner: the sweep has gone on since."))
    blocks += [Text(f"{len(chosen)} users, evenly from the test split; nothing is known here of a user but an id.")]
    for user, history, found in zip(chosen, histories, lists, strict=True):
        blocks.append(_user(interactions, user, history, int(targets[user]), found))
    return blocks


def _history(interactions: Interactions, user: int) -> list[int]:
    histories = interactions.histories("test")
    return [int(item) for item in interactions.items[histories.starts[user] : histories.ends[user]]]


def _user(
    interactions: Interactions, user: int, history: Sequence[int], target: int, found: Sequence[Recommendation]
) -> Table:
    """The history's last items, the true next item, and the list."""
    ids, titles = interactions.catalogue.ids, interactions.catalogue.titles
    recent = list(history[-HISTORY:])
    rows: list[list[Cell]] = [["history", None, titles[item], None] for item in recent]
    rows.append(["true next item", None, titles[target], None])
    taken = {ids[item] for item in history}
    for place, one in enumerate(found, 1):
        marks = [
            word for word, holds in (("hit", one.item == ids[target]), ("in the history", one.item in taken)) if holds
        ]
        kind = "recommended" + (f" ({', '.join(marks)})" if marks else "")
        rows.append([kind, place, one.title, f"{math.exp(one.score):.2%}"])
    places = [place for place, one in enumerate(found, 1) if one.item == ids[target]]
    note = f"The true next item is number {places[0]} of the list." if places else "The true next item is not listed."
    if len(history) > len(recent):
        note += f" The history has {len(history)} items, of which the last {len(recent)} are shown."
    return Table(f"User {interactions.users[user]}", ["", "place", "title", "probability"], rows, note)
