"""Quality and cost of tokenizers: how evenly they use their codes, how many items share a tuple, how long they take.

    python tests/benchmarks/tokenizer_quality.py [FOLDER --vectors FILE] [--only NAME ...] [--set KEY=VALUE ...]

FOLDER holds `sequential_data.txt`, `items.jsonl` and FILE, an array with one row an item; without one the embedded
catalogue with LSA vectors is used, and 16 codes a level instead of 256. `--set` changes settings of all rows
(`--set tokenizer.rqvae.epochs=50`), and with `--only defaults` a setting of your own is measured.

Collisions are counted in two ways that are not to be mixed: `shared` is the share of items that share their tuple with
another (the collision rate of a semantic ID's health), `duplicates` is 1 - distinct tuples / items, smaller because a
group's first item does not count. Both before the collision code. One thread; seconds are of the clock and of the
processor, which differ where other work runs.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from genrec.config import RunConfig, load_config, parse_overrides
from genrec.data.sources import load_dataset
from genrec.pipeline import make_vectors
from genrec.semantic_ids import Health, measure_health
from genrec.trainers.rqvae_trainer import train_tokenizer

RQVAE = {"tokenizer.kind": "rqvae"}
ROWS: dict[str, dict[str, Any]] = {
    "rkmeans": {"tokenizer.kind": "rkmeans"},
    "rkmeans, 64 components": {"tokenizer.kind": "rkmeans", "tokenizer.pca_dim": 64},
    "rqvae, as in the paper": RQVAE
    | {
        "tokenizer.rqvae.commitment_weight": 0.25,
        "tokenizer.rqvae.learning_rate": 1e-3,
        "tokenizer.rqvae.schedule": "constant",
        "tokenizer.rqvae.dead_code_epochs": 0,
        "tokenizer.rqvae.latent_dim": 32,
        "tokenizer.rqvae.epochs": 200,
    },
    "defaults": RQVAE,
    "no dead-code reset": RQVAE | {"tokenizer.rqvae.dead_code_epochs": 0},
    "commitment .25": RQVAE | {"tokenizer.rqvae.commitment_weight": 0.25},
    "rotation": RQVAE | {"tokenizer.rqvae.gradient": "rotation"},
    "gumbel": RQVAE | {"tokenizer.rqvae.gradient": "gumbel"},
    "sinkhorn on the last level": RQVAE | {"tokenizer.rqvae.sinkhorn_levels": [3]},
    "not standardised": RQVAE | {"tokenizer.standardise": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="folder of a dataset; the embedded catalogue when left out")
    parser.add_argument("--vectors", default="item_emb_minilm.f16.npy", help="array of item vectors in FOLDER")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base: dict[str, Any] = {"tokenizer.num_item_embeddings": 16}
    if arguments.folder:
        base = {"tokenizer.num_item_embeddings": 256, "dataset.source": "sequential"}
        base |= {"dataset.dataset_folder": str(Path(arguments.folder).resolve())}
        base |= {"embeddings.encoder": "npy", "embeddings.path": arguments.vectors}
    base |= parse_overrides(arguments.assignments)
    first = load_config(None, base)
    vectors_NE = torch.from_numpy(make_vectors(first, load_dataset(first.dataset)))
    codes, levels = first.tokenizer.num_item_embeddings, first.tokenizer.sem_id_dim
    print(f"{len(vectors_NE)} items, vectors of width {vectors_NE.shape[1]}, {levels} levels of {codes} codes")
    print(f"{'':28} {'usage %':>14} {'perplexity':>14} {'shared':>7} {'duplicates':>10} {'largest':>7}", end="")
    print(f" {'clock s':>8} {'processor s':>11}")
    for name in arguments.only:
        config = load_config(None, base | ROWS[name] | parse_overrides(arguments.assignments))
        measure(name, config, vectors_NE)


def measure(name: str, config: RunConfig, vectors_NE: Tensor) -> None:
    clock, processor = time.perf_counter(), time.process_time()
    codes_NL = train_tokenizer(config.tokenizer, vectors_NE).codes(vectors_NE)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    health = measure_health(codes_NL, config.tokenizer.num_item_embeddings)
    print(f"{name:28} {table_row(health, len(vectors_NE))} {clock:8.1f} {processor:11.1f}", flush=True)


def table_row(health: Health, num_items: int) -> str:
    usage = "/".join(f"{100 * u:.0f}" for u in health.usage)
    perplexity = "/".join(f"{p:.0f}" for p in health.perplexity)
    duplicates = 1 - health.distinct / num_items
    collisions = f"{100 * health.collision_rate:6.1f}% {100 * duplicates:9.1f}% {health.largest_group:7}"
    return f"{usage:>14} {perplexity:>14} {collisions}"


if __name__ == "__main__":
    main()
