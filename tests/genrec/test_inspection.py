"""A look at semantic IDs: the table's numbers, the verdict, and pictures that are there."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import matplotlib.image
import pytest
import torch

from genrec.data.interactions import Items
from genrec.errors import InputError
from genrec.inspection import draw_ids, inspect_ids, verdict
from genrec.models.rkmeans import RkMeans
from genrec.semantic_ids import SemanticIds, assign_ids
from genrec.settings import TokenizerConfig

COLLIDING = [[1, 1], [0, 2], [1, 1], [3, 0], [1, 1], [0, 2]]
SPREAD = [[a, b] for a in range(4) for b in range(4)]


def make_ids(codes: list[list[int]], collisions: str = "append") -> SemanticIds:
    """IDs of a tokenizer of two levels that reads the codes off the vectors."""
    config = TokenizerConfig(kind="rkmeans", num_item_embeddings=4, sem_id_dim=2, collisions=collisions)
    tokenizer, steps = RkMeans(config, 2), torch.arange(4.0)
    books = torch.stack([torch.stack([steps, 0 * steps], 1), torch.stack([0 * steps, steps], 1)])
    tokenizer.codebooks_LKP.copy_(books)
    return assign_ids(tokenizer, torch.tensor(codes).float())


def make_items(count: int) -> Items:
    names = [f"Thing {number}" for number in range(count)]
    return Items([f"A{number}" for number in range(count)], names, names)


def test_the_table_shows_the_health_worked_by_hand():
    lines = inspect_ids(make_ids(COLLIDING), make_items(6)).splitlines()
    assert lines[1].split() == ["1", "4", "3", "75.0%", "2.7", *["Thing", "0", "|", "Thing", "2", "|", "Thing", "4"]]
    assert lines[2].split() == ["2", "4", "3", "75.0%", "2.7", *["Thing", "0", "|", "Thing", "2", "|", "Thing", "4"]]
    table = "\n".join(" ".join(line.split()) for line in lines)
    assert "items 6\n" in table
    assert "distinct tuples 3 (duplicates: 50.0%)\n" in table
    assert "collision rate 83.3% of the items share their tuple\n" in table
    assert "largest group 3 items\n" in table
    assert "items of one Thing 0 | Thing 2 | Thing 4\n" in table
    assert "collision code 3 values, appended to the 2 levels\n" in table


def test_the_last_line_says_why_ids_are_unhealthy():
    last = inspect_ids(make_ids(COLLIDING), make_items(6)).splitlines()[-1]
    assert last.startswith("unhealthy: 83.3% of the items share their tuple (above 10%); level 1 uses 75%")
    assert "level 2 uses 75% of its codes (below 80%)" in last


def test_the_last_line_says_when_they_are_healthy():
    ids = make_ids(SPREAD)
    lines = inspect_ids(ids, make_items(16)).splitlines()
    assert lines[-1] == verdict(ids.health) == "healthy"
    assert not any(line.startswith(("items of one", "collision code")) for line in lines)


def test_a_group_whose_items_have_moved_is_counted_but_no_longer_shown():
    lines = inspect_ids(make_ids(COLLIDING, "reassign"), make_items(6)).splitlines()
    assert any(line.startswith("largest group") and "3 items" in line for line in lines)
    assert not any(line.startswith("items of one") for line in lines)


def test_titles_cannot_drive_the_terminal_and_long_ones_are_cut():
    titles = ["\x1b[31mred\n", "x" * 500, "third", "fourth", "fifth", "sixth"]
    table = inspect_ids(make_ids(COLLIDING), Items([f"A{n}" for n in range(6)], titles, titles))
    assert "\x1b" not in table
    assert max(len(line) for line in table.splitlines()) < 300


@pytest.mark.parametrize("codes", [COLLIDING, SPREAD, [[0, 0]], [[2, 2]] * 9])
@pytest.mark.parametrize("collisions", ["append", "reassign", "none"])
def test_a_picture_is_drawn_of_any_ids(tmp_path, codes, collisions):
    ids = make_ids(codes, collisions)
    pixels = matplotlib.image.imread(draw_ids(ids, make_items(len(codes)), tmp_path / "ids.png"))
    assert pixels.shape[0] > 200
    assert pixels[..., :3].std() > 0.05  # not a blank page


def test_a_picture_may_be_svg_and_says_what_the_table_says(tmp_path):
    path = draw_ids(make_ids(COLLIDING), make_items(6), str(tmp_path / "ids.svg"))
    assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert "unhealthy" in path.read_text()  # matplotlib notes every text beside its outlines


def test_other_forms_of_pictures_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"ids\.pdf: a picture's name must end in \.png or \.svg"):
        draw_ids(make_ids(SPREAD), make_items(16), tmp_path / "ids.pdf")
