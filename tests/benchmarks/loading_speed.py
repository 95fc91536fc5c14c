"""How long data takes to load, and how much memory: raw Amazon reviews, MovieLens ratings, and Beauty where it is.

    python tests/benchmarks/loading_speed.py [--reviews 1000000] [--ratings 32000000] [--folder FOLDER]

Reviews and ratings are made up in the form and size of the real files (a review line has about 780 bytes) and written
to FOLDER first; each is loaded in a process of its own, whose peak memory is told. Beauty is looked for in
`GENREC_DATA`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

LOAD = """
import json, resource, sys, time
from genrec.data.sources import load_dataset
from genrec.settings import DatasetConfig
config = DatasetConfig.model_validate_json(sys.argv[1])
started, processor = time.perf_counter(), time.process_time()
data = load_dataset(config)
seconds, busy = time.perf_counter() - started, time.process_time() - processor
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps([seconds, busy, peak, len(data), len(data.catalogue), len(data.items)]))
"""


def measure(name: str, settings: Mapping[str, object]) -> None:
    """Load in a fresh process and print a row of the table."""
    command = [sys.executable, "-c", LOAD, json.dumps(settings)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, busy, peak, users, items, interactions = json.loads(ended.stdout)
    print(
        f"| {name} | {users:,} | {items:,} | {interactions:,} | {seconds:.1f} s | {busy:.1f} s | {peak:.2f} GB |",
        flush=True,
    )


def write_reviews(folder: Path, count: int) -> None:
    """`count` reviews of Zipf-distributed users and items, sorted by item as the real file is, and their metadata."""
    rng = np.random.default_rng(0)
    num_items, num_users = max(10, count // 16), max(10, count // 9)
    words = ["".join(rng.choice(list("abcdefghijklmnoprstuvw"), size=size)) for size in rng.integers(2, 10, size=4000)]
    items = np.sort((num_items * rng.random(count) ** 2).astype(int))
    users = (num_users * rng.random(count) ** 1.5).astype(int)
    days = rng.integers(12_000, 16_200, size=count) * 86_400
    texts = [" ".join(words[w] for w in rng.integers(0, 4000, size=size)) for size in rng.integers(20, 170, size=5000)]
    with gzip.open(folder / "reviews_Beauty_5.json.gz", "wt", compresslevel=1) as file:
        for user, item, day, choice in zip(users, items, days, rng.integers(5000, size=count), strict=True):
            text = texts[choice]
            record = {
                "reviewerID": f"A{user:013d}",
                "asin": f"B{item:09d}",
                "reviewerName": f'{words[user % 4000]} "the {words[item % 4000]}"',
                "helpful": [int(choice % 7), 7],
                "reviewText": text,
                "overall": float(1 + choice % 5),
                "summary": text[:30],
                "unixReviewTime": int(day),
                "reviewTime": "01 30, 2014",
            }
            file.write(json.dumps(record) + "\n")
    with gzip.open(folder / "meta_Beauty.json.gz", "wt", compresslevel=1) as file:
        for item in range(20 * num_items):
            # The real file lists twenty times the items of the 5-core.
            asin = f"B{item // 20:09d}" if item % 20 == 0 else f"C{item:09d}"
            record = {
                "asin": asin,
                "description": texts[item % 5000],
                "title": f"{words[item % 4000]} {texts[item % 4999][:40]} {item}",
                "price": 9.99,
                "related": {"also_viewed": [f"B{item * n % 10**9:09d}" for n in range(1, 20)]},
                "brand": words[item % 4000],
                "categories": [["Beauty", words[item % 40], words[item % 400]]],
            }
            file.write(repr(record) + "\n")


def write_ratings(folder: Path, count: int) -> None:
    """`count` ratings in the form of MovieLens 32m."""
    import pandas as pd

    rng = np.random.default_rng(0)
    num_films, block = 87_585, 2_000_000
    num_users = max(1, min(count, block) // 160)
    with open(folder / "movies.csv", "w") as file:
        file.write("movieId,title,genres\n")
        file.writelines(f"{film + 1},Film {film} (1999),Drama|Comedy\n" for film in range(num_films))
    for start in range(0, count, block):
        size = min(block, count - start)
        frame = pd.DataFrame(
            {
                "userId": np.sort(rng.integers(1, num_users + 1, size=size)) + start // block * num_users,
                "movieId": (num_films * rng.random(size) ** 3).astype(int) + 1,
                "rating": rng.integers(1, 11, size=size) / 2,
                "timestamp": rng.integers(800_000_000, 1_700_000_000, size=size),
            }
        )
        frame.to_csv(folder / "ratings.csv", mode="a" if start else "w", header=not start, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=1_000_000)
    parser.add_argument("--ratings", type=int, default=32_000_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        started = time.perf_counter()
        write_reviews(folder, arguments.reviews)
        write_ratings(folder, arguments.ratings)
        sizes = {path.name: path.stat().st_size / 1e6 for path in sorted(folder.iterdir())}
        told = ", ".join(f"{name} {size:,.0f} MB" for name, size in sizes.items())
        print(f"written in {time.perf_counter() - started:.0f} s: {told}", flush=True)
        print(
            "| | users | items | interactions | time | of the processor | peak memory |\n|---|---|---|---|---|---|---|"
        )
        beauty = Path(os.environ.get("GENREC_DATA", "")) / "beauty"
        if (beauty / "sequential_data.txt").is_file():
            measure("Beauty, sequential", {"source": "sequential", "dataset_folder": str(beauty)})
        amazon = {"source": "amazon", "dataset_folder": str(folder)}
        measure(f"{arguments.reviews:,} raw reviews", amazon)
        films = {"source": "movielens", "dataset_folder": str(folder), "movielens": {"edition": "32m"}}
        measure(f"{arguments.ratings:,} ratings", films)


if __name__ == "__main__":
    main()
