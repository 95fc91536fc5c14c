"""MovieLens in its four forms: 100k (`u.data`, `u.item`), 1m (`*.dat`), latest-small and 32m (`*.csv`).

The catalogue is the edition's list of films in its order, rated or not, so that row r of an array of vectors is line r
of that list. The text of a film is `TITLE (YEAR); categories: Genre > Genre`. Ratings are interactions whatever their
value; those of one second stay in the order of the file.
"""

from __future__ import annotations

import csv
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from genrec.data.downloads import download, verify
from genrec.data.filtering import InteractionRows
from genrec.data.interactions import DataError, Items
from genrec.data.lines import SHOWN, BadLines, clean_text, item_text, read_lines
from genrec.data.table_files import TableFile
from genrec.data.tables import read_interactions
from genrec.durable import flush, put
from genrec.settings import MovieLensConfig

logger = logging.getLogger(__name__)
URL = "https://files.grouplens.org/datasets/movielens/"
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_NO_GENRE = ("", "unknown", "(no genres listed)")


@dataclass(frozen=True)
class Edition:
    """Names and form of an edition's files."""

    ratings: str
    films: str
    delimiter: str
    "of both files, in the ratings as a single letter"
    columns: tuple[str, ...] = ()
    "of the ratings where they have no header"
    encoding: str = "utf-8"


EDITIONS = {
    "100k": Edition("u.data", "u.item", "\t", ("userId", "movieId", "rating", "timestamp"), "latin-1"),
    "1m": Edition(
        "ratings.dat",
        "movies.dat",
        ":",
        # Columns are parted by '::', which for a reader of single letters is an empty column between two.
        ("userId", "gap1", "movieId", "gap2", "rating", "gap3", "timestamp"),
        "latin-1",
    ),
    "latest-small": Edition("ratings.csv", "movies.csv", ","),
    "32m": Edition("ratings.csv", "movies.csv", ","),
}


def movielens_files(folder: Path, config: MovieLensConfig) -> list[Path]:
    """Ratings and films, in `folder` or in its subfolder `ml-EDITION`; fetched where `config.download` allows it."""
    edition, name = EDITIONS[config.edition], f"ml-{config.edition}"
    for place in (folder / name, folder):
        files = [place / edition.ratings, place / edition.films]
        if all(path.is_file() for path in files):
            return files
    if config.download:
        archive = download(f"{URL}{name}.zip", folder / f"{name}.zip")
        verify(archive)
        return [_unpack(archive, f"{name}/{file}", folder) for file in (edition.ratings, edition.films)]
    raise DataError(
        f"{folder}: has neither {edition.ratings} and {edition.films} nor a folder {name} with them"
        f"{_other_edition(folder, config.edition)}"
    )


def read_movielens(folder: Path, config: MovieLensConfig, max_bad_lines: int = 0) -> InteractionRows:
    """All ratings of an edition as rows, and its list of films as the catalogue."""
    edition = EDITIONS[config.edition]
    ratings, films = movielens_files(folder, config)
    catalogue = _read_films(films, config.edition)
    bad = BadLines(max_bad_lines)
    table = TableFile(ratings, edition.delimiter, edition.columns)
    return read_interactions(table, ("userId", "movieId", "timestamp"), catalogue, bad)


def _read_films(path: Path, edition: str) -> Items:
    ids, titles, texts = [], [], []
    lines: dict[str, int] = {}
    for number, (film, title, genres) in _films(path, edition):
        where = f"{path}:{number}"
        if film in lines:
            raise DataError(f"{where}: film {film!r} stands already on line {lines[film]}")
        if not (film.isascii() and film.isdecimal()):
            raise DataError(f"{where}: a film's id must be plain digits, got {film[:SHOWN]!r}")
        lines[film] = number
        title = clean_text(title, "title", where)
        ids.append(film)
        titles.append(title or film)
        texts.append(item_text(title, "", [genre for genre in genres if genre not in _NO_GENRE]))
    if not ids:
        raise DataError(f"{path}: the list of films is empty")
    return Items(ids, titles, texts)


def _films(path: Path, edition: str) -> Iterator[tuple[int, tuple[str, str, list[str]]]]:
    """Line numbers, and id, title and genres of every film."""
    encoding = EDITIONS[edition].encoding
    lines = read_lines(path, BadLines(), encoding)
    if EDITIONS[edition].delimiter == ",":
        lines = ((number, line) for number, line in lines if number > 1)
    for number, line in lines:
        cells = _cells(line, edition)
        if edition == "100k" and len(cells) == 5 + len(_GENRES_100K):
            genres = [name for name, flag in zip(_GENRES_100K, cells[5:], strict=True) if flag == "1"]
            yield number, (cells[0], cells[1], genres)
        elif edition != "100k" and len(cells) == 3:
            yield number, (cells[0], cells[1], cells[2].split("|"))
        else:
            raise DataError(
                f"{path}:{number}: {len(cells)} cells are not the form of MovieLens {edition}: {line[:SHOWN]!r}"
            )


def _cells(line: str, edition: str) -> list[str]:
    if edition == "100k":
        return line.split("|")
    return line.split("::") if edition == "1m" else next(csv.reader([line]))


def _other_edition(folder: Path, edition: str) -> str:
    """What the folder seems to hold instead."""
    for other, form in EDITIONS.items():
        if other != edition and any((place / form.ratings).is_file() for place in (folder / f"ml-{other}", folder)):
            return f"; it seems to be {other}: set dataset.movielens.edition={other}"
    return "; put them there, or set dataset.movielens.download=true to fetch them"


def _unpack(archive: Path, member: str, folder: Path) -> Path:
    """One file of the archive at `folder/member`, whole or not there; its checksum is the archive's own."""
    path = folder / member
    part = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    logger.info("unpacking %s", path)
    try:
        with zipfile.ZipFile(archive) as files, files.open(member) as source, open(part, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        part.unlink(missing_ok=True)
        raise DataError(f"{archive}: damaged, or without {member} ({error}); delete it to fetch it again") from None
    flush(part)
    put(part, path)
    return path
