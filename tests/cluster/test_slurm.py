"""The Slurm script as it runs, on stand-ins of Slurm's commands that start real Ray nodes here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "slurm.sh"

STAND_INS = {
    # runs the command here, whatever node it was meant for
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": 'echo "$@" >> "$RECORD/scontrol"\n[[ $1 == show ]] && printf "node1\\nnode2\\n"\nexit 0\n',
    # joins the Ray that the script has started, counts its nodes, and goes on until it is told to stop
    "sweeps": f"""exec {sys.executable} - "$@" <<'END'
import os, signal, sys
import ray
from pathlib import Path
from sweeps.ray_cluster import start_ray

record, words = Path(os.environ["RECORD"]), sys.argv[1:]
with start_ray(words[words.index("--address") + 1]):
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    nodes = sum(node["Alive"] for node in ray.nodes())
    (record / "words.new").write_text(f"{{nodes}} nodes: " + " ".join(words))
    (record / "words.new").rename(record / "words")
    signal.pause()
END
""",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    for name, text in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{text}")
        path.chmod(0o755)
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RECORD": str(tmp_path),
        "TMPDIR": f"/tmp/sl{os.getpid()}",  # short: names of sockets are made from it
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
        "SWEEPS_READY_SECONDS": "240",
    }


def test_without_a_sweep_it_says_how_it_is_called(environment: dict[str, str]) -> None:
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: sbatch" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_starts_the_nodes_runs_the_sweep_and_at_the_time_limit_stops_it_and_queues_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    sessions = Path(environment["TMPDIR"])
    sessions.mkdir(mode=0o700)
    with open(tmp_path / "log", "wb") as log:
        job = subprocess.Popen(
            [SCRIPT, "sweep.yaml", "--storage", "/shared"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    deadline = time.monotonic() + 600
    while not (tmp_path / "words").exists():
        assert job.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.5)
    words = (tmp_path / "words").read_text()
    assert words.startswith("2 nodes: run sweep.yaml --storage /shared --resume --address ")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=200) == 143, (tmp_path / "log").read_text()
    assert f"requeue {os.getpid()}" in (tmp_path / "scontrol").read_text()
    assert group_members(job.pid) == []
    assert list(sessions.iterdir()) == []
    sessions.rmdir()


def group_members(session: int) -> list[str]:
    """Command lines of the processes of a session that still live, a little time granted."""
    for _ in range(60):
        done = subprocess.run(["ps", "-o", "args=", "-s", str(session)], capture_output=True, text=True, check=False)
        if not done.stdout.strip():
            return []
        time.sleep(0.5)
    return done.stdout.splitlines()
