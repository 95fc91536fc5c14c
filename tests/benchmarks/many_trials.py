"""Many trivial trials over several nodes: what a trial costs the driver, the ledger and the head, and what gives first.

    python tests/benchmarks/many_trials.py [--trials 500] [--nodes 2] [--cpus 2] [--for 5000 64 30]

The nodes are raylets of their own on this machine, so that scheduling is real and the hardware is shared. A trial
makes one report and returns. Then the ledger is opened again, as `sweeps resume` does. `--for TRIALS SLOTS MINUTES`
turns what was measured into what a sweep of so many trials, so many at once, of so many minutes each would need.
docs/en/scale.md has the formulas; names there are those printed here.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from sweeps.ledger import Ledger
from sweeps.ray_cluster import start_ray
from sweeps.ray_token import require_token
from sweeps.ray_tune import run_queue
from sweeps.spec_file import load_spec

WARM = 50
"trials after which memory is taken as that of a driver at work"
OBJECT_STORE = 2**27
SCRATCH = ("logs", "ray")
SPEC = """
name: many
space: {{train.learning_rate: {{type: float, low: 1e-4, high: 1e-1, log: true}}}}
sampler: {{type: random}}
budget: {{trials: {trials}}}
"""


def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None]) -> dict[str, Any]:
    """As little as a trial can be."""
    report({"epoch": 1, "ndcg@10": payload["config"]["train"]["learning_rate"]})
    return {}


def resident(pid: int | str = "self") -> float:
    """MB that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def head_process(cluster: Cluster) -> int:
    """Process id of the cluster's table of nodes, actors and jobs."""
    [server] = cluster.head_node.all_processes["gcs_server"]
    return int(server.process.pid)


def size_of_ledger(folder: Path) -> float:
    """MB of a sweep's record: all but logs and Ray's scratch."""
    kept = [entry for entry in folder.iterdir() if entry.name not in SCRATCH]
    files = [path for entry in kept for path in (entry, *entry.rglob("*")) if path.is_file()]
    return sum(path.stat().st_size for path in files) / 1e6


class Watch:
    """Looks at driver, head and ledger when trials end. Gets `run_queue`'s events."""

    def __init__(self, head: int, folder: Path):
        self.head, self.folder, self.ended = head, folder, 0
        self.warm: dict[str, float] = {}

    def now(self) -> dict[str, float]:
        clock = {"cpu": time.process_time()}
        held = {"driver": resident(), "head": resident(self.head), "ledger": size_of_ledger(self.folder)}
        return clock | held | {"trials": self.ended}

    def on_event(self, event: str, task_id: str, data: dict[str, Any]) -> None:
        if event == "finished":
            self.ended += 1
            if self.ended == WARM or not self.warm:
                self.warm = self.now()


def measure(folder: Path, trials: int, nodes: int, cpus: int) -> dict[str, float]:
    """The constants that docs/en/scale.md names."""
    file = folder / "many.yaml"
    file.write_text(SPEC.format(trials=trials))
    require_token()
    node = {"num_cpus": cpus, "object_store_memory": OBJECT_STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        with start_ray(cluster.address), Ledger.create(folder / "many", load_spec(file)) as ledger:
            for _ in range(nodes - 1):
                cluster.add_node(**node)
            watch, start = Watch(head_process(cluster), ledger.folder), time.perf_counter()
            run_queue(ledger, trial, name="many", folder=ledger.folder, metric="ndcg@10", on_event=watch.on_event)
            seconds, end = time.perf_counter() - start, watch.now()
            assert ledger.counts()["completed"] == trials, ledger.counts()
            used = {record.node for record in ledger.trials()}
            print(f"{trials} trials on {len(ray.nodes())} nodes ({', '.join(map(str, used))})")
    finally:
        cluster.shutdown()
    return rates(watch.warm, end) | {"trials_per_minute": 60 * trials / seconds} | opened(folder / "many", trials)


def rates(warm: Mapping[str, float], end: Mapping[str, float]) -> dict[str, float]:
    """A trial's share of what grew from the warm driver to the end."""
    count = max(1.0, end["trials"] - warm["trials"])
    return {
        "driver_mb_warm": warm["driver"],
        "driver_mb_end": end["driver"],
        "driver_kb_per_trial": 1e3 * (end["driver"] - warm["driver"]) / count,
        "driver_cpu_s_per_trial": (end["cpu"] - warm["cpu"]) / count,
        "head_mb_end": end["head"],
        "head_kb_per_trial": 1e3 * (end["head"] - warm["head"]) / count,
        "ledger_kb_per_trial": 1e3 * (end["ledger"] - warm["ledger"]) / count,
    }


def opened(folder: Path, trials: int) -> dict[str, float]:
    """Seconds to open the ledger for reading and for driving on."""
    found = {}
    for name, way in (("read", Ledger.read), ("resume", Ledger.open)):
        start = time.perf_counter()
        way(folder).close()
        found[f"{name}_s"] = time.perf_counter() - start
    return found | {"resume_ms_per_trial": 1e3 * found["resume_s"] / trials}


def needs(found: Mapping[str, float], trials: float, slots: float, minutes: float) -> dict[str, float]:
    """What a sweep of `trials` trials of `minutes` minutes, `slots` at once, asks of each part."""
    per_minute = slots / minutes
    return {
        "trials a minute": per_minute,
        "share of the driver's core": per_minute / 60 * found["driver_cpu_s_per_trial"],
        "driver's memory, MB": found["driver_mb_warm"] + trials * found["driver_kb_per_trial"] / 1e3,
        "head's memory, MB": found["head_mb_end"] + trials * found["head_kb_per_trial"] / 1e3,
        "ledger on disk, MB": trials * found["ledger_kb_per_trial"] / 1e3,
        "resume, s": trials * found["resume_ms_per_trial"] / 1e3,
        "trials a minute at which the driver's core is full": 60 / found["driver_cpu_s_per_trial"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=2, help="of every node; a trial takes one")
    parser.add_argument("--for", type=float, nargs=3, default=(5000, 64, 30), dest="target")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), options.trials, options.nodes, options.cpus)
    for constant, value in found.items():
        print(f"{constant:24} {value:10.4g}")
    trials, slots, minutes = options.target
    print(f"a sweep of {trials:g} trials, {slots:g} at once, {minutes:g} min each:")
    for part, value in needs(found, trials, slots, minutes).items():
        print(f"  {part:52} {value:10.4g}")
    print(json.dumps({key: round(value, 5) for key, value in found.items()}))


if __name__ == "__main__":
    main()
