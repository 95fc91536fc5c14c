"""Short trials per minute: ours against the form that everyone writes, on the same space, in one run.

    python tests/benchmarks/trials_per_minute.py [--ours 40] [--theirs 4]

The usual form: a Tuner over a driver function that builds `TorchTrainer(ScalingConfig(num_workers=1))` for each trial.
Ours: the ledger's queue through warm processes and Train's local mode. A trial is the same loop in both: three epochs
of a tiny network, about 0.1 s of work, a report an epoch. Two trials run at a time; the time is that of `Tuner.fit()`
or `run_queue()`, with Ray already up.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from sweeps.ledger import Ledger
from sweeps.ray_cluster import start_ray
from sweeps.ray_tune import run_queue
from sweeps.spec_file import load_spec

EPOCHS = 3
SPEC = """
name: bench
space: {{train.learning_rate: {{type: float, low: 1e-3, high: 1e-1, log: true}}}}
sampler: {{type: random}}
budget: {{trials: {trials}}}
"""


def loop(argument: dict[str, Any], report: Callable[[Mapping[str, Any]], None]) -> None:
    """Three tiny epochs."""
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=argument["learning_rate"])
    for epoch in range(1, EPOCHS + 1):
        end = time.monotonic() + 0.03
        while time.monotonic() < end:
            model(torch.randn(64, 64)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        report({"epoch": epoch, "ndcg@10": float(model.weight.detach().mean())})


def our_trial(
    payload: dict[str, Any], report: Callable[[Mapping[str, Any]], None], launch: Callable[..., None]
) -> dict[str, Any]:
    launch(loop, {"learning_rate": payload["config"]["train"]["learning_rate"]})
    return {}


def ours(folder: Path, trials: int) -> float:
    """Seconds for `trials` trials."""
    path = folder / "bench.yaml"
    path.write_text(SPEC.format(trials=trials))
    spec = load_spec(path)
    with Ledger.create(folder / "bench", spec) as ledger:
        start = time.perf_counter()
        run_queue(
            ledger,
            our_trial,
            name=spec.name,
            folder=ledger.folder,
            metric=spec.metric,
            max_concurrent=2,
        )
        seconds = time.perf_counter() - start
        assert ledger.counts()["completed"] == trials, ledger.counts()
    return seconds


def theirs(folder: Path, trials: int) -> float:
    """Seconds for `trials` trials."""

    def driver(config: dict[str, Any]) -> None:
        trainer = TorchTrainer(
            lambda: loop(config, ray.train.report),
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(
                name=tune.get_context().get_trial_id(),
                storage_path=str(folder / "train"),
                callbacks=[TuneReportCallback()],
            ),
        )
        trainer.fit()

    tuner = tune.Tuner(
        tune.with_resources(driver, {"cpu": 0.01}),
        param_space={"learning_rate": tune.loguniform(1e-3, 1e-1)},
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=2),
        run_config=tune.RunConfig(name="theirs", storage_path=str(folder / "tune"), verbose=0),
    )
    start = time.perf_counter()
    results = tuner.fit()
    seconds = time.perf_counter() - start
    assert not results.errors, results.errors
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=int, default=80, help="trials of ours")
    parser.add_argument("--theirs", type=int, default=6, help="trials of the usual form")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, start_ray("local", num_cpus=3):
        folder = Path(name)
        found = {
            "usual form": 60 * options.theirs / theirs(folder, options.theirs),
            "ours": 60 * options.ours / ours(folder, options.ours),
        }
    for form, rate in found.items():
        print(f"{form:12} {rate:8.1f} trials/min  {rate / found['usual form']:6.1f}x")
    print(json.dumps({"cpus": 2, "ray": ray.__version__, **found}))


if __name__ == "__main__":
    main()
