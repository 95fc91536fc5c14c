"""The real trial in worker groups of two on a real Ray: beside another one, killed, paused. Always the same numbers.

One run of two trials at once serves most tests of the module.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from genrec.artifacts import ArtifactStore
from genrec.checkpoint import generations, load_checkpoint
from genrec.config import RunConfig, validate_config, with_values
from genrec.pipeline import run_pipeline, stage_keys
from sweeps.ray_tune import TrialFunction, run_queue
from sweeps.records import Task
from sweeps.resources import Resources
from sweeps.spec_file import load_spec
from sweeps.stopping import Promotion

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAIR = Resources(workers=2, cpus_per_worker=1)
USERS = 81  # an odd number: two workers cannot have equally many
SETTINGS = {"dataset.synthetic.num_users": USERS, "tokenizer.kind": "rkmeans", "tiger.dropout": 0.0}
"without dropout, whose masks differ from rank to rank, so that one worker and two can be compared"


def config_of(**values: Any) -> RunConfig:
    base = load_spec(Path(__file__).with_name("tiny.yaml")).base_config()
    given = {key.replace("__", "."): value for key, value in values.items()}
    return validate_config(with_values(base.to_dict(), SETTINGS | given))


def payload_of(config: RunConfig, **further: Any) -> dict[str, Any]:
    return {"config": config.to_dict(), "seed": config.seed, "kind": "trial", **further}


@dataclass
class Records:
    """A queue in memory that keeps the last row of every epoch."""

    payloads: list[dict[str, Any]]
    rows: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    finished: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    given: int = 0

    def next(self) -> Task | None:
        if self.given == len(self.payloads):
            return None
        self.given += 1
        return Task(f"trial-{self.given}", self.payloads[self.given - 1])

    def report(self, task_id: str, metrics: dict[str, Any]) -> None:
        self.rows.setdefault(task_id, {})[metrics["epoch"]] = metrics

    def finish(self, task_id: str, status: str, result: dict[str, Any]) -> None:
        self.finished[task_id] = status, result

    def on_event(self, event: str, task_id: str, data: dict[str, Any]) -> None:
        if event == "started":
            self.started.append(task_id)

    def curve(self, task_id: str) -> list[dict[str, Any]]:
        """All that does not depend on the machine's speed."""
        rows = self.rows[task_id]
        return [{k: v for k, v in rows[e].items() if k != "targets_per_second"} for e in sorted(rows)]


def trial_in(root: Path) -> TrialFunction:
    """The real trial with a store of its own. With "waits" in the payload its second worker stops in the middle of the
    second epoch, after it has written its process id there, until it is killed."""

    def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None]) -> dict[str, Any]:
        from sweeps.trial import run_trial

        def watched(argument: dict[str, Any], report: Callable[..., None]) -> None:
            import os
            import time
            from pathlib import Path

            from genrec.checkpoint import generations
            from genrec.pipeline import train_stage
            from genrec.ranks import rank_and_world
            from genrec.trainers.stepping import Stepper

            waits, take, checkpoints = Path(payload["waits"]), Stepper.take, Path(argument["folder"]) / "checkpoints"
            steps = []

            def take_or_wait(self: Stepper, step: Any, rate: float) -> Any:
                if rank_and_world()[0] == 1 and not waits.exists() and generations(checkpoints):
                    steps.append(step)
                    if len(steps) == 3:
                        waits.with_suffix(".part").write_text(str(os.getpid()))
                        waits.with_suffix(".part").rename(waits)
                        time.sleep(600)
                return take(self, step, rate)

            Stepper.take = take_or_wait  # type: ignore[method-assign]
            train_stage(argument, report)

        def launch_watched(loop: Any, argument: dict[str, Any]) -> None:
            launch(watched if "waits" in payload else loop, argument)

        return run_trial(payload, report, launch_watched, store=str(Path(root) / payload["id"]))

    return trial


def run(records: Records, folder: Path, **options: Any) -> Records:
    given = {"name": "groups", "metric": "ndcg@10", "resources": PAIR, "epochs_of": lambda payload: 3}
    run_queue(records, trial_in(folder), folder=folder, on_event=records.on_event, **(given | options))
    return records


def model_of(folder: Path, task_id: str, config: RunConfig) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a trained model, and the facts of its last checkpoint."""
    artifact = ArtifactStore(folder / task_id).path("tiger", stage_keys(config)["tiger"])
    _, facts = load_checkpoint(generations(artifact / "checkpoints")[-1])
    [tensors] = (artifact / "model").glob("*.safetensors")  # its name tells whether the model was saved once or twice
    return tensors.read_bytes(), facts


def kill_when_it_waits(waits: Path, killed: list[int]) -> None:
    while not waits.exists():
        time.sleep(0.05)
    killed.append(int(waits.read_text()))
    os.kill(killed[0], signal.SIGKILL)


@pytest.fixture(scope="module")
def pair(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Records, Path, list[int]]:
    """Two trials with one config, two workers each, at the same time; of the second's workers one is killed."""
    folder, killed = tmp_path_factory.mktemp("pair"), list[int]()
    waits = folder / "waits"
    killer = threading.Thread(target=kill_when_it_waits, args=(waits, killed), daemon=True)
    killer.start()
    config = config_of()
    return run(Records([payload_of(config), payload_of(config, waits=str(waits))]), folder), folder, killed


def test_trial_of_which_one_worker_was_killed_ends_with_the_bits_of_the_undisturbed_one(
    pair: tuple[Records, Path, list[int]],
) -> None:
    records, folder, killed = pair
    assert len(killed) == 1
    assert {status for status, _ in records.finished.values()} == {"completed"}
    assert records.started.count("trial-2") == 1, "the same trial goes on; Tune has not seen the death"
    (undisturbed, facts), (disturbed, facts_after_kill) = (model_of(folder, f"trial-{n}", config_of()) for n in (1, 2))
    assert disturbed == undisturbed
    assert facts["world"] == facts_after_kill["world"] == 2
    assert records.curve("trial-1") == records.curve("trial-2")
    assert all(result["trained"][-1] == "tiger" for _, result in records.finished.values())
    assert [row["epoch"] for row in records.curve("trial-1")] == [1, 2, 3]


def test_two_workers_have_the_curve_of_one_and_count_every_user_once(pair: tuple[Records, Path, list[int]]) -> None:
    records, folder, _ = pair
    alone: list[dict[str, Any]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_pipeline(config_of(), ArtifactStore(folder / "alone"), report=alone.append)
    finally:
        torch.set_num_threads(threads)
    together = records.curve("trial-1")
    assert [row["loss"] for row in together] == pytest.approx([row["loss"] for row in alone], rel=1e-5)
    assert [row["validation_loss"] for row in together] == pytest.approx(
        [row["validation_loss"] for row in alone], rel=1e-5
    )
    assert [row["users"] for row in together] == [row["users"] for row in alone] == [USERS] * 3


def test_groups_that_ran_at_once_leave_nothing(
    pair: tuple[Records, Path, list[int]], nothing_left: Callable[[], None]
) -> None:
    import ray

    nothing_left()
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "CPUs are still reserved"
        time.sleep(0.2)


def test_promoted_group_has_the_curve_of_the_trial_that_was_never_paused(
    pair: tuple[Records, Path, list[int]], nothing_left: Callable[[], None], tmp_path: Path
) -> None:
    """Of two trials both pause after an epoch and the one that learns is promoted; the other's rate is next to 0."""
    payloads = [payload_of(config_of(train__learning_rate=1e-9)), payload_of(config_of())]
    rule = Promotion(grace=1, factor=4, longest=3, mode="min")
    records = run(Records(payloads), tmp_path, metric="loss", rule=rule)
    assert [records.finished[f"trial-{n}"][0] for n in (1, 2)] == ["stopped", "completed"]
    assert records.started.count("trial-2") == 2, "paused once"
    undisturbed, folder, _ = pair
    assert records.curve("trial-2") == undisturbed.curve("trial-1")
    assert model_of(tmp_path, "trial-2", config_of())[0] == model_of(folder, "trial-1", config_of())[0]
    nothing_left()
