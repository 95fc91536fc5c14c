"""The busy share of a cluster, worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from sweeps.cluster_use import SIZES, busy_line, busy_share, note_begin, note_end, note_size, there_were
from sweeps.leaderboard import status_lines
from sweeps.ledger import Ledger
from sweeps.report.course import course_sections
from sweeps.report.document import Table
from sweeps.report.timeline import cluster
from sweeps.spec_file import load_spec
from sweeps.status import sweep_status

SPEC = """
space: {train.learning_rate: {type: grid, values: [1e-3, 2e-3]}}
resources: {workers: 2, cpus_per_worker: 1.5}
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    (tmp_path / "s.yaml").write_text(SPEC)
    with Ledger.create(tmp_path / "s", load_spec(tmp_path / "s.yaml")) as opened:
        yield opened


def test_what_was_there_is_the_sum_over_its_steps() -> None:
    """4 CPUs for 10 s, 8 for 5 s, none for 100 s, 2 for 20 s: 40 + 40 + 0 + 40."""
    sizes = [(0.0, 4.0, 0.0, 1.0), (10.0, 8.0, 1.0, 2.0), (15.0, 0.0, 0.0, 0.0), (115.0, 2.0, 0.0, 1.0)]
    assert there_were(sizes, last=135.0) == {"CPU": 120.0, "GPU": 5.0}


def test_busy_is_what_trials_held_of_what_was_there(ledger: Ledger) -> None:
    """Two trials of 2 workers x 1.5 CPUs held theirs for 20 s and 30 s: 150 CPU-seconds of 10 x 4 + 20 x 8 = 200."""
    for seconds in (20.0, 30.0):
        task = ledger.next()
        assert task is not None
        ledger.report(task.id, {"epoch": 1, "ndcg@10": 0.1})
        ledger.finish(task.id, "completed", {"duration": seconds})
    assert busy_share(ledger) == {}
    note_size(ledger, {"CPU": 4.0, "GPU": 0.0, "nodes": 1}, at=1e9)
    note_size(ledger, {"CPU": 4.0, "GPU": 0.0, "nodes": 1}, at=1e9 + 5)
    note_size(ledger, {"CPU": 8.0, "GPU": 0.0, "nodes": 2}, at=1e9 + 10)
    note_end(ledger, at=1e9 + 30)
    assert [size[0] - 1e9 for size in ledger.fact(SIZES)] == [0, 10, 30]
    assert busy_share(ledger) == {"CPU": 0.75}
    assert busy_line(ledger) in status_lines(ledger, "runs")
    assert busy_line(ledger) == "busy share of the cluster: 75% of its CPUs"
    [table] = cluster(ledger)
    assert [row[1:3] for row in table.rows] == [[1, 4.0], [2, 8.0], [0, 0.0]]


def test_no_more_is_busy_than_there_was(ledger: Ledger) -> None:
    """An elastic group counts with all workers that it may have, on a cluster that had no room for all: 3 of 2 CPUs."""
    note_size(ledger, {"CPU": 2.0, "GPU": 0.0, "nodes": 1}, at=1e9)
    task = ledger.next()
    assert task is not None
    ledger.finish(task.id, "failed", {"reason": "x", "duration": 30.0})
    note_end(ledger, at=1e9 + 30)
    assert busy_share(ledger) == {"CPU": 1.0}
    assert busy_line(ledger) == "busy share of the cluster: 100% of its CPUs"


def test_the_time_after_a_killed_driver_is_not_counted_as_idle(ledger: Ledger) -> None:
    """It had no time to note its end: the session ends with the last thing that happened in it."""
    begin = datetime.now().timestamp() - 100
    note_size(ledger, {"CPU": 4.0, "GPU": 0.0, "nodes": 1}, at=begin)
    task = ledger.next()
    assert task is not None
    ledger.finish(task.id, "failed", {"reason": "x", "duration": 50.0})
    ended = ledger.trials()[0].finished
    assert ended is not None
    note_begin(ledger)
    note_size(ledger, {"CPU": 4.0, "GPU": 0.0, "nodes": 1}, at=begin + 10_000)
    note_end(ledger, at=begin + 10_010)
    assert ledger.fact(SIZES)[1][0] == pytest.approx(ended.timestamp(), abs=0.01)
    assert busy_share(ledger)["CPU"] == pytest.approx(3 * 50 / (4 * 110), abs=0.01)


def test_restarts_and_avoided_nodes_are_in_status_and_report(ledger: Ledger) -> None:
    note_size(ledger, {"CPU": 4.0, "GPU": 0.0, "nodes": 1})
    ledger.set_fact("avoided", {"b (10.0.0.2, node 12345678)": "has torch 2.10.0, the driver 2.9.1"})
    task = ledger.next()
    assert task is not None
    ledger.report(task.id, {"epoch": 1, "ndcg@10": 0.1})
    ledger.finish(task.id, "completed", {"duration": 1.0, "restarts": ["lost with node a; started again"]})
    status = sweep_status(ledger)
    assert status["restarts"] == {"trial-0000": ["lost with node a; started again"]}
    lines = status_lines(ledger, "runs")
    assert "node b (10.0.0.2, node 12345678) is avoided: has torch 2.10.0, the driver 2.9.1" in lines
    assert "trials that were started again: trial-0000" in lines
    tables = [block for section in course_sections(ledger) for block in section.blocks if isinstance(block, Table)]
    rows = {table.caption: table.rows for table in tables}
    assert rows["Started again"] == [["trial-0000", "lost with node a; started again"]]
    assert rows["Avoided nodes"] == [["b (10.0.0.2, node 12345678)", "has torch 2.10.0, the driver 2.9.1"]]
