"""Bad data, one test a kind: refused with file, line, value and rule, or kept and counted.

Names begin with the row of the project's list of bad inputs; `pytest -k b27` runs one.
"""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from genrec.data.interactions import DataError, Interactions
from genrec.data.p5_amazon import P5AmazonReviewsSeqDataset
from genrec.data.sources import load_dataset
from genrec.settings import DatasetConfig

REVIEWS = "reviews_Beauty_5.json.gz"
EMOJI = "👩‍👩‍👧 🧴"
RIGHT_TO_LEFT = "\u202e\u05e9\u05dc \u0639\u0637\u0631"
COMBINING = "e\u0301 a\u0308\u0323"


def review(number: int, **changes: Any) -> str:
    record = {"reviewerID": f"A{number % 4}", "asin": f"B{number % 7}", "unixReviewTime": 86_400 * number} | changes
    return json.dumps({key: value for key, value in record.items() if value != "missing"})


def write_raw(folder: Path, lines: list[str] | None = None, meta: list[str] | None = None) -> Path:
    lines = [review(number) for number in range(40)] if lines is None else lines
    (folder / REVIEWS).write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))
    meta = [repr({"asin": f"B{number}", "title": f"Title {number}"}) for number in range(7)] if meta is None else meta
    (folder / "meta_Beauty.json.gz").write_bytes(gzip.compress("".join(line + "\n" for line in meta).encode()))
    return folder


def load_raw(folder: Path, **settings: Any) -> Interactions:
    return load_dataset(DatasetConfig(source="amazon", dataset_folder=str(folder), **settings))


def write_sequential(folder: Path, sequences: str, titles: list[str] | None = None, items: int = 5) -> Path:
    titles = [f"Title {n}" for n in range(items)] if titles is None else titles
    lines = [json.dumps({"item_id": n + 1, "asin": f"B{n}", "title": title}) for n, title in enumerate(titles)]
    (folder / "items.jsonl").write_text("".join(line + "\n" for line in lines))
    (folder / "sequential_data.txt").write_text(sequences)
    return folder


def load_sequential(folder: Path, **settings: Any) -> Interactions:
    return load_dataset(DatasetConfig(source="sequential", dataset_folder=str(folder), **settings))


def write_table(folder: Path, rows: list[str], items: list[str] | None = None) -> dict[str, Any]:
    (folder / "interactions.csv").write_text("user,item,timestamp\n" + "".join(row + "\n" for row in rows))
    (folder / "items.csv").write_text("item,title\n" + "".join(row + "\n" for row in items or ["7,Seven", "8,Eight"]))
    return {"source": "table", "dataset_folder": str(folder), "table": {"items": "items.csv"}}


def load_table(settings: dict[str, Any], **more: Any) -> Interactions:
    return load_dataset(DatasetConfig.model_validate(settings | more))


def test_b24_a_truncated_gzip_file_is_refused_with_its_last_good_line(tmp_path):
    # Random text cannot be packed well, so the lines before the cut can be read.
    text = random.Random(0)
    lines = [review(number, reviewText=text.randbytes(200).hex()) for number in range(2000)]
    path = write_raw(tmp_path, lines) / REVIEWS
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=rf"{REVIEWS}: the gzip file is truncated; line 1\d\d\d is the last good one"):
        load_raw(tmp_path, max_bad_lines=5000)


@pytest.mark.parametrize("fault", ["wrong checksum", "no gzip file", "junk behind the end"])
def test_b25_a_damaged_gzip_file_is_refused(tmp_path, fault):
    path = write_raw(tmp_path) / REVIEWS
    packed = path.read_bytes()
    path.write_bytes(
        {
            "wrong checksum": packed[:-8] + bytes(4) + packed[-4:],
            "no gzip file": gzip.decompress(packed),
            "junk behind the end": packed + b"<html>",
        }[fault]
    )
    with pytest.raises(DataError, match=rf"{REVIEWS}: damaged, or not a gzip file \(.*\); \d+ lines could be read"):
        load_raw(tmp_path, max_bad_lines=5000)


def test_b26_bad_json_is_refused_by_line_with_its_first_80_characters_or_counted(tmp_path):
    lines = [review(number) for number in range(40)]
    lines[6] = "{'reviewerID': 'A1', " + "x" * 500
    write_raw(tmp_path, lines)
    with pytest.raises(DataError) as caught:
        load_raw(tmp_path)
    message = str(caught.value)
    assert f"{REVIEWS}:7: not JSON" in message
    assert message.endswith(repr(lines[6][:80]))
    assert load_raw(tmp_path, max_bad_lines=1).dropped["bad_lines"] == 1
    lines[9] = "["
    with pytest.raises(DataError, match=r":10: not JSON.*bad line 2; dataset.max_bad_lines is 1"):
        load_raw(write_raw(tmp_path, lines), max_bad_lines=1)


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ('{"reviewerID": "A1", "asin": "B1", "unixReviewTime": NaN}', "NaN is no JSON number"),
        (
            '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1, "overall": -Infinity}',
            "-Infinity is no JSON number",
        ),
        ('{"reviewerID": "A1", "asin": "B1", "asin": "B2", "unixReviewTime": 1}', "key 'asin' occurs twice"),
    ],
)
def test_b27_what_python_takes_for_json_and_is_none_is_refused(tmp_path, line, rule):
    write_raw(tmp_path, [review(1), line])
    with pytest.raises(DataError, match=f"{REVIEWS}:2: not JSON: {rule}"):
        load_raw(tmp_path)


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (review(1, asin="missing"), "asin must be ASCII text without spaces around it, got None"),
        (review(1, reviewerID=None), "reviewerID must be ASCII text .* got None"),
        (review(1, asin=7), "asin must be ASCII text .* got 7"),
        (review(1, asin=""), "asin must be ASCII text .* got ''"),
        (review(1, unixReviewTime="5"), "unixReviewTime must be seconds since 1970, got '5'"),
        (review(1, unixReviewTime=True), "unixReviewTime must be seconds since 1970, got True"),
        (review(1, unixReviewTime=1.5), "unixReviewTime must be seconds since 1970, got 1.5"),
        (review(1, unixReviewTime=-1), "unixReviewTime must be seconds since 1970, got -1"),
        (review(1, unixReviewTime=2**63), "unixReviewTime must be seconds since 1970, got 9223372036854775808"),
        ("[]", r"expected a JSON object, got '\[\]'"),
        ("", "the line is blank"),
        ("  \t", "the line is blank"),
    ],
)
def test_b28_a_line_without_its_fields_is_refused(tmp_path, line, rule):
    write_raw(tmp_path, [review(0), line, *(review(number) for number in range(40))])
    with pytest.raises(DataError, match=f"{REVIEWS}:2: {rule}"):
        load_raw(tmp_path)
    assert load_raw(tmp_path, max_bad_lines=1).dropped["bad_lines"] == 1


def test_b28_empty_lines_at_the_end_are_no_fault(tmp_path):
    write_raw(tmp_path, [*(review(number) for number in range(40)), "", ""])
    assert load_raw(tmp_path).dropped["bad_lines"] == 0


def test_b29_items_repeated_word_for_word_are_merged_and_counted(tmp_path):
    meta = [repr({"asin": f"B{number % 7}", "title": f"Title {number % 7}"}) for number in range(9)]
    assert load_raw(write_raw(tmp_path, meta=meta)).dropped["repeated_items"] == 2
    write_sequential(tmp_path, "1 1 2 3\n")
    with open(tmp_path / "items.jsonl", "a") as file:
        file.write(json.dumps({"title": "Title 1", "asin": "B1", "item_id": 2}) + "\n")
    data = load_sequential(tmp_path)
    assert (len(data.catalogue), data.dropped["repeated_items"]) == (5, 1)
    table = write_table(tmp_path, ["a,7,1", "a,8,2", "a,7,3"], ["7,Seven", "8,Eight", "7,Seven"])
    assert load_table(table).dropped["repeated_items"] == 1


def test_b29_items_repeated_with_other_words_are_refused_with_both_lines(tmp_path):
    meta = [repr({"asin": f"B{number % 7}", "title": f"Title {number}"}) for number in range(8)]
    with pytest.raises(DataError, match="meta_Beauty.json.gz:8: asin 'B0' stands already on line 1"):
        load_raw(write_raw(tmp_path, meta=meta))
    write_sequential(tmp_path, "1 1 2 3\n")
    with open(tmp_path / "items.jsonl", "a") as file:
        file.write(json.dumps({"title": "Other", "asin": "B1", "item_id": 2}) + "\n")
    with pytest.raises(DataError, match="items.jsonl:6: item_id 2 stands already on line 2"):
        load_sequential(tmp_path)
    with pytest.raises(DataError, match="items.csv:4: item '7' stands already at .*items.csv:2"):
        load_table(write_table(tmp_path, ["a,7,1"], ["7,Seven", "8,Eight", "7,Sieben"]))


@pytest.mark.parametrize(
    ("item", "rule"),
    [
        ("6", r"item 6 is not in items.jsonl; its ids are 1..5"),
        ("0", r"item 0 is not in items.jsonl; its ids are 1..5"),
        ("-1", r"item -1 is not in items.jsonl; its ids are 1..5"),
        (str(2**63), rf"item {2**63} is not in items.jsonl; its ids are 1..5"),
        ("9" * 5000, "item ids must be integers, got '999"),
        ("1.0", "item ids must be integers, got '1.0'"),
        ("٣", "item ids must be plain digits, got '٣'"),
    ],
)
def test_b30_an_item_that_is_not_in_the_catalogue_is_refused_with_the_range(tmp_path, item, rule):
    write_sequential(tmp_path, f"1 1 2 3\n2 1 {item} 3\n")
    with pytest.raises(DataError, match=f"sequential_data.txt:2: {rule}"):
        load_sequential(tmp_path)


@pytest.mark.parametrize("item", ["9", "-7", str(2**63 + 7), "7.0", " 7 ", '" 7 "', "07"])
def test_b30_an_item_that_is_not_in_the_item_table_is_refused_by_line(tmp_path, item):
    table = write_table(tmp_path, ["a,7,1", "a,8,2", "a,7,3", f"a,{item},4"])
    rule = r"an id must have no spaces around it|item '.*' is not in the catalogue of 2 items"
    with pytest.raises(DataError, match=f"interactions.csv:5: column 'item': ({rule})"):
        load_table(table)


def test_b31_an_empty_source_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=rf"{REVIEWS}: no reviews"):
        load_raw(write_raw(tmp_path, []))
    with pytest.raises(DataError, match="items.jsonl: the file is empty"):
        load_sequential(write_sequential(tmp_path, "1 1 2 3\n", items=0))
    with pytest.raises(DataError, match="sequential_data.txt: the file is empty"):
        load_sequential(write_sequential(tmp_path, ""))
    with pytest.raises(DataError, match="interactions.csv: the table of interactions has no rows that can be used"):
        load_table(write_table(tmp_path, []))
    (tmp_path / "items.csv").write_text("item,title\n")
    with pytest.raises(DataError, match="items.csv: the table of items has no rows"):
        load_table({"source": "table", "dataset_folder": str(tmp_path), "table": {"items": "items.csv"}})


def test_b31_a_filter_or_split_that_leaves_nothing_is_named(tmp_path):
    write_sequential(tmp_path, "1 1 2 3\n2 3 4 5\n")
    with pytest.raises(DataError, match=r"k_core 3 leaves no interactions of 6 \(2 users, 5 items; empty after"):
        load_sequential(tmp_path, k_core=3)
    with pytest.raises(DataError, match=r"no user has 4 items or more \(2 users dropped\)"):
        load_sequential(tmp_path, min_history=4)
    table = write_table(tmp_path, [f"a,7,{n}" for n in range(9)] + [f"b,8,{n + 20}" for n in range(3)])
    with pytest.raises(DataError, match="split 'temporal' .* leaves the test split empty"):
        load_table(table, split="temporal", validation_share=0.25, test_share=0.25)


def test_b32_users_with_too_few_items_are_dropped_and_counted_unless_all_are(tmp_path):
    data = load_sequential(write_sequential(tmp_path, "1\n2 1\n3 1 2\n4 1 2 3\n"))
    assert (data.users, data.dropped["short_users"]) == (["4"], 3)
    with pytest.raises(DataError, match=r"no user has 3 items or more \(3 users dropped\)"):
        load_sequential(write_sequential(tmp_path, "1\n2 1\n3 1 2\n"))


def test_b33_a_history_of_100000_items_is_kept_in_little_memory_and_cut_where_it_is_read(tmp_path, caplog):
    write_sequential(tmp_path, "1 " + " ".join(str(n % 5 + 1) for n in range(100_000)) + "\n2 1 2 3\n")
    tracemalloc.start()
    data = load_sequential(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.statistics()["max_length"] == 100_000
    assert peak < 200e6
    with caplog.at_level("INFO", "genrec.data.p5_amazon"):
        dataset = P5AmazonReviewsSeqDataset(tmp_path, split="test", max_seq_len=20)
    assert dataset[0].history.tolist() == [n % 5 for n in range(99_979, 99_999)]
    assert "1 of 2 histories are cut to their last 20 items" in caplog.text


@pytest.mark.parametrize("title", [EMOJI, RIGHT_TO_LEFT, COMBINING, "a\0b", "x" * 1_000_000, "\x1b[31mred", "<b>&lt;"])
def test_b34_odd_titles_are_kept_with_a_stable_digest(tmp_path, title):
    write_sequential(tmp_path, "1 1 2 1\n", [title, "plain"])
    data = load_sequential(tmp_path)
    assert data.catalogue.titles[0] == title.replace("&lt;", "<")
    data.save(tmp_path / "saved")
    assert Interactions.load(tmp_path / "saved").catalogue == data.catalogue


def test_b34_the_digest_of_odd_titles_is_the_same_in_another_process(tmp_path):
    titles = [EMOJI, RIGHT_TO_LEFT, COMBINING, "a\0b", "\x1b[31mred"]
    write_sequential(tmp_path, "1 1 2 3 4 5\n", titles)
    code = (
        "import sys\nfrom genrec.data.sources import load_dataset\nfrom genrec.settings import DatasetConfig\n"
        "print(load_dataset(DatasetConfig(source='sequential', dataset_folder=sys.argv[1])).data_hash)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == load_sequential(tmp_path).data_hash


@pytest.mark.parametrize("fault", ["title", "brand", "categories"])
def test_b34_half_a_character_is_refused_by_line(tmp_path, fault):
    record: dict[str, Any] = {"item_id": 1, "asin": "B0", "title": "plain", "brand": "plain"}
    record[fault] = [["A", "broken \ud83d"]] if fault == "categories" else "broken \ud83d"
    write_sequential(tmp_path, "1 1 1 1\n", [])
    (tmp_path / "items.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=rf"items.jsonl:1: {fault} has half a character \(0xd83d\) at place 7"):
        load_sequential(tmp_path)


def test_b38_unsorted_and_equal_times_are_put_in_a_stable_order(tmp_path):
    data = load_table(write_table(tmp_path, ["a,7,5", "b,8,1", "a,8,2", "b,7,1", "a,7,2", "b,8,1"]))
    assert [data.history(u).tolist() for u in range(2)] == [[1, 0, 0], [1, 0, 1]]


def test_b38_milliseconds_among_seconds_are_refused(tmp_path):
    with pytest.raises(DataError, match="timestamps run from 1400000000 to 1400000000000: seconds and milliseconds"):
        load_table(write_table(tmp_path, ["a,7,1400000000", "a,8,1400000000000", "a,7,1400000001"]))
