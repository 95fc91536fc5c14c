"""A sweep as a job of a real Ray head with dashboard and token: the ways in, joining, and what is written down."""

from __future__ import annotations

import importlib.util
import json
import threading
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeps.ledger import Ledger

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One trial of one epoch, and its re-evaluation."""
    data = yaml.safe_load((ROOT / "tests" / "sweeps" / "tiny.yaml").read_text())
    data["space"] = {"train.learning_rate": {"type": "grid", "values": [0.003]}}
    data["set"] |= {"train.epochs": 1, "tokenizer.kind": "rkmeans"}
    if importlib.util.find_spec("wandb"):
        data["set"] |= {"tracking.wandb_logging": True}
    data |= {"budget": {"trials": 1}, "finalists": {"top_k": 1, "seeds": 1}}
    path = tmp_path_factory.mktemp("file") / "tiny.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def get(head: Any, path: str, token: str) -> str:
    request = urllib.request.Request(head.dashboard + path, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


STATE = tuple(f"/api/v0/{kind}?detail=1" for kind in ("actors", "tasks", "workers", "runtime_envs", "nodes"))


@contextmanager
def watched(head: Any) -> Iterator[dict[str, str]]:
    """What anyone on the machine sees of all processes, and anyone with the token in Ray's State API, during the block:
    place -> all texts that were seen there."""
    seen: dict[str, set[str]] = defaultdict(set)
    ended = threading.Event()

    def look() -> None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has ended
                seen["/proc/*/cmdline"].add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        for path in STATE:
            seen[path].add(get(head, path, head.token))

    def keep_looking() -> None:
        while not ended.wait(0.5):
            with suppress(OSError):  # a busy head may answer late
                look()

    thread = threading.Thread(target=keep_looking)
    thread.start()
    texts: dict[str, str] = {}
    try:
        yield texts
    finally:
        ended.set()
        thread.join()
    look()
    texts |= {place: "\n".join(found) for place, found in seen.items()}


def test_a_sweep_is_submitted_followed_and_submitted_again_and_no_secret_is_written_down(
    head: Any, file: Path, tmp_path: Path
) -> None:
    token = head.token
    words = ("submit", str(file), "--address", head.dashboard, "--storage", str(tmp_path / "runs"))

    with watched(head) as seen:
        sent = head.run("sweeps.cli", *words, "--no-wait")
        assert sent.returncode == 0, sent.stderr
        assert "submitted tiny-" in sent.stderr
        joined = head.run("sweeps.cli", *words)
    assert joined.returncode == 0, joined.stdout + joined.stderr
    assert "works on tiny already; following it" in joined.stderr
    assert "tiny: finished" in joined.stdout
    again = head.run("sweeps.cli", *words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "tiny: finished" in again.stdout
    assert "started" not in again.stdout, "a finished sweep runs nothing again"
    assert [trial.status for trial in Ledger.read(tmp_path / "runs" / "tiny").trials()] == ["completed"]

    jobs = get(head, "/api/jobs/", token)
    assert len([job for job in json.loads(jobs) if job["submission_id"]]) == 2
    assert "RAY_JOB_STOP_WAIT_TIME_S" in jobs + seen["/api/v0/runtime_envs?detail=1"], "environments are seen there"
    assert " -m sweeps.cli run " in seen["/proc/*/cmdline"]
    assert "facts_of_this_node" in seen["/api/v0/tasks?detail=1"]
    printed = [sent.stderr, joined.stdout, joined.stderr, again.stdout]
    for place, text in {**seen, "/api/jobs/": jobs, "printed": "\n".join(printed)}.items():
        assert head.canary not in text, place
        assert token not in text, place
    if importlib.util.find_spec("wandb"):
        assert list(tmp_path.rglob("*.wandb")), "the files that W&B wrote are searched as well"
    session = (head.sessions / "session_latest").resolve()
    for path in [*session.rglob("*"), *tmp_path.rglob("*"), head.folder / "head.log"]:
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            assert head.canary.encode() not in content, path
            assert token.encode() not in content, path


def test_without_the_token_nobody_gets_in(head: Any, file: Path, tmp_path: Path) -> None:
    for token in ("", "b" * 64):
        with pytest.raises(urllib.error.HTTPError, match="401|403"):
            get(head, "/api/jobs/", token)
    words = ("--address", head.dashboard, "--storage", str(tmp_path))
    refused = head.with_token("b" * 64).run("sweeps.cli", "submit", str(file), *words)
    assert refused.returncode == 4
    assert f"the Ray at {head.dashboard} wants another token" in refused.stderr
    assert "b" * 64 not in refused.stderr


def test_rays_own_command_runs_a_sweep_as_well(head: Any, file: Path, tmp_path: Path) -> None:
    """As the README shows it first; the sweep's file travels in the working folder."""
    words = ["--working-dir", str(file.parent), "--", "sweeps", "run", file.name, "--resume"]
    done = head.run(
        "ray.scripts.scripts", "job", "submit", "--address", head.dashboard, *words, "--storage", str(tmp_path / "runs")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert Ledger.read(tmp_path / "runs" / "tiny").state == "finished"
