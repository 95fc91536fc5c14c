"""The product as its user meets it: the commands, in processes of their own, on real Ray; also killed for real.

One undisturbed sweep serves all tests of the module.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from genrec.artifacts import CHECKPOINTS, ArtifactStore
from genrec.checkpoint import generations
from genrec.object_store import ObjectStore
from genrec.pipeline import stage_keys
from sweeps.folders import has_sweep, sweep_folder
from sweeps.ledger import Ledger
from sweeps.records import TrialRecord

SPEC = Path(__file__).with_name("tiny.yaml")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]


def command(*words: str, timeout: float = 800) -> subprocess.CompletedProcess[str]:
    """`sweeps` or `genrec` with these words; its output as text."""
    program, *rest = words
    return subprocess.run(
        [sys.executable, "-m", f"{program}.cli", *rest], capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a sweep that ran to its end."""
    storage = tmp_path_factory.mktemp("undisturbed") / "its storage"
    done = command("sweeps", "run", str(SPEC), "--storage", str(storage))
    assert done.returncode == 0, done.stderr
    (storage / "run.out").write_text(done.stdout)
    (storage / "run.err").write_text(done.stderr)
    return storage


def record(storage: Path) -> tuple[dict[int, Any], dict[Any, Any]]:
    """All that must not depend on interruptions: trials with their epochs, and the finalists' test metrics."""
    ledger = Ledger.read(storage / "tiny")
    trials = {
        trial.number: (
            trial.status,
            trial.params,
            trial.value,
            [{name: value for name, value in row.items() if name != "targets_per_second"} for row in trial.epochs],
        )
        for trial in ledger.trials()
    }
    return trials, {(run.finalist, run.seed): run.result["test"] for run in ledger.finalist_runs()}


def test_a_sweep_ends_with_leaderboard_finalists_and_next_commands(undisturbed: Path) -> None:
    text = (undisturbed / "run.out").read_text()
    for part in ("tiny: finished", "best validation ndcg@10 first", "most_popular (fit: train)", "oracle", "next:"):
        assert part in text
    assert (undisturbed / "run.err").read_text().startswith("starting Ray on this machine\n")


def test_status_as_json_keeps_its_contract(undisturbed: Path) -> None:
    done = command("sweeps", "status", "tiny", "--storage", str(undisturbed), "--format", "json")
    status = json.loads(done.stdout)
    assert status["name"] == "tiny"
    assert status["state"] == "finished"
    assert status["trials"] == {
        "waiting": 0,
        "running": 0,
        "stopped": 0,
        "completed": 6,
        "failed": 0,
        "infeasible": 0,
    }
    assert status["best"].keys() >= {"trial", "value", "config"}
    assert [row["trial"] for row in status["finalists"]].count("base") == 1
    for row in status["finalists"]:
        assert len(row["seeds"]) == 2
        assert row["test"]["recall@10"].keys() == {"mean", "std"}
    assert status["baselines"]["most_popular"]["fit"] == "train"
    assert 0 < status["oracle"]["recall@10"] <= 1
    assert status["reused_stages"] > 0


def test_every_tokenizer_is_trained_once_although_trials_run_at_the_same_time(undisturbed: Path) -> None:
    ledger = Ledger.read(undisturbed / "tiny")
    trained = [trial for trial in ledger.trials() if "tokenizer" in trial.trained]
    assert len(trained) == 2
    assert {trial.params["tokenizer.kind"] for trial in trained} == {"rkmeans", "rqvae"}


def test_the_test_split_is_opened_by_the_finalists_only(undisturbed: Path) -> None:
    ledger = Ledger.read(undisturbed / "tiny")
    assert ledger.fact("test_opened")
    assert all("test" not in name for trial in ledger.trials() for row in trial.epochs for name in row)


def test_the_printed_next_commands_work(undisturbed: Path) -> None:
    lines = (undisturbed / "run.out").read_text().split("next:\n")[1].splitlines()
    for line in lines:
        done = command(*shlex.split(line))
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_best_yaml_is_the_exported_bundle(undisturbed: Path) -> None:
    """Training `best.yaml` finds the winner's artifact and makes the same bundle."""
    best = undisturbed / "tiny" / "best.yaml"
    store = str(undisturbed / ".artifacts")
    done = command("genrec", "train", str(best), "--store", store, "--out", str(undisturbed / "again"))
    assert "tiger" in done.stderr
    assert "reused" in done.stderr
    for name in ("model/tensors.safetensors", "items.jsonl"):
        assert (undisturbed / "again" / name).read_bytes() == (undisturbed / "tiny" / "bundle" / name).read_bytes()


def test_running_an_existing_name_is_refused_and_resuming_it_has_nothing_to_do(undisturbed: Path) -> None:
    refused = command("sweeps", "run", str(SPEC), "--storage", str(undisturbed))
    assert refused.returncode == 2
    assert "sweeps resume tiny" in refused.stderr
    done = command("sweeps", "resume", "tiny", "--storage", str(undisturbed))
    assert done.returncode == 0
    assert "nothing to do" in done.stdout


def test_a_finished_sweep_is_reevaluated_and_compared_with_a_config(undisturbed: Path, tmp_path: Path) -> None:
    storage = tmp_path / "copy"
    shutil.copytree(undisturbed, storage)
    words = ("--storage", str(storage))
    done = command("sweeps", "reevaluate", "tiny", "--top-k", "2", "--seeds", "1", *words)
    assert done.returncode == 0, done.stderr
    assert "as they are" in done.stderr
    status = json.loads(command("sweeps", "status", "tiny", *words, "--format", "json").stdout)
    assert status["state"] == "finished"
    assert len(status["finalists"]) == 3
    assert len(status["test_readings"]) == 2

    values = yaml.safe_load((storage / "tiny" / "best.yaml").read_text())
    values["tiger"]["n_layers"] = 4
    (tmp_path / "deeper.yaml").write_text(yaml.safe_dump(values))
    deeper = str(tmp_path / "deeper.yaml")
    done = command("sweeps", "compare", "tiny", deeper, "--seeds", "1", *words, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("was trained before") == 1
    found = json.loads(done.stdout)
    assert found["differing"] == {"tiger.n_layers": [2, 4]}
    assert "test ndcg@10" in found["comparison"]["verdict"]


def test_a_finished_sweep_is_widened_and_goes_on_from_what_it_has(undisturbed: Path, tmp_path: Path) -> None:
    storage, edited = tmp_path / "copy", tmp_path / "edited.yaml"
    shutil.copytree(undisturbed, storage)
    text = SPEC.read_text().replace("low: 1e-3", "low: 1e-4").replace("trials: 6", "trials: 7")
    edited.write_text(text)
    before, measured = record(undisturbed)
    done = command("sweeps", "resume", "tiny", "--file", str(edited), "--storage", str(storage))
    assert done.returncode == 0, done.stderr
    assert "budget.trials: 6 -> 7" in done.stdout
    after, remeasured = record(storage)
    assert list(after) == list(range(7))
    assert {number: after[number] for number in before} == before
    assert measured.items() <= remeasured.items()
    status = json.loads(command("sweeps", "status", "tiny", "--storage", str(storage), "--format", "json").stdout)
    assert status["state"] == "finished"
    assert status["revisions"][0]["difference"].keys() == {"space.train.learning_rate", "budget.trials"}
    assert [session["command"].split()[1] for session in status["sessions"]] == ["run", "resume"]
    assert len({session["data"] for session in status["sessions"]}) == 1


def start(folder: Path, spec: Path = SPEC, storage: str | None = None) -> subprocess.Popen[bytes]:
    """A driver in a session of its own. `folder`: where its output goes, and its storage if that is no other."""
    log = open(folder / "killed.log", "ab")  # noqa: SIM115 - closed with the process
    words = [sys.executable, "-m", "sweeps.cli", "run", str(spec), "--storage", storage or str(folder), "--resume"]
    return subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)


def read(storage: str | Path) -> Ledger:
    return Ledger.read(sweep_folder("tiny", storage))


def wait_for_trials(storage: str | Path, driver: subprocess.Popen[bytes], count: int) -> None:
    """Until `count` trials have ended."""
    wait_for(storage, driver, lambda trials: sum(trial.status == "completed" for trial in trials) >= count)


def wait_for(
    storage: str | Path, driver: subprocess.Popen[bytes], reached: Callable[[list[TrialRecord]], bool]
) -> None:
    """Until the trials in the ledger have come that far."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and driver.poll() is None:
        if has_sweep("tiny", storage) and reached(read(storage).trials()):
            return
        time.sleep(0.1)
    raise AssertionError(f"the trials of {storage} did not come that far; the driver: {driver.poll()}")


def test_a_driver_killed_at_a_random_moment_loses_nothing_and_repeats_nothing(
    undisturbed: Path, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    driver = start(tmp_path)
    wait_for_trials(tmp_path, driver, rng.randrange(1, 4))
    time.sleep(rng.random() * 2)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    finished = {t.number: t.finished for t in Ledger.read(tmp_path / "tiny").trials() if t.status == "completed"}
    assert finished
    done = command("sweeps", "resume", "tiny", "--storage", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert record(tmp_path) == record(undisturbed)
    after = {t.number: t.finished for t in Ledger.read(tmp_path / "tiny").trials()}
    assert {number: after[number] for number in finished} == finished


@pytest.mark.timeout(900)
def test_a_killed_promotion_goes_on_with_the_same_rungs_and_trains_no_epoch_again(tmp_path: Path) -> None:
    """Every trial pauses at epochs 1 and 2; the paused ones are no work that has to be done again."""
    text = SPEC.read_text().replace("seeds: 2", "seeds: 1").replace("budget: {trials: 6}", "budget: {trials: 5}")
    spec = tmp_path / "tiny.yaml"
    spec.write_text(f"{text}scheduler: {{type: promote, grace_epochs: 1, reduction_factor: 2}}\n")
    driver = start(tmp_path, spec)
    wait_for(tmp_path, driver, lambda trials: any(trial.status == "waiting" for trial in trials))
    time.sleep(random.random() * 2)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = {t.number: t for t in Ledger.read(tmp_path / "tiny").trials()}
    done = command("sweeps", "resume", "tiny", "--storage", str(tmp_path), timeout=500)
    assert done.returncode == 0, done.stderr
    after = {t.number: t for t in Ledger.read(tmp_path / "tiny").trials()}
    assert len(after) == 5
    for number, trial in before.items():
        if trial.status in ("stopped", "completed"):
            assert after[number].finished == trial.finished
        assert after[number].epochs[: len(trial.epochs)] == trial.epochs, (
            "an epoch that is trained again differs in speed"
        )
    assert {len(trial.epochs) for trial in after.values()} <= {1, 2, 3}
    assert all("not promoted at epoch" in str(t.reason) for t in after.values() if t.status == "stopped")
    rungs = [{t.number: t.epochs[at]["ndcg@10"] for t in after.values() if len(t.epochs) > at} for at in (0, 1)]
    assert len(rungs[0]) == 5
    best = sorted(rungs[0], key=lambda number: -rungs[0][number])
    assert set(best[:2]) <= set(rungs[1]), "the better half of all has been promoted, whoever was first"
    top = max(rungs[1], key=lambda number: rungs[1][number])
    assert after[top].status == "completed"


def test_a_terminated_driver_leaves_143_and_its_running_trials_save(tmp_path: Path) -> None:
    """No checkpoint is due before the end: what is not saved at the stop would have to be trained again."""
    text = SPEC.read_text().replace("train.epochs: 3", "train.epochs: 200").replace("trials: 6", "trials: 1")
    text = text.replace("checkpoint_interval: 0", "checkpoint_interval: 1000").replace("[rkmeans, rqvae]", "[rkmeans]")
    spec = tmp_path / "tiny.yaml"
    spec.write_text(text.replace("seeds: 2", "seeds: 1"))
    driver = start(tmp_path, spec)
    wait_for(tmp_path, driver, lambda trials: any(len(trial.epochs) > 2 for trial in trials))
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=60) == 143
    assert "sweeps resume tiny" in (tmp_path / "killed.log").read_text()
    ledger = Ledger.read(tmp_path / "tiny")
    [trial] = ledger.trials()
    assert trial.status == "running"
    key = stage_keys(ledger.config_of(0))["tiger"]
    saved = generations(ArtifactStore(tmp_path / ".artifacts").part("tiger", key) / CHECKPOINTS)
    assert [int(path.name) >= len(trial.epochs) for path in saved] == [True]
    again = start(tmp_path, spec)
    wait_for(tmp_path, again, lambda trials: len(trials[0].epochs) > len(trial.epochs) + 1)
    again.send_signal(signal.SIGTERM)
    assert again.wait(timeout=60) == 143
    rows = Ledger.read(tmp_path / "tiny").trials()[0].epochs
    assert rows[: len(trial.epochs)] == trial.epochs, "an epoch that is trained again differs in speed"


def test_a_sweep_in_an_object_store_goes_on_on_another_machine_and_comes_to_the_same_winner(
    undisturbed: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver is killed, and resumed with an empty folder in place of the one that the first had worked in."""
    driver = start(tmp_path, storage=s3)
    wait_for_trials(s3, driver, 1)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    finished = {t.number: t.finished for t in read(s3).trials() if t.status == "completed"}
    assert finished
    monkeypatch.setenv("GENREC_CACHE", str(tmp_path / "another-machine"))
    done = command("sweeps", "resume", "tiny", "--storage", s3)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("GENREC_CACHE", str(tmp_path / "a-third"))
    folder = sweep_folder("tiny", s3)
    assert record(folder.parent) == record(undisturbed)
    after = {t.number: t.finished for t in read(s3).trials()}
    assert {number: after[number] for number in finished} == finished
    winner = (undisturbed / "tiny" / "best.yaml").read_text(), (folder / "best.yaml").read_text()
    assert winner[0] == winner[1]
    weights = [path / "bundle" / "model" / "tensors.safetensors" for path in (undisturbed / "tiny", folder)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    store = ObjectStore(s3)
    assert {f"tiny/logs/trial-{number:04d}.log" for number in after} <= set(store.names("tiny/logs/"))
    assert [name for name in store.names() if name.endswith("/claim")] == []
    evaluate = next(line for line in done.stdout.splitlines() if "genrec evaluate" in line)
    assert f"--store {s3}/.artifacts" in evaluate
    again = command(*shlex.split(evaluate))
    assert again.returncode == 0, again.stderr
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    for name in store.names():
        found = store.read(name)
        assert found is None or secret not in found.data, name
    local = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in local if secret in path.read_bytes()] == []


def test_two_drivers_of_one_sweep_are_refused_by_name(tmp_path: Path) -> None:
    driver = start(tmp_path)
    wait_for_trials(tmp_path, driver, 1)
    second = command("sweeps", "resume", "tiny", "--storage", str(tmp_path))
    assert second.returncode == 2
    assert str(driver.pid) in second.stderr
    driver.send_signal(signal.SIGTERM)
    driver.wait(timeout=60)


def test_trials_with_two_workers_each_run_side_by_side_on_two_cpus(tmp_path: Path) -> None:
    """The other path: worker groups over gloo, two at once, one that has to wait for its place, and the finalist."""
    spec = tmp_path / "groups.yaml"
    text = SPEC.read_text().replace("{type: grid, values: [rkmeans, rqvae]}", "{type: choice, values: [rkmeans]}")
    text = text.replace("budget: {trials: 6}", "budget: {trials: 3}").replace("seeds: 2", "seeds: 1")
    spec.write_text(f"{text}\nresources: {{workers: 2, cpus_per_worker: 0.5, max_concurrent: 2}}\n")
    done = command("sweeps", "run", str(spec), "--storage", str(tmp_path))
    assert done.returncode == 0, done.stderr
    trials = Ledger.read(tmp_path / "tiny").trials()
    assert [trial.status for trial in trials] == ["completed"] * 3
    assert [len(trial.epochs) for trial in trials] == [3] * 3
    first, second, third = sorted(time_of_trial(tmp_path / "tiny" / "logs" / f"{trial.id}.log") for trial in trials)
    assert second[0] < first[1], "two at once"
    assert third[0] >= min(first[1], second[1]), "no more than two"


def time_of_trial(log: Path) -> tuple[str, str]:
    """When its process began and ended it, to the second."""
    said = [line for line in log.read_text().splitlines() if re.match(rf"\S+ \S+ {log.stem} (starts|completed)", line)]
    return said[0][:19], said[-1][:19]
