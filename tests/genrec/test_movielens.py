"""MovieLens: its four forms with made-up rows, the archive, and the sizes of the real editions."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from genrec.data import movielens
from genrec.data.interactions import DataError, Interactions
from genrec.data.sources import load_dataset
from genrec.settings import DatasetConfig, MovieLensConfig

FILMS = [("1", "Toy Story (1995)", ["Animation", "Comedy"]), ("5", "Amélie, The (2001)", []), ("9", 'A "B"', ["Drama"])]
RATINGS = [("7", "9", 30), ("3", "1", 10), ("7", "1", 20), ("7", "5", 20), ("3", "5", 40), ("3", "9", 30)]
GENRES = movielens._GENRES_100K


def write(folder: Path, edition: str) -> Path:
    folder.mkdir(exist_ok=True)
    if edition == "100k":
        flags = {film: "|".join(str(int(name in genres)) for name in GENRES) for film, _, genres in FILMS}
        films = "".join(f"{film}|{title}|01-Jan-1995||http://x|{flags[film]}\n" for film, title, _ in FILMS)
        (folder / "u.item").write_text(films, encoding="latin-1")
        (folder / "u.data").write_text("".join(f"{u}\t{i}\t3\t{t}\n" for u, i, t in RATINGS))
    elif edition == "1m":
        films = "".join(f"{film}::{title}::{'|'.join(genres)}\n" for film, title, genres in FILMS)
        (folder / "movies.dat").write_text(films, encoding="latin-1")
        (folder / "ratings.dat").write_text("".join(f"{u}::{i}::3::{t}\n" for u, i, t in RATINGS))
    else:
        quoted = {title: '"' + title.replace('"', '""') + '"' for _, title, _ in FILMS}
        names = {film: "|".join(genres) or "(no genres listed)" for film, _, genres in FILMS}
        films = "".join(f"{film},{quoted[title]},{names[film]}\n" for film, title, _ in FILMS)
        (folder / "movies.csv").write_text("movieId,title,genres\n" + films, encoding="utf-8")
        ratings = "".join(f"{u},{i},3.5,{t}\n" for u, i, t in RATINGS)
        (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + ratings)
    return folder


def load(folder: Path, edition: str, **settings: Any) -> Interactions:
    choice = MovieLensConfig(edition=edition, download=settings.pop("download", False))  # type: ignore[arg-type]
    return load_dataset(DatasetConfig(source="movielens", dataset_folder=str(folder), movielens=choice, **settings))


@pytest.mark.parametrize("edition", ["100k", "1m", "latest-small", "32m"])
@pytest.mark.parametrize("inside", [False, True])
def test_every_form_gives_the_same_data(tmp_path, edition, inside):
    write(tmp_path / f"ml-{edition}" if inside else tmp_path, edition)
    data = load(tmp_path, edition)
    assert data.users == ["7", "3"]
    assert [[data.catalogue.ids[i] for i in data.history(u)] for u in range(2)] == [["1", "5", "9"], ["1", "9", "5"]]
    assert data.timestamps.tolist() == [20, 20, 30, 10, 30, 40]
    assert data.catalogue.titles == [title for _, title, _ in FILMS]
    assert data.catalogue.texts == [
        "Toy Story (1995); categories: Animation > Comedy",
        "Amélie, The (2001)",
        'A "B"; categories: Drama',
    ]


def test_another_edition_in_the_folder_is_named(tmp_path):
    write(tmp_path, "1m")
    with pytest.raises(DataError, match=r"neither u.data and u.item nor a folder ml-100k .*edition=1m"):
        load(tmp_path, "100k")


@pytest.mark.parametrize("edition", ["100k", "1m", "latest-small"])
def test_ratings_of_unknown_films_and_broken_rows_are_refused_by_line(tmp_path, edition):
    write(tmp_path, edition)
    path = tmp_path / movielens.EDITIONS[edition].ratings
    first = len(RATINGS) + 1 + (edition == "latest-small")
    whole = path.read_text()
    for row, message in (
        (("3", "77", "50"), "column 'movieId': item '77' is not in the catalogue of 3 items"),
        (("3", "1", "never"), "column 'timestamp': expected seconds .* got 'never'"),
        (("", "1", "50"), "column 'userId': the cell is empty"),
    ):
        user, item, time = row
        separator = {"100k": "\t", "1m": "::", "latest-small": ","}[edition]
        path.write_text(whole + separator.join((user, item, "3", time)) + "\n")
        with pytest.raises(DataError, match=f"{path.name}:{first}: {message}"):
            load(tmp_path, edition)
        assert load(tmp_path, edition, max_bad_lines=1).dropped["bad_lines"] == 1


def test_films_that_are_repeated_or_malformed_are_refused_by_line(tmp_path):
    path = write(tmp_path, "1m") / "movies.dat"
    whole = path.read_text(encoding="latin-1")
    for line, message in (
        ("1::Other::Drama", "movies.dat:4: film '1' stands already on line 1"),
        ("x1::Other::Drama", "movies.dat:4: a film's id must be plain digits, got 'x1'"),
        ("8::Other", "movies.dat:4: 2 cells are not the form of MovieLens 1m: '8::Other'"),
    ):
        path.write_text(whole + line + "\n", encoding="latin-1")
        with pytest.raises(DataError, match=message):
            load(tmp_path, "1m")


def test_the_archive_is_fetched_and_unpacked_once(tmp_path, monkeypatch):
    write(tmp_path / "source", "1m")
    asked = []

    def fetch(url: str, path: Path) -> Path:
        asked.append(url)
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for file in (tmp_path / "source").iterdir():
                archive.write(file, f"ml-1m/{file.name}")
        return path

    monkeypatch.setattr(movielens, "download", fetch)
    for _ in range(2):
        assert len(load(tmp_path / "here", "1m", download=True)) == 2
    assert len(asked) == 1
    assert asked[0].startswith("https://")
    assert asked[0].endswith("/ml-1m.zip")
    assert sorted(path.name for path in (tmp_path / "here" / "ml-1m").iterdir()) == ["movies.dat", "ratings.dat"]


def test_a_damaged_archive_is_refused(tmp_path, monkeypatch):
    def fetch(url: str, path: Path) -> Path:
        path.write_bytes(b"no archive")
        return path

    monkeypatch.setattr(movielens, "download", fetch)
    with pytest.raises(DataError, match=r"ml-1m.zip: damaged, or without ml-1m/ratings.dat .* delete it"):
        load(tmp_path, "1m", download=True)
    assert [path.name for path in (tmp_path / "ml-1m").iterdir()] == []


@pytest.mark.parametrize(
    ("edition", "all_sizes", "core_sizes"),
    [("100k", (943, 1682, 100_000), (943, 1349, 99_287)), ("latest-small", (610, 9742, 100_836), (610, 3650, 90_274))],
)
def test_real_editions_have_their_published_sizes(edition, all_sizes, core_sizes):
    root = Path(os.environ.get("GENREC_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if not (root / f"ml-{edition}").is_dir():
        pytest.skip(f"no real data at {root / f'ml-{edition}'}; set GENREC_DATA to the folder that holds it")
    for k_core, sizes in ((0, all_sizes), (5, core_sizes)):
        data = load(root, edition, k_core=k_core)
        assert (len(data), len(data.catalogue), len(data.items)) == sizes
