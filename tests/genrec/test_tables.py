"""Tables: CSV of several dialects and Parquet of several types give the same data; every refusal names its line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from genrec.data import table_files
from genrec.data.interactions import DataError, Interactions
from genrec.data.sources import load_dataset
from genrec.settings import DatasetConfig, TableConfig

FRAME = pd.DataFrame(
    {
        "who": ["u2", "u1", "u2", "u1", "u2", "u1"],
        "note": ['a "b", c', "", "x", "y", "z\nz", "w"],
        "what": ["30", "10", "10", "20", "20", "30"],
        "when": [1_400_000_300, 1_400_000_010, 1_400_000_100, 1_400_000_005, 1_400_000_100, 1_400_000_400],
    }
)
ITEMS = pd.DataFrame(
    {"what": ["10", "20", "30", "40"], "name": ["Ten", "Twen&amp;ty", None, "Forty"], "brand": ["A", None, "B", "C"]}
)


def load(folder: Path, max_bad_lines: int = 0, k_core: int = 0, **settings: Any) -> Interactions:
    table = TableConfig(
        **{"user_column": "who", "item_column": "what", "timestamp_column": "when", "title_column": "name"} | settings
    )
    return load_dataset(
        DatasetConfig(
            source="table", dataset_folder=str(folder), table=table, max_bad_lines=max_bad_lines, k_core=k_core
        )
    )


def contents(data: Interactions) -> tuple[Any, ...]:
    times = None if data.timestamps is None else data.timestamps.tolist()
    ids = [data.catalogue.ids[i] for i in data.items]
    return data.users, data.offsets.tolist(), ids, times


EXPECTED = (["u2", "u1"], [0, 3, 6], ["10", "20", "30", "20", "10", "30"])
TIMES = [1_400_000_100, 1_400_000_100, 1_400_000_300, 1_400_000_005, 1_400_000_010, 1_400_000_400]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_csv_of_any_dialect_is_read(tmp_path, delimiter, line_end):
    text = FRAME.to_csv(index=False, sep=delimiter, lineterminator=line_end)
    (tmp_path / "interactions.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert contents(load(tmp_path)) == (*EXPECTED, TIMES)
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert contents(load(tmp_path, interactions="packed.csv.gz")) == (*EXPECTED, TIMES)


@pytest.mark.parametrize("block", [64, 1 << 24])
def test_small_blocks_read_the_same_as_one(tmp_path, monkeypatch, block):
    monkeypatch.setattr(table_files, "BLOCK_BYTES", block)
    frame = FRAME.drop(columns="note")
    many = pd.concat([frame.assign(who=frame.who + str(n)) for n in range(50)])
    many.to_csv(tmp_path / "interactions.csv", index=False)
    users, offsets, ids, times = contents(load(tmp_path))
    assert users == [f"{user}{n}" for n in range(50) for user in ("u2", "u1")]
    assert offsets == list(range(0, 303, 3))
    assert (ids, times) == (EXPECTED[2] * 50, TIMES * 50)


@pytest.mark.parametrize("ids", ["text", "integers", "categories"])
@pytest.mark.parametrize("times", ["integers", "floats", "moments"])
def test_parquet_of_any_type_is_read(tmp_path, ids, times):
    frame = FRAME.copy()
    frame["what"] = {
        "text": frame.what,
        "integers": frame.what.astype(int),
        "categories": frame.what.astype("category"),
    }[ids]
    moments = pd.to_datetime(frame.when, unit="s")
    frame["when"] = {"integers": frame.when, "floats": frame.when + 0.5, "moments": moments}[times]
    frame.to_parquet(tmp_path / "interactions.parquet")
    assert contents(load(tmp_path, interactions="interactions.parquet")) == (*EXPECTED, TIMES)


@pytest.mark.parametrize(
    "form",
    [
        lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%S"),
        lambda moment: moment.strftime("%Y-%m-%d %H:%M:%SZ"),
        lambda moment: (moment + pd.Timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S+02:00"),
        lambda moment: f"{moment.timestamp():.3f}",
        lambda moment: f"{int(moment.timestamp())}000",
    ],
)
def test_times_of_any_form_mean_the_same(tmp_path, form):
    frame = FRAME.assign(when=[form(moment) for moment in pd.to_datetime(FRAME.when, unit="s")])
    frame.to_csv(tmp_path / "interactions.csv", index=False)
    assert contents(load(tmp_path)) == (*EXPECTED, TIMES)


def test_without_a_time_column_rows_are_in_order(tmp_path):
    FRAME.to_csv(tmp_path / "interactions.csv", index=False)
    data = load(tmp_path, timestamp_column=None)
    assert contents(data) == (["u2", "u1"], [0, 3, 6], ["30", "10", "20", "10", "20", "30"], None)
    assert data.catalogue.texts == data.catalogue.titles == data.catalogue.ids == ["30", "10", "20"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_item_table_gives_catalogue_titles_and_texts(tmp_path, suffix):
    FRAME.to_csv(tmp_path / "interactions.csv", index=False)
    frame = ITEMS.assign(tags=["x", "y", "", "z"], unused=[1, 2, 3, 4])
    frame.to_csv(tmp_path / "items.csv", index=False)
    if suffix == "parquet":
        frame.assign(tags=[["x"], ["y", "q"], [], None]).to_parquet(tmp_path / "items.parquet")
    data = load(tmp_path, items=f"items.{suffix}", text_columns=["brand", "tags"])
    assert data.catalogue.ids == ["10", "20", "30", "40"]
    assert data.catalogue.titles == ["Ten", "Twen&ty", "30", "Forty"]
    last = "; tags: z" if suffix == "csv" else ""
    pair = "y" if suffix == "csv" else "y > q"
    assert data.catalogue.texts == [
        "Ten; brand: A; tags: x",
        f"Twen&ty; tags: {pair}",
        "brand: B",
        f"Forty; brand: C{last}",
    ]
    everything = load(tmp_path, items="items.csv").catalogue
    assert everything.texts[0] == "Ten; brand: A; tags: x; unused: 1"


GOOD = "who,what,when\na,10,1\na,20,2\na,30,3\n"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("b,10\n", r"interactions.csv:5: 2 cells, not 3: 'b,10'"),
        ('\n"b\nb",10,4\n,10,4\n', r"interactions.csv:8: column 'who': the cell is empty"),
        ("b, 10 ,4\n", r"interactions.csv:5: column 'what': an id must have no spaces around it, got ' 10 '"),
        ("b,10x,4\n", r"interactions.csv:5: column 'what': item '10x' is not in the catalogue of 4 items; .* '10'"),
        ("b,10,soon\n", r"interactions.csv:5: column 'when': expected seconds .* got 'soon'"),
        ("b,10,-3\n", r"interactions.csv:5: column 'when': expected seconds .* got '-3'"),
        ("b,10,NaN\n", r"interactions.csv:5: column 'when': expected seconds .* got 'NaN'"),
        ("b,10,99999999999999999999\n", r"interactions.csv:5: column 'when': expected seconds"),
    ],
)
def test_bad_rows_are_refused_by_line_or_counted(tmp_path, more, message):
    (tmp_path / "interactions.csv").write_text(GOOD + more)
    ITEMS.to_csv(tmp_path / "items.csv", index=False)
    with pytest.raises(DataError, match=message):
        load(tmp_path, items="items.csv")
    data = load(tmp_path, max_bad_lines=1, items="items.csv")
    assert (data.users, data.dropped["bad_lines"]) == (["a"], 1)


def test_bad_rows_of_parquet_are_refused_by_row(tmp_path):
    FRAME.assign(who=["u2", "u1", None, "u1", "u2", "u1"]).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet: row 3: column 'who': the cell is empty"):
        load(tmp_path, interactions="x.parquet")
    FRAME.assign(what=np.array([1.0, 2, 3, 1, 2, 3])).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="column 'what' must hold text or integers as ids, got double"):
        load(tmp_path, interactions="x.parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(DataError, match="x.parquet: cannot be read as Parquet"):
        load(tmp_path, interactions="x.parquet")


def test_items_that_say_the_same_twice_are_merged_and_contradictions_refused(tmp_path):
    (tmp_path / "interactions.csv").write_text(GOOD)
    items = ITEMS.to_csv(index=False)
    (tmp_path / "items.csv").write_text(items + "10,Ten,A\n")
    assert load(tmp_path, items="items.csv").dropped["repeated_items"] == 1
    (tmp_path / "items.csv").write_text(items + "10,Eleven,A\n")
    with pytest.raises(DataError, match=r"items.csv:6: item '10' stands already at .*items.csv:2, with other words"):
        load(tmp_path, items="items.csv")


def test_missing_files_and_columns_are_named_with_the_nearest(tmp_path):
    FRAME.to_csv(tmp_path / "interactions.csv", index=False)
    ITEMS.to_csv(tmp_path / "items.csv", index=False)
    with pytest.raises(DataError, match="itms.csv: no such file; did you mean 'items.csv'"):
        load(tmp_path, items="itms.csv")
    with pytest.raises(DataError, match="column 'whoo' is missing; did you mean 'who'"):
        load(tmp_path, user_column="whoo")
    with pytest.raises(DataError, match="items.csv: column 'title' is missing"):
        load(tmp_path, items="items.csv", title_column="title")
    (tmp_path / "interactions.csv").write_text("who,what,what,when\n")
    with pytest.raises(DataError, match="column 'what' stands twice"):
        load(tmp_path)


def test_text_that_is_not_utf8_is_refused_by_line(tmp_path):
    (tmp_path / "interactions.csv").write_bytes(GOOD.encode() + b"b,caf\xe9,4\n")
    with pytest.raises(DataError, match="interactions.csv:5: not UTF-8 at byte 5 of the line"):
        load(tmp_path)
