"""What sharing stages saves: one small sweep with a common store, and with a store for every trial, in one run.

    python tests/benchmarks/stage_reuse.py [--trials 6] [--epochs 400]

The trials differ in TIGER's learning rate alone, so they have one tokenizer (an RQ-VAE of `--epochs` epochs) among
them. Both sweeps have the same trials, two at a time, in warm processes; a short sweep before them fills the file
caches.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timed_search import timed_search

from genrec.artifacts import ArtifactStore
from sweeps.ray_cluster import start_ray
from sweeps.sharing import SharedStages
from sweeps.trial import run_trial

SPEC = """
name: {name}
base: quickstart
set:
  dataset.synthetic.num_users: 400
  dataset.synthetic.num_items: 300
  tokenizer.rqvae.epochs: {epochs}
  train.epochs: 1
space: {{train.learning_rate: {{type: float, low: 1e-3, high: 1e-2, log: true}}}}
sampler: {{type: random}}
budget: {{trials: {trials}}}
"""


def alone(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None], *, store: str) -> Any:
    """A trial that shares nothing."""
    return run_trial(payload, report, launch, store=f"{store}/{payload['id']}")


def sweep(folder: Path, name: str, shared: bool, trials: int, epochs: int) -> tuple[float, int]:
    """Seconds, and how many tokenizers were trained."""
    store = ArtifactStore(folder / f"{name}-store")
    function = functools.partial(run_trial if shared else alone, store=str(store.root))
    text = SPEC.format(name=name, trials=trials, epochs=epochs)
    options = {"missing": SharedStages(store)} if shared else {}
    seconds, records = timed_search(folder, name, text, function, **options)
    return seconds, sum("tokenizer" in record.trained for record in records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=400, help="of the tokenizer")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name, start_ray("local", num_cpus=2):
        sweep(Path(name), "warm-up", True, 2, 1)
        for form, shared in (("separate", False), ("shared", True)):
            seconds, trained = sweep(Path(name), form, shared, options.trials, options.epochs)
            found[form] = round(seconds, 1)
            print(f"{form:9} {seconds:7.1f} s, {trained} tokenizers trained", flush=True)
    print(json.dumps(found | {"ratio": round(found["separate"] / found["shared"], 2)}))


if __name__ == "__main__":
    main()
