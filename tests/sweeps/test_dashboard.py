"""The dashboard over a ledger: it answers on loopback and changes nothing."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from genrec.errors import InputError
from sweeps.dashboard import HOST, open_dashboard
from sweeps.ledger import Ledger
from sweeps.spec import load_spec

TINY = Path(__file__).with_name("tiny.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Ledger.create(tmp_path / "new", load_spec(TINY, {"name": "new"})) as ledger:
        task = ledger.next()
        assert task is not None
        ledger.report(task.id, {"epoch": 1, "ndcg@10": 0.5})
        ledger.finish(task.id, "completed", {})
    return tmp_path / "new"


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    pytest.importorskip("optuna_dashboard")
    server = open_dashboard(Ledger.read(folder), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{HOST}:{server.server_port}"
    server.shutdown()
    server.server_close()


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
