"""The dashboard over a ledger: it answers on loopback and changes nothing."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from in_browser import chromium, wait_until

from genrec.errors import InputError
from sweeps.dashboard import HOST, open_dashboard
from sweeps.ledger import Ledger
from sweeps.spec_file import load_spec

TINY = Path(__file__).with_name("tiny.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Ledger.create(tmp_path / "new", load_spec(TINY, {"name": "new"})) as ledger:
        task = ledger.next()
        assert task is not None
        ledger.report(task.id, {"epoch": 1, "ndcg@10": 0.5})
        ledger.finish(task.id, "completed", {})
    return tmp_path / "new"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    pytest.importorskip("optuna_dashboard")
    server = open_dashboard(Ledger.read(folder), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{HOST}:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    with served(folder) as found:
        yield found


def test_the_search_is_shown_and_the_journal_stays_as_it_is(address: str, folder: Path) -> None:
    before = (folder / "ledger.journal").read_bytes()
    studies = json.load(urllib.request.urlopen(f"{address}/api/studies", timeout=60))["study_summaries"]
    [search] = [study for study in studies if study["study_name"] == "search"]
    detail = json.load(urllib.request.urlopen(f"{address}/api/studies/{search['study_id']}", timeout=60))
    assert [trial["values"] for trial in detail["trials"]] == [[0.5]]
    assert urllib.request.urlopen(f"{address}/dashboard/", timeout=60).status == 200
    assert (folder / "ledger.journal").read_bytes() == before


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("DELETE", {}),
        ("POST", {}),
        ("PUT", {}),
        ("GET", {"Host": "evil.example"}),
        ("GET", {"Host": "evil.example:80"}),
    ],
)
def test_what_would_write_or_comes_from_elsewhere_is_refused(
    address: str, method: str, headers: dict[str, str]
) -> None:
    request = urllib.request.Request(f"{address}/api/studies/0", method=method, headers=headers)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=60)


def test_a_port_that_is_taken_is_a_sentence(address: str, folder: Path) -> None:
    with pytest.raises(InputError, match="choose another with --port"):
        open_dashboard(Ledger.read(folder), int(address.rsplit(":", 1)[1]))


ENDS = {
    "asha": "stopped at epoch 1: rank 3 of 4, the best 1/3 go on",
    "promote": "not promoted at epoch 1: rank 3 of 4",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scheduler", ENDS)
def test_a_browser_shows_the_trials_of_a_sweep_that_is_driven_and_the_next_one_when_it_starts(
    scheduler: str, tmp_path: Path
) -> None:
    spec = load_spec(TINY, {"name": "live", "budget.trials": 6, "scheduler.type": scheduler})
    with Ledger.create(tmp_path / "live", spec) as writer:
        for value, end in ((0.3, "completed"), (0.1, "stopped"), (0.2, "paused"), (0.0, "failed"), (0.1, "running")):
            task = writer.next()
            assert task is not None
            writer.report(task.id, {"epoch": 1, "ndcg@10": value})
            if end == "paused":
                writer.pause(task.id, 1)
            elif end != "running":
                writer.finish(task.id, end, {"reason": {"stopped": ENDS[scheduler]}.get(end)})
        with served(tmp_path / "live") as address, chromium() as browser:
            browser.get(f"{address}/dashboard/")
            wait_until(browser, "document.body.innerText.includes('search')")
            browser.get(f"{address}/dashboard/studies/0/trials")
            wait_until(browser, "document.body.innerText.includes('5 Trials')")
            shown = browser.execute_script("return document.body.innerText").split("\n")
            states = [shown[shown.index(f"Trial {number}") + 1] for number in range(5)]
            assert states == ["Complete", "Pruned", "Running", "Fail", "Running"]
            assert "train.learning_rate" in " ".join(shown)
            assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
            writer.next()
            browser.refresh()
            wait_until(browser, "document.body.innerText.includes('6 Trials')")
