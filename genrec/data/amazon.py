"""Amazon reviews of 2014, 5-core: `reviews_X_5.json.gz` (JSON a line) and `meta_X.json.gz` (a Python literal a line).

Users are numbered by first appearance in the review file, items by first appearance in the users' histories: the order
in which S3-Rec, P5 and TIGER number them, so that vectors made for their files fit row by row. Reviews carry days;
within a day the order of the file stays, as there. Items are known by their ASIN. An item without a metadata line keeps
its ASIN as title and an empty text, and is counted.
"""

from __future__ import annotations

import ast
import re
import warnings
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from genrec.data.downloads import download, verify
from genrec.data.filtering import InteractionRows
from genrec.data.interactions import DataError, Items
from genrec.data.lines import SHOWN, BadLines, first_path, item_text, parse_json, read_lines, text_of
from genrec.errors import nearest
from genrec.settings import AmazonConfig

URL = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
CATEGORIES = (
    "Amazon_Instant_Video", "Apps_for_Android", "Automotive", "Baby", "Beauty", "Books", "CDs_and_Vinyl",
    "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry", "Digital_Music", "Electronics",
    "Grocery_and_Gourmet_Food", "Health_and_Personal_Care", "Home_and_Kitchen", "Kindle_Store", "Movies_and_TV",
    "Musical_Instruments", "Office_Products", "Patio_Lawn_and_Garden", "Pet_Supplies", "Sports_and_Outdoors",
    "Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games",
)  # fmt: skip
_ASIN = re.compile(r"""asin['"]\s*:\s*u?['"]([^'"]*)['"]""")


def amazon_files(folder: Path, config: AmazonConfig) -> list[Path]:
    """The review and the metadata file; missing ones are fetched where `config.download` allows it."""
    if not re.fullmatch(r"\w+", config.category):
        raise DataError(f"dataset.amazon.category must be a name such as Beauty, got {config.category!r}")
    return [
        _find(folder, f"reviews_{config.category}_5.json", config),
        _find(folder, f"meta_{config.category}.json", config),
    ]


def read_amazon(folder: Path, config: AmazonConfig, max_bad_lines: int = 0) -> InteractionRows:
    """All reviews of a category as rows, and the catalogue of the items that were reviewed."""
    reviews, meta = amazon_files(folder, config)
    for path in (reviews, meta):
        verify(path)
    bad = BadLines(max_bad_lines)
    users, asins, user_n, item_n, timestamp_n = _read_reviews(reviews, bad)
    asins, item_n = _by_first_appearance(asins, user_n, item_n, timestamp_n)
    found, repeated = _read_meta(meta, set(asins), bad)
    texts = [found[asin].text if asin in found else "" for asin in asins]
    titles = [found[asin].title or asin if asin in found else asin for asin in asins]
    counts = {
        "bad_lines": bad.count,
        "repeated_items": repeated,
        "items_without_metadata": sum(asin not in found for asin in asins),
    }
    return InteractionRows(users, Items(asins, titles, texts), user_n, item_n, timestamp_n, counts)


def _find(folder: Path, name: str, config: AmazonConfig) -> Path:
    packed = folder / f"{name}.gz"
    for path in (packed, folder / name):
        if path.is_file():
            return path
    if config.download:
        if config.category not in CATEGORIES:
            hint = nearest(config.category, CATEGORIES)
            raise DataError(
                f"there is no category {config.category!r} to download{hint}; known: {', '.join(CATEGORIES)}"
            )
        return download(URL + packed.name, packed)
    raise DataError(f"{packed}: no such file{_what_to_do(folder, config)}")


def _what_to_do(folder: Path, config: AmazonConfig) -> str:
    if (folder / "sequential_data.txt").is_file() and (folder / "items.jsonl").is_file():
        return "; the folder has sequential_data.txt and items.jsonl: set dataset.source=sequential"
    there = sorted(path.name.split(".")[0] for path in folder.glob("reviews_*_5.json*"))
    categories = [name.removeprefix("reviews_").removesuffix("_5") for name in there]
    if categories and config.category not in categories:
        return f"; the folder has {', '.join(categories)}: set dataset.amazon.category={categories[0]}"
    return "; put it there, or set dataset.amazon.download=true to fetch it"


# -------------------------------------------------------------------- reviews


def _read_reviews(path: Path, bad: BadLines) -> tuple[list[str], list[str], np.ndarray, np.ndarray, np.ndarray]:
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user_n, item_n, timestamp_n = array("i"), array("i"), array("q")
    for number, line in read_lines(path, bad):
        try:
            user, item, timestamp = _review(line, f"{path}:{number}")
        except DataError as error:
            bad.add(error)
            continue
        user_n.append(users.setdefault(user, len(users)))
        item_n.append(items.setdefault(item, len(items)))
        timestamp_n.append(timestamp)
    if not users:
        raise DataError(f"{path}: no reviews; expected one JSON object a line")
    return list(users), list(items), _numpy(user_n), _numpy(item_n), _numpy(timestamp_n)


def _review(line: str, where: str) -> tuple[str, str, int]:
    record = parse_json(line, where)
    user, item, timestamp = record.get("reviewerID"), record.get("asin"), record.get("unixReviewTime")
    if type(timestamp) is not int or not 0 <= timestamp < 2**63:
        raise DataError(f"{where}: unixReviewTime must be seconds since 1970, got {_shown(timestamp)}")
    return _id(user, "reviewerID", where), _id(item, "asin", where), timestamp


def _id(value: object, key: str, where: str) -> str:
    if not isinstance(value, str) or not value or not value.isascii() or value != value.strip():
        raise DataError(f"{where}: {key} must be ASCII text without spaces around it, got {_shown(value)}")
    return value


def _shown(value: object) -> str:
    return repr(value)[:SHOWN]


def _numpy(values: array[int]) -> np.ndarray:
    return np.frombuffer(values, dtype=np.int32 if values.typecode == "i" else np.int64)


def _by_first_appearance(
    asins: list[str], user_n: np.ndarray, item_n: np.ndarray, timestamp_n: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Items renumbered by first appearance in the users' histories, user after user."""
    in_histories = item_n[np.lexsort((timestamp_n, user_n))]
    first_N = np.full(len(asins), len(item_n))
    np.minimum.at(first_N, in_histories, np.arange(len(in_histories)))
    order = np.argsort(first_N, kind="stable")
    number_N = np.empty(len(asins), dtype=np.int32)
    number_N[order] = np.arange(len(asins))
    return [asins[i] for i in order.tolist()], number_N[item_n]


# ------------------------------------------------------------------- metadata


class _Item:
    """An item's title and text, and the line they come from."""

    __slots__ = ("line", "text", "title")

    def __init__(self, title: str, text: str, line: int):
        self.title, self.text, self.line = title, text, line


def _read_meta(path: Path, wanted: set[str], bad: BadLines) -> tuple[dict[str, _Item], int]:
    """Items of `wanted` by ASIN, and how many lines said the same again."""
    found: dict[str, _Item] = {}
    repeated = 0
    with warnings.catch_warnings():
        # Old texts are full of backslashes that are no escapes.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        for number, line in read_lines(path, bad):
            # Most lines are about items that nobody of the 5-core reviewed; a pattern is 100 times faster than parsing.
            named = _ASIN.findall(line)
            if named and wanted.isdisjoint(named):
                continue
            try:
                asin, item = _meta(line, f"{path}:{number}", number)
                repeated += _keep(found, asin, item, f"{path}:{number}")
            except DataError as error:
                bad.add(error)
    return found, repeated


def _meta(line: str, where: str, number: int) -> tuple[str, _Item]:
    record = _parse_literal(line, where)
    asin = _id(record.get("asin"), "asin", where)
    title = text_of(record, "title", where)
    text = item_text(title, text_of(record, "brand", where), first_path(record, where))
    return asin, _Item(title, text, number)


def _keep(found: dict[str, _Item], asin: str, item: _Item, where: str) -> bool:
    """Note an item; whether it was known already."""
    known = found.setdefault(asin, item)
    if (known.title, known.text) != (item.title, item.text):
        raise DataError(f"{where}: asin {asin!r} stands already on line {known.line}, with another title or text")
    return known is not item


def _parse_literal(line: str, where: str) -> dict[str, Any]:
    try:
        record = ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        reason = str(error).split("<", 1)[0].strip() or type(error).__name__
        raise DataError(f"{where}: not a Python literal ({reason}): {line.strip()[:SHOWN]!r}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a Python dict, got {line.strip()[:SHOWN]!r}")
    return record
