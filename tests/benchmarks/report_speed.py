"""Time and size of a report of a long sweep, whose ledger is made up.

    python tests/benchmarks/report_speed.py [--trials 1000] [--storage FOLDER]

The trials have nine parameters and up to 27 epochs; two in three are stopped early, one in fifty fails. They are
written as a search would write them, only all at once. There are no artifacts: what needs them is left out.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from sweeps.ledger import Ledger
from sweeps.report import write_report
from sweeps.sampling import distributions
from sweeps.spec import SweepSpec
from sweeps.spec_file import load_spec
from sweeps.study_storage import SEARCH

SPEC = """
name: long
space:
  tokenizer.kind: {type: choice, values: [rqvae, rkmeans]}
  tokenizer.sem_id_dim: {type: choice, values: [2, 3, 4]}
  train.learning_rate: {type: float, low: 5.0e-4, high: 1.0e-2, log: true}
  train.weight_decay: {type: float, low: 1.0e-6, high: 1.0e-1, log: true}
  train.batch_size: {type: choice, values: [64, 128, 256]}
  tiger.dropout: {type: float, low: 0.0, high: 0.3}
  tiger.num_heads: {type: choice, values: [2, 4, 8]}
  tiger.attn_dim: {type: choice, values: [64, 128, 256]}
  tiger.n_layers: {type: choice, values: [2, 4, 8]}
scheduler: {type: asha, grace_epochs: 3, reduction_factor: 3}
budget: {trials: 1000}
"""
WORKERS = 8
_START = datetime(2026, 1, 1)


class _Lines(BaseJournalBackend):
    """A journal in memory."""

    def __init__(self, logs: list[dict[str, Any]]):
        self.logs = logs

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += logs


def make_ledger(folder: Path, trials: int) -> Ledger:
    """A search of so many trials that have all ended, and no finalists."""
    (folder / "spec.yaml").write_text(SPEC)
    spec = load_spec(folder / "spec.yaml", {"budget.trials": trials})
    Ledger.create(folder / spec.name, spec).close()
    journal = folder / spec.name / "ledger.journal"
    lines = _Lines([json.loads(line) for line in journal.read_text().splitlines()])
    storage = JournalStorage(lines)
    study = storage.get_study_id_from_name(SEARCH)
    rng = random.Random(0)
    for number in range(trials):
        storage.create_new_trial(study, made_up(spec, number, rng))
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines.logs))
    return Ledger.read(folder / spec.name)


def made_up(spec: SweepSpec, number: int, rng: random.Random) -> FrozenTrial:
    """A trial that is better the nearer its rate is to 3e-3, stopped after 3, 9 or 27 epochs."""
    values = spec.search_space.draw(rng, {})
    goal = 0.25 - abs(values["train.learning_rate"] - 3e-3) * 20 + rng.gauss(0, 0.01)
    state = (
        TrialState.FAIL if rng.random() < 0.02 else TrialState.PRUNED if rng.random() < 0.67 else TrialState.COMPLETE
    )
    length = 27 if state == TrialState.COMPLETE else rng.choice([3, 3, 9])
    curve = {epoch: goal * (1 - 0.8**epoch) + rng.gauss(0, 0.002) for epoch in range(1, length + 1)}
    rows = {
        f"epoch:{epoch}": {"epoch": epoch, "loss": 5 * 0.9**epoch, "ndcg@10": value, "recall@10": 2 * value}
        for epoch, value in curve.items()
    }
    start = _START + timedelta(seconds=30 * (number // WORKERS))
    reasons = {TrialState.PRUNED: f"stopped by the scheduler at epoch {length}", TrialState.FAIL: "out of memory"}
    result = {"node": f"node-{number % WORKERS}", "duration": length, "reason": reasons.get(state)}
    stages = ["dataset", "embeddings", "tokenizer", "semantic_ids"]
    result |= {"trained": ["tiger"] if number else stages, "reused": stages if number else []}
    attrs = {"id": f"trial-{number:04d}", "grid_index": 0, "values": values, "seed": number, "result": result}
    return FrozenTrial(
        number=number,
        trial_id=-1,
        state=state,
        value=None if state == TrialState.FAIL else max(curve.values()),
        datetime_start=start,
        datetime_complete=start + timedelta(seconds=length),
        params=values,
        distributions=distributions(spec.search_space.parameters),
        user_attrs=attrs | rows | {"config_hash": f"{number:016x}"},
        system_attrs={},
        intermediate_values=curve,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--storage", type=Path, help="where the sweep is left; default: nowhere")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.storage or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_ledger(folder, arguments.trials)
        wall, cpu = time.perf_counter(), time.process_time()
        files = write_report(Ledger.read(folder / "long"))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{arguments.trials} trials: {wall:.1f} s, of which {cpu:.1f} s of CPU")
        print(f"{'page':10}{files.page.stat().st_size / 1e6:8.2f} MB")
        print(f"{'Markdown':10}{files.markdown.stat().st_size / 1e6:8.2f} MB")
        print(f"memory    {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:8.0f} MB at most")


if __name__ == "__main__":
    main()
