"""Raw Amazon files: made-up lines in the form of 2014, numbered as S3-Rec and P5 number them."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from genrec.data.amazon import read_amazon
from genrec.data.interactions import DataError, Interactions
from genrec.data.sources import load_dataset
from genrec.settings import AmazonConfig, DatasetConfig

DAY = 86_400
REVIEWS = [  # sorted by item, as the real file is
    ("ann", "B1", 30),
    ("bob", "B1", 10),
    ("ann", "B2", 10),
    ("cid", "B2", 10),
    ("ann", "B3", 10),
    ("bob", "B3", 10),
    ("bob", "B4", 20),
    ("cid", "B5", 5),
    ("cid", "B6", 6),
]
META = [
    {"asin": "B1", "title": "Pr45&quot; Laces", "brand": "Kiwi", "categories": [["Wear & Co", "Shoes"], ["X"]]},
    {"asin": "B0", "title": "Nobody's"},
    {"asin": "B2", "title": 'The "Best" \\d Brush', "price": 5.35, "salesRank": {"Beauty": 7}},
    {"asin": "B3", "description": "no title", "brand": "Luma", "categories": [["A", "B &gt; C"]]},
    {"asin": "B4", "title": "Café É", "related": {"also_viewed": ["B1", "B2"]}},
    {"asin": "B5", "title": "Five", "categories": []},
]


def review(user: str, item: str, day: int, **more: Any) -> str:
    return json.dumps(
        {"reviewerID": user, "asin": item, "reviewText": "so so", "overall": 3.0, "unixReviewTime": day * DAY} | more
    )


def write(folder: Path, reviews: list[str] | None = None, meta: list[str] | None = None) -> Path:
    reviews = [review(*row) for row in REVIEWS] if reviews is None else reviews
    meta = [repr(row) for row in META] if meta is None else meta
    for name, lines in (("reviews_Beauty_5", reviews), ("meta_Beauty", meta)):
        with gzip.open(folder / f"{name}.json.gz", "wt", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
    return folder


def load(folder: Path, **settings: Any) -> Interactions:
    return load_dataset(DatasetConfig(source="amazon", dataset_folder=str(folder), **settings))


def test_users_and_items_are_numbered_by_first_appearance_and_ties_keep_the_order_of_the_file(tmp_path):
    data = load(write(tmp_path))
    assert data.users == ["ann", "bob", "cid"]
    histories = [[data.catalogue.ids[i] for i in data.history(u)] for u in range(3)]
    assert histories == [["B2", "B3", "B1"], ["B1", "B3", "B4"], ["B5", "B6", "B2"]]
    assert data.catalogue.ids == ["B2", "B3", "B1", "B4", "B5", "B6"]
    assert data.timestamps.tolist() == [day * DAY for day in (10, 10, 30, 10, 10, 20, 5, 6, 10)]


def test_texts_have_the_form_of_beauty_with_entities_resolved(tmp_path):
    data = load(write(tmp_path))
    title, text = (
        dict(zip(data.catalogue.ids, part, strict=True)) for part in (data.catalogue.titles, data.catalogue.texts)
    )
    assert text["B1"] == 'Pr45" Laces; brand: Kiwi; categories: Wear & Co > Shoes'
    assert text["B2"] == title["B2"] == 'The "Best" \\d Brush'
    assert (title["B3"], text["B3"]) == ("B3", "brand: Luma; categories: A > B > C")
    assert text["B4"] == "Café É"
    assert (title["B6"], text["B6"]) == ("B6", "")
    assert data.dropped == {"bad_lines": 0, "repeated_items": 0, "items_without_metadata": 1, "short_users": 0}


def test_unpacked_files_are_read_too(tmp_path):
    expected = load(write(tmp_path)).data_hash
    for path in list(tmp_path.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert load(tmp_path).data_hash == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'asin': 'B1', 'title': open('x')}", "meta_Beauty.json.gz:7: not a Python literal .malformed node"),
        ("{'asin': 'B1', 'title': 'open", "meta_Beauty.json.gz:7: not a Python literal .unterminated string"),
        ("['asin', 'B1'] # 'asin': 'B1'", "meta_Beauty.json.gz:7: expected a Python dict"),
        ("{'title': 'x'}", "meta_Beauty.json.gz:7: asin must be ASCII text .* got None"),
        ("{'asin': 'B1', 'title': 7}", "meta_Beauty.json.gz:7: title must be text or null, got 7"),
        ("{'asin': 'B1', 'categories': ['A']}", "meta_Beauty.json.gz:7: categories must be a list of paths"),
        ("{'asin': 'B2', 'title': 'Other'}", "meta_Beauty.json.gz:7: asin 'B2' stands already on line 3, with another"),
        ("{'asin': 'B1', 'x': " + "[" * 5000 + "]" * 5000 + "}", "meta_Beauty.json.gz:7: not a Python literal"),
    ],
)
def test_bad_metadata_is_refused_by_line_or_counted(tmp_path, line, message):
    write(tmp_path, meta=[*map(repr, META), line])
    with pytest.raises(DataError, match=message):
        load(tmp_path)
    assert load(tmp_path, max_bad_lines=1).dropped["bad_lines"] == 1


def test_lines_about_items_that_nobody_reviewed_are_not_parsed(tmp_path):
    assert len(load(write(tmp_path, meta=[*map(repr, META), "{'asin': 'B0', 'broken"])).catalogue) == 6


def test_an_asin_inside_another_text_does_not_hide_an_item(tmp_path):
    odd = "{'description': \"like 'asin': 'B0'\", 'asin': 'B6', 'title': 'Six'}"
    data = load(write(tmp_path, meta=[*map(repr, META), odd]))
    assert data.catalogue.titles[data.catalogue.index["B6"]] == "Six"


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="reviews_Beauty_5.json.gz: no such file; .*dataset.amazon.download=true"):
        load(tmp_path)
    (tmp_path / "sequential_data.txt").touch()
    (tmp_path / "items.jsonl").touch()
    with pytest.raises(DataError, match="has sequential_data.txt and items.jsonl: set dataset.source=sequential"):
        load(tmp_path)
    (tmp_path / "sequential_data.txt").unlink()
    write(tmp_path)
    with pytest.raises(DataError, match="the folder has Beauty: set dataset.amazon.category=Beauty"):
        load(tmp_path, amazon=AmazonConfig(category="Sports"))


def test_an_unknown_category_is_not_asked_for_in_the_net(tmp_path):
    with pytest.raises(DataError, match="no category 'Beuty' to download; did you mean 'Beauty'"):
        load(tmp_path, amazon=AmazonConfig(category="Beuty", download=True))
    with pytest.raises(DataError, match="must be a name such as Beauty, got '../x'"):
        load(tmp_path, amazon=AmazonConfig(category="../x"))


def test_real_lines_are_read(tmp_path):
    root = Path(os.environ.get("GENREC_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    samples = root / "raw_samples"
    if not samples.is_dir():
        pytest.skip(f"no real lines at {samples}; set GENREC_DATA to the folder that holds raw_samples/")
    reviews = (samples / "reviews_Musical_Instruments_5.head50.json").read_text().splitlines()
    meta = [line for path in sorted(samples.glob("meta_*")) for line in path.read_text().splitlines() if line]
    rows = read_amazon(write(tmp_path, reviews, meta), AmazonConfig())
    assert len(rows.item_n) == 50
    assert rows.counts["bad_lines"] == 0
    # The same items known as metadata: every one of them is read.
    asins = [line.split("'asin': '")[1].split("'")[0] for line in meta]
    rows = read_amazon(
        write(tmp_path, [review("a", asin, day) for day, asin in enumerate(asins)], meta), AmazonConfig()
    )
    assert rows.catalogue.ids == asins
    assert rows.counts["items_without_metadata"] == 0
    assert 'Pr45" Wht Athletic Lace (pack Of 6 Pairs); brand: Sara Lee; categories: Clothing, Shoes & Jewelry > ' in (
        " | ".join(rows.catalogue.texts)
    )


def test_raw_reviews_give_the_sequences_of_the_published_form(tmp_path):
    """Beauty's published sequences, written as raw reviews of rising days, come back with the same numbers."""
    root = Path(os.environ.get("GENREC_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if not (root / "beauty" / "items.jsonl").is_file():
        pytest.skip(f"no real data at {root / 'beauty'}; set GENREC_DATA to the folder that holds beauty/")
    published = load_dataset(DatasetConfig(source="sequential", dataset_folder=str(root / "beauty")))
    ids = published.catalogue.ids
    reviews = [
        review(user, ids[i], day)
        for u, user in enumerate(published.users[:3000])
        for day, i in enumerate(published.history(u))
    ]
    items = [json.loads(line) for line in (root / "beauty" / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    data = load(write(tmp_path, reviews, [repr(item) for item in items[::-1]]))
    assert data.users == published.users[:3000]
    assert data.items.tolist() == published.items[: len(data.items)].tolist()
    for part in ("ids", "titles", "texts"):
        assert getattr(data.catalogue, part) == getattr(published.catalogue, part)[: len(data.catalogue)]
