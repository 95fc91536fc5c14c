"""Sweeps whose trials are not trained but made up: the same config always gives the same curve."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from genrec.config import validate_config
from sweeps.finalists import (
    current_runs,
    note_plan,
    plan_finalists,
    rank_finalists,
    summarise,
    verdict,
    without_result,
)
from sweeps.ledger import FinalistQueue, Ledger
from sweeps.model_key import model_key
from sweeps.spec import SweepSpec
from sweeps.spec_file import load_spec

SAMPLED = """
space:
  train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
  train.batch_size: {type: int, low: 16, high: 64, step: 16}
  tokenizer.rqvae.hidden_dims: {type: choice, values: [[64], [128, 64]]}
"""
GRID = """
space:
  tiger.num_heads: {type: grid, values: [4, 5, 2]}
  tokenizer.rqvae.hidden_dims: {type: grid, values: [[64], [128, 64]]}
"""


CHOICES = """
space:
  train.optimizer: {type: choice, values: [adamw, muon]}
  train.schedule: {type: choice, values: [constant, cosine]}
"""
MIXED = """
space:
  size: {type: grid, names: [small, large], zip: {tiger.n_layers: [2, 4], tiger.num_heads: [2, 4]}}
  tokenizer.kind: {type: choice, values: [rkmeans, rqvae]}
  train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
  train.batch_size: {type: int, low: 16, high: 512, log: true}
  tokenizer.rqvae.epochs: {type: int, low: 10, high: 90, when: {tokenizer.kind: rqvae}}
derive: {train.warmup_steps: 20 * tiger.num_heads}
"""


def spec_of(folder: Path, text: str, **overrides: Any) -> SweepSpec:
    path = folder / "s.yaml"
    path.write_text(text)
    return load_spec(path, {key.replace("__", "."): value for key, value in overrides.items()})


def sampler_of(kind: str) -> dict[str, Any]:
    """Overrides that choose a sampler, with few trials before it learns."""
    learns = {"tpe": "startup_trials", "gp": "startup_trials", "nsga2": "population", "cma-es": "population"}
    return {"sampler__type": kind} | ({f"sampler__{learns[kind]}": 2} if kind in learns else {})


def score(config: dict[str, Any], epoch: int) -> float:
    """A stand-in for training: the same config always gives the same curve."""
    learning_rate = config["train"]["learning_rate"]
    return 1 / (1 + abs(math.log10(learning_rate) + 3)) + 0.01 * epoch + config["train"]["batch_size"] / 1e4


def run_one(ledger: Ledger, task: Any, status: str = "completed") -> None:
    for epoch in (1, 2):
        ledger.report(task.id, {"epoch": epoch, "ndcg@10": score(task.payload["config"], epoch)})
    artifacts = {"tiger": model_key(validate_config(task.payload["config"]))}
    ledger.finish(task.id, status, {"duration": 1.5, "node": "n1", "artifacts": artifacts})


def drive(ledger: Ledger, concurrency: int = 1, seed: int = 0) -> list[str]:
    """Run the queue to its end, `concurrency` at a time, ending in random order. Returns the ids handed out."""
    rng = random.Random(seed)
    running: list[Any] = []
    handed_out = []
    while True:
        while len(running) < concurrency and (task := ledger.next()) is not None:
            handed_out.append(task.id)
            running.append(task)
        if not running:
            return handed_out
        run_one(ledger, running.pop(rng.randrange(len(running))))


def essence(ledger: Ledger) -> list[tuple[Any, ...]]:
    """What must not depend on kills: everything but times."""
    return [
        (r.number, r.status, json.dumps(r.params), r.value, r.seed, r.config_hash, r.duplicate_of, json.dumps(r.epochs))
        for r in ledger.trials()
    ]


def killed_driver(folder: Path, program: str, kill_at: int) -> None:
    """Run `program`, a driver of the sweep in `folder` that kills itself at the `kill_at`-th write, to that end."""
    words = [sys.executable, "-c", program, str(folder), str(kill_at), str(Path(__file__).parent)]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    assert Ledger.read(folder).state == "interrupted"


def finished(folder: Path, spec: SweepSpec, concurrency: int = 1, seed: int = 0) -> list[tuple[Any, ...]]:
    with Ledger.create(folder, spec) as ledger:
        drive(ledger, concurrency, seed)
        return essence(ledger)


def finished_sweep(folder: Path, spec: SweepSpec, hostile: tuple[str, ...] = (), failing: Collection[str] = ()) -> None:
    """A sweep with winner and verdict: trial 0 beats the base, is above one baseline and below another, and comes to
    half of what is possible. `hostile`: texts that also stand where foreign ones may. `failing`: re-evaluations that
    come to no end, by their id."""
    with Ledger.create(folder, spec) as ledger:
        drive(ledger)
        plans = plan_finalists(spec, [(0, ledger.config_of(0))])
        note_plan(ledger, plans)
        queue = FinalistQueue(ledger, plans)
        runs: Counter[int | str] = Counter()
        while task := queue.next():
            finalist = task.payload["finalist"]
            runs[finalist] += 1
            if task.id in failing:
                queue.finish(task.id, "failed", {"reason": "the loss is not finite\nat step 7", "node": "n1"})
                continue
            value = 0.2 + 0.01 * runs[finalist] - 0.1 * (finalist == "base")
            figures = {"ndcg@10": value, "tuple_ndcg@10": value + 0.1}
            queue.finish(task.id, "completed", {"validation": figures, "test": figures, "duration": 2.0, "node": "n1"})
        baselines = {"popularity": 0.05, "knn": 0.3, **dict.fromkeys(hostile, 0.05)}
        rows = {
            name: {"fit": name if name in hostile else "train", "ndcg@10": value} for name, value in baselines.items()
        }
        ranked = rank_finalists(summarise(current_runs(ledger)), spec.metric, spec.mode)
        lost = without_result(current_runs(ledger))
        ledger.set_fact("baselines", rows)
        ledger.set_fact("oracle", {"ndcg@10": 2 * ranked[0]["test"]["ndcg@10"]["mean"]})
        ledger.set_fact("protocol", {"split": "test", **{text: text for text in hostile}})
        ledger.set_fact("verdict", [*verdict(ranked, [], rows, spec.metric, lost), *hostile])
        ledger.set_fact("winner", {"trial": ranked[0]["trial"], "seed": ranked[0]["seeds"][0]})
        ledger.mark("finished")
