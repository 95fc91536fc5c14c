"""What several test files need: one local Ray, and a finished sweep with hostile texts."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from in_process import work

from genrec.artifacts import ARTIFACTS, ArtifactStore
from genrec.data.synthetic import make_synthetic
from genrec.settings import SyntheticConfig
from sweeps.conclusion import conclude
from sweeps.finalists import note_plan, plan_finalists
from sweeps.ledger import FinalistQueue, Ledger
from sweeps.spec_file import load_spec


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A local Ray with 4 logical CPUs, no dashboard, for the tests of a file that ask. It is gone after the file: where
    a process has a Ray, `sweeps run` takes that one, and other files test what it does without."""
    from sweeps.ray_cluster import start_ray

    with start_ray("local", num_cpus=4):
        yield


@pytest.fixture
def nothing_left(ray_cluster: None) -> Callable[[], None]:
    """Call it: fails unless within 30 s no actor runs and no placement group is held."""

    def check() -> None:
        import ray
        from ray.util import placement_group_table

        shared = "_AutoscalingCoordinatorActor"  # Ray's own: one a cluster, holds nothing
        deadline = time.monotonic() + 30
        while True:
            alive = [a["ActorClassName"] for a in ray._private.state.actors().values() if a["State"] != "DEAD"]
            actors = [name for name in alive if name != shared]
            groups = [g["bundles"] for g in placement_group_table().values() if g["state"] != "REMOVED"]
            if not actors and not groups:
                return
            assert time.monotonic() < deadline, f"left behind: actors {actors}, placement groups {groups}"
            time.sleep(0.2)

    return check


HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>",
    "<svg/onload=alert(4)>",
    "<a href='javascript:alert(5)'>click</a>",
    '<a href="https://evil.example/">click</a>',
    '" onmouseover="alert(6)',
    "' autofocus onfocus='alert(7)",
    "<iframe src=https://evil.example></iframe>",
    "<style>@import 'https://evil.example/x.css'</style>",
    "<!--<script>-->",
    "]]><script>alert(8)</script>",
    "{{ 7*7 }}{% raw %}",
    "${alert(9)}`",
    "javascript:alert(10)",
    '=HYPERLINK("https://evil.example")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1+1)",
    '\n=HYPERLINK("https://evil.example")',
    "\u2003=1+1",
    "\x0b@SUM(1)",
    "\uff1d1+1",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202egnp.exe",
    "![x](https://evil.example/x.png)",
    "[click](javascript:alert(11))",
    "| a | b |\n|---|---|",
    "https://evil.example and www.evil.example @everyone",
)


@pytest.fixture(scope="session")
def hostile() -> tuple[str, ...]:
    """Texts that mean something to HTML, JavaScript, Plotly, Jinja, Markdown, spreadsheets or terminals."""
    return HOSTILE


@pytest.fixture(scope="session")
def hostile_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep of three trials, one of which failed, over a catalogue of hostile titles."""
    storage = tmp_path_factory.mktemp("hostile")
    data = make_synthetic(SyntheticConfig(num_users=80, num_items=40, num_categories=5))
    with open(storage / "items.jsonl", "w") as file:
        for number in range(40):
            row = {"item_id": number + 1, "asin": f"I{number}", "title": HOSTILE[number % len(HOSTILE)]}
            file.write(json.dumps(row | {"categories": [[data.catalogue.texts[number]]]}) + "\n")
    lines = [" ".join(map(str, [user + 1, *(data.history(user) + 1)])) for user in range(len(data))]
    (storage / "sequential_data.txt").write_text("\n".join(lines) + "\n")
    overrides = {
        "name": "hostile",
        "space": {"train.learning_rate": {"type": "grid", "values": [3e-3, 1e-2, 1e-4]}},
        "budget.trials": 3,
        "finalists.top_k": 2,
    }
    settings = {"dataset.source": "sequential", "dataset.dataset_folder": str(storage), "tokenizer.kind": "rkmeans"}
    spec = load_spec(Path(__file__).with_name("tiny.yaml"), overrides, settings | {"train.epochs": 2})
    threads, handlers = torch.get_num_threads(), logging.getLogger().handlers[:]
    torch.set_num_threads(1)
    store = ArtifactStore(storage / ARTIFACTS)
    with Ledger.create(storage / "hostile", spec) as ledger:
        work(ledger, store, {"trial-0002": "".join(HOSTILE)})
        plans = plan_finalists(spec, [(r.number, ledger.config_of(r.number)) for r in ledger.select(2)])
        note_plan(ledger, plans)
        work(FinalistQueue(ledger, plans), store)
        conclude(ledger, store, lambda line: None)
    torch.set_num_threads(threads)
    logging.getLogger().handlers[:] = handlers
    return storage / "hostile"
