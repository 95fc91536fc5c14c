"""The Slurm script as it runs, on stand-ins of Slurm's commands: with real Ray nodes here, and with made-up ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "slurm.sh"

STAND_INS = {
    # runs the command here, whatever node it was meant for
    "srun": 'echo "$$ $@" | head -n1 >> "$RECORD/steps"\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
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

MADE_UP = {
    "hostname": "[[ $1 == --ip-address ]] && echo 127.0.1.1 ::1 || echo fd00::2 192.0.2.7 198.51.100.3\n",
    # a node that is up until it is told to stop
    "ray": """
if [[ $1 == status ]]; then
  printf 'Active:\n'; (cd "$RECORD" && ls up-* 2>/dev/null | sed 's/.*/ 1 node_&/'); printf 'Pending:\n'
else
  echo "$@" > "$RECORD/started.$$"
  mv "$RECORD/started.$$" "$RECORD/up-$$"
  trap 'mv "$RECORD/up-$$" "$RECORD/down-$$"; exit 0' TERM
  while :; do sleep 0.05; done
fi
""",
    # a sweep that takes its time to stop, and says how many nodes it had all along
    "sweeps": """
trap 'stopping=true' TERM
touch "$RECORD/running"
until [[ -n $stopping ]]; do sleep 0.05; done
for _ in {1..20}; do sleep 0.05; ls "$RECORD" | grep -c '^up-'; done | sort -n | sed -n 1p > "$RECORD/nodes"
exit "$CODE"
""",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    install(STAND_INS, tmp_path / "bin")
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


def install(programs: dict[str, str], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (folder / name).chmod(0o755)


def wait_for(path: Path, job: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.fixture
def made_up(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The stand-ins, and nodes and a sweep that are none. A temporary folder of too long a name for Ray."""
    install(MADE_UP, tmp_path / "bin")
    long = tmp_path / "a-folder-for-temporary-files"
    long.mkdir()
    return environment | {"TMPDIR": str(long), "SLURM_CPUS_PER_TASK": "3", "CODE": "143"}


@pytest.fixture
def job(made_up: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """The script, with its sweep running."""
    made_up |= getattr(request, "param", {})
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([SCRIPT, "s.yaml"], env=made_up, stdout=log, stderr=log, start_new_session=True)
    wait_for(tmp_path / "running", process, tmp_path / "log", 60)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_nodes_get_the_jobs_cpus_an_address_that_others_reach_and_a_short_folder(
    job: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    steps = (tmp_path / "steps").read_text().splitlines()
    assert len(steps) == 3
    for line in steps:
        assert line.split()[1:5] == ["--overlap", "--nodes=1", "--ntasks=1", "--cpus-per-task=3"]
    head, other = sorted((path.read_text() for path in tmp_path.glob("up-*")), key=lambda text: "--head" not in text)
    assert "--node-ip-address=192.0.2.7" in head
    assert f"--address=192.0.2.7:{20000 + os.getpid() % 10000}" in other
    folders = [text.partition("--temp-dir=")[2].split()[0] for text in (head, other)]
    assert all(folder.startswith("/tmp/ray-") and Path(folder).parent.is_dir() for folder in folders)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 143
    assert not any(Path(folder).parent.exists() for folder in folders)


def test_the_nodes_outlive_a_sweep_that_is_stopped_with_them(job: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """`scancel` and a preemption send SIGTERM to the script and to every step."""
    for line in (tmp_path / "steps").read_text().splitlines()[1:]:
        os.kill(int(line.split()[0]), signal.SIGTERM)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 143
    assert (tmp_path / "nodes").read_text().strip() == "2"
    assert len(list(tmp_path.glob("down-*"))) == 2
    assert "requeue" not in (tmp_path / "scontrol").read_text()


@pytest.mark.parametrize(
    ("job", "again"), [({"CODE": code}, code != "4") for code in ("143", "130", "4")], indirect=["job"]
)
def test_at_the_time_limit_what_was_stopped_resumably_is_queued_again(
    job: subprocess.Popen[bytes], again: bool, tmp_path: Path
) -> None:
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) in (143, 130, 4)
    assert ("requeue" in (tmp_path / "scontrol").read_text()) is again


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
    wait_for(tmp_path / "words", job, tmp_path / "log", 600)
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
