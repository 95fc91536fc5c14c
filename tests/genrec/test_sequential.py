"""`sequential_data.txt` and `items.jsonl`: made-up rows in the real form, and every refusal."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from genrec.data.interactions import DataError, Interactions
from genrec.data.sources import load_dataset
from genrec.settings import DatasetConfig

ITEMS = [
    {
        "item_id": 1,
        "asin": "B01",
        "title": "Red &amp; Blue Lamp",
        "brand": "Luma",
        "categories": [["Home", "Lamps"], ["X"]],
    },
    {
        "item_id": 2,
        "asin": "B02",
        "title": None,
        "keywords": "soft wool scarf",
        "brand": None,
        "categories": [["Wear"]],
    },
    {"item_id": 3, "asin": "B03", "title": None, "brand": "Noma", "categories": []},
    {"item_id": 4, "asin": None, "title": "Cup", "categories": [["Kitchen &gt; Bar"]]},
]
SEQUENCES = "7 1 2 3 4\n8 2 2 1\n9 4 1\n\n"


def load_sequential(folder: Path, max_bad_lines: int = 0) -> Interactions:
    return load_dataset(DatasetConfig(source="sequential", dataset_folder=str(folder), max_bad_lines=max_bad_lines))


def write(folder: Path, items: list[object] | None = None, sequences: str = SEQUENCES) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in (ITEMS if items is None else items)]
    (folder / "items.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    (folder / "sequential_data.txt").write_text(sequences, encoding="utf-8")
    return folder


def test_sequences_and_catalogue_are_read(tmp_path):
    data = load_sequential(write(tmp_path))
    assert data.users == ["7", "8"]
    assert data.dropped == {"bad_lines": 0, "repeated_items": 0, "short_users": 1}
    assert data.history(0).tolist() == [0, 1, 2, 3]
    assert data.history(1).tolist() == [1, 1, 0]
    assert data.catalogue.ids == ["B01", "B02", "B03", "4"]


def test_texts_are_for_the_encoder_and_titles_for_people(tmp_path):
    catalogue = load_sequential(write(tmp_path)).catalogue
    assert catalogue.texts == [
        "Red & Blue Lamp; brand: Luma; categories: Home > Lamps",
        "soft wool scarf; categories: Wear",
        "brand: Noma",
        "Cup; categories: Kitchen > Bar",
    ]
    assert catalogue.titles == ["Red & Blue Lamp", "soft wool scarf", "B03", "Cup"]


def test_items_are_ordered_by_item_id_and_windows_line_ends_and_bom_are_read(tmp_path):
    write(tmp_path, items=ITEMS[::-1])
    for name in ("items.jsonl", "sequential_data.txt"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    data = load_sequential(tmp_path)
    assert data.catalogue.ids == ["B01", "B02", "B03", "4"]
    assert data.users == ["7", "8"]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["{'item_id': 1}"], r"items.jsonl:1: not JSON"),
        ([*ITEMS, "[1, 2]"], r"items.jsonl:5: expected a JSON object, got '\[1, 2\]'"),
        ([*ITEMS, {"asin": "B05"}], r"items.jsonl:5: item_id must be an integer of 1 or more, got None"),
        ([*ITEMS, {"item_id": "5"}], r"items.jsonl:5: item_id must be an integer of 1 or more, got '5'"),
        (
            [*ITEMS, {"item_id": 2, "asin": "B05"}],
            r"items.jsonl:5: item_id 2 .* already on line 2, with other words",
        ),
        ([*ITEMS, {"item_id": 5, "asin": "B02"}], r"items.jsonl:5: asin 'B02' stands already on line 2"),
        ([*ITEMS, {"item_id": 9, "asin": "B09"}], r"items.jsonl:5: item_id 9, .* no item_id 5; ids must be 1..N"),
        ([*ITEMS, {"item_id": 5, "title": 3}], r"items.jsonl:5: title must be text or null, got 3"),
        ([*ITEMS, {"item_id": 5, "categories": ["A"]}], r"items.jsonl:5: categories must be a list of paths"),
        ([], r"items.jsonl: the file is empty"),
    ],
)
def test_bad_items_are_refused_by_file_and_line(tmp_path, items, message):
    with pytest.raises(DataError, match=message):
        load_sequential(write(tmp_path, items=items))


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ("1 1 2 3\n2 1 2 5\n", r"sequential_data.txt:2: item 5 is not in items.jsonl; its ids are 1..4"),
        ("1 0 2 3\n", r"sequential_data.txt:1: item 0 is not in items.jsonl"),
        ("1 1 2 3\n\n2 1 x2 3\n", r"sequential_data.txt:2: the line is blank"),
        ("1 1 2 3\n2 1 x2 3\n", r"sequential_data.txt:2: item ids must be integers, got 'x2'"),
        ("1 1 2.0 3\n", r"sequential_data.txt:1: item ids must be integers, got '2.0'"),
        ("1 1 +2 3\n", r"sequential_data.txt:1: item ids must be plain digits, got '\+2'"),
        ("1 1 " + "9" * 5000 + " 3\n", r"sequential_data.txt:1: item ids must be integers"),
        ("1 1 2 3\n1 1 2 3\n", r"sequential_data.txt:2: user '1' stands already on line 1"),
        ("\n\n", r"sequential_data.txt: the file is empty"),
        ("1 1 2\n2 1\n3\n", r"source 'sequential' in .*: no user has 3 items or more \(3 users dropped\)"),
    ],
)
def test_bad_sequences_are_refused_by_file_and_line(tmp_path, sequences, message):
    with pytest.raises(DataError, match=message):
        load_sequential(write(tmp_path, sequences=sequences))


def test_a_missing_file_and_a_wrong_encoding_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no such file; .* must hold sequential_data.txt and items.jsonl"):
        load_sequential(tmp_path)
    (tmp_path / "reviews_Beauty_5.json.gz").touch()
    with pytest.raises(DataError, match="raw Amazon reviews: set dataset.source=amazon"):
        load_sequential(tmp_path)
    write(tmp_path)
    (tmp_path / "sequential_data.txt").write_bytes(b"1 1 2 \xff\n")
    with pytest.raises(DataError, match=r"sequential_data.txt:1: not UTF-8 at byte 6"):
        load_sequential(tmp_path)


def test_bad_users_are_counted_up_to_the_limit(tmp_path):
    write(tmp_path, sequences="7 1 2 3 4\n8 2 x 1\n9 1 2 99\n6 1 2 3\n")
    data = load_sequential(tmp_path, max_bad_lines=2)
    assert data.users == ["7", "6"]
    assert data.dropped["bad_lines"] == 2
    with pytest.raises(DataError, match=r":3: item 99 .* \(bad line 2; dataset.max_bad_lines is 1\)"):
        load_sequential(tmp_path, max_bad_lines=1)


def real_data(name: str) -> Path:
    root = Path(os.environ.get("GENREC_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if not (root / name / "sequential_data.txt").is_file():
        pytest.skip(f"no real data at {root / name}; set GENREC_DATA to the folder that holds {name}/")
    return root / name


def test_beauty_has_its_published_size_and_loads_quickly():
    folder = real_data("beauty")
    start = time.perf_counter()
    data = load_sequential(folder)
    assert time.perf_counter() - start < 5  # alone on two cores: 1 s
    statistics = data.statistics()
    assert (statistics["users"], statistics["items"], statistics["interactions"]) == (22363, 12101, 198502)
    assert statistics["dropped_short_users"] == 0
    assert statistics["max_length"] == 204
    assert all(data.catalogue.texts)
    assert all(data.catalogue.titles)
