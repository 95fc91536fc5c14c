"""The Python API's manners; what it returns is in test_conclusion.py, whole sweeps are in test_whole_sweep.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from made_up_trials import SAMPLED, finished_sweep, spec_of

import sweeps
from genrec.errors import InputError
from sweeps import api
from sweeps.api import _sort_overrides
from sweeps.folders import has_sweep
from sweeps.ledger import Ledger
from sweeps.spec_file import load_spec

TINY = Path(__file__).with_name("tiny.yaml")


def test_importing_the_package_and_naming_its_functions_loads_neither_ray_nor_torch() -> None:
    program = (
        "import sys, sweeps; sweeps.run, sweeps.load, sweeps.Sweep; dir(sweeps)\n"
        "assert not {'torch', 'ray', 'optuna', 'pandas', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_name_that_the_package_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        _ = sweeps.rum
    assert set(sweeps.__all__) <= set(dir(sweeps))
    assert all(getattr(sweeps, name).__doc__ for name in sweeps.__all__)


def test_overrides_go_to_the_sweep_or_to_its_base_config() -> None:
    given = {"budget.trials": 3, "train.epochs": 2, "seed": 7, "tiger.dropout": 0.1, "name": "x", "spase": 1}
    own, settings = _sort_overrides(given)
    assert own == {"budget.trials": 3, "seed": 7, "name": "x", "spase": 1}
    assert settings == {"train.epochs": 2, "tiger.dropout": 0.1}


def test_a_wrong_override_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="spase"):
        sweeps.run(TINY, {"spase": 1}, storage=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_has_just_begun_has_empty_frames(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "new", load_spec(TINY, {"name": "new"})).close()
    sweep = sweeps.load("new", tmp_path)
    assert sweep.state == "interrupted"
    assert len(sweep.trials) == len(sweep.curves) == len(sweep.finalists) == len(sweep.comparisons) == 0
    assert sweep.trials.columns.tolist()[:3] == ["trial", "status", "value"]
    with pytest.raises(InputError, match="no trial with a result"):
        sweep.best_config()


def test_reevaluating_needs_a_search_that_is_done(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "new", load_spec(TINY, {"name": "new"})).close()
    with pytest.raises(InputError, match="its search is not done yet; continue with: sweeps resume new"):
        sweeps.reevaluate("new", seeds=2, storage=tmp_path)
    with pytest.raises(InputError, match="1 or more"):
        sweeps.reevaluate("new", top_k=0, storage=tmp_path)


def test_what_this_machine_cannot_run_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.this_machine._has_ray", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    storage = tmp_path / "runs"
    folder = {"dataset.source": "sequential", "dataset.dataset_folder": str(tmp_path / "typo")}
    with pytest.raises(InputError, match=r"dataset.dataset_folder .*typo.*no such file(.|\n)*--address HOST:PORT"):
        sweeps.run(TINY, folder, storage=storage)
    with pytest.raises(InputError, match=r"a trial needs 1 x \(1 CPU, 4 GPU\), this machine has .*, 0 GPU"):
        sweeps.run(TINY, {"resources.gpus_per_worker": 4}, storage=storage)
    with pytest.raises(InputError, match=r"a trial needs 2 x \(100000 CPU\)"):
        sweeps.run(TINY, {"resources": {"workers": 2, "cpus_per_worker": 100_000}}, storage=storage)
    assert not storage.exists()
    Ledger.create(storage / "tiny", load_spec(TINY, config_overrides=folder)).close()
    with pytest.raises(InputError, match=r"typo.*no such file"):
        sweeps.resume("tiny", storage=storage)


@pytest.fixture
def no_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cluster is one that does not answer."""

    @contextmanager
    def start_ray(address: str | None, say: Callable[[str], None]) -> Iterator[None]:
        raise ConnectionError(f"no Ray answers at {address}")
        yield

    monkeypatch.setattr("sweeps.driver.start_ray", start_ray)
    monkeypatch.setattr("sweeps.api.require_here", lambda spec, address: None)


@pytest.mark.parametrize("ledger", [None, "sqlite:///ledgers.db"])
def test_a_sweep_that_a_cluster_refuses_before_its_first_trial_gives_its_name_back(
    tmp_path: Path, no_nodes: None, ledger: str | None
) -> None:
    changes: dict[str, Any] = {"ledger": ledger} if ledger else {}
    for trials in (3, 4):  # the second time under another spec
        with pytest.raises(ConnectionError, match="no Ray answers at head:1"):
            sweeps.run(TINY, changes | {"budget.trials": trials}, storage=tmp_path, address="head:1", quiet=True)
        assert not has_sweep("tiny", tmp_path)
    with Ledger.create(tmp_path / "tiny", load_spec(TINY, changes)) as begun:
        assert begun.fact("sessions") is None
        assert begun.next() is not None
    with pytest.raises(ConnectionError):
        sweeps.resume("tiny", storage=tmp_path, address="head:1", quiet=True)
    assert len(sweeps.load("tiny", tmp_path).trials) == 1, "what was begun before stays"


def test_a_reevaluation_that_is_refused_leaves_the_sweep_finished(
    tmp_path: Path, no_nodes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_sweep(tmp_path / "s", spec_of(tmp_path, SAMPLED, budget__trials=2, name="s"))
    with pytest.raises(ConnectionError):
        sweeps.reevaluate("s", seeds=5, storage=tmp_path, quiet=True)
    with Ledger.open(tmp_path / "s") as ledger:
        [session] = ledger.fact("sessions")
        ledger.set_fact("sessions", [session | {"data": "other data"}])
    with pytest.raises(InputError, match="data are not those of its trials"):
        sweeps.reevaluate("s", seeds=5, storage=tmp_path, quiet=True)
    left = Ledger.read(tmp_path / "s")
    assert left.state == "finished"
    assert left.fact("reevaluation") is None

    def drive(ledger: Ledger, *, on_ready: Any, **options: Any) -> None:
        on_ready()

    monkeypatch.setattr("sweeps.driver.drive", drive)
    monkeypatch.setattr("sweeps.circumstances.note_session", lambda *_, **options: None)
    sweeps.reevaluate("s", seeds=5, storage=tmp_path, quiet=True)
    asked = Ledger.read(tmp_path / "s")
    assert asked.fact("reevaluation")["seeds"] == 5
    assert asked.fact("phase") == "finalists"


def test_settings_that_a_sweep_was_started_with_hold_when_it_goes_on_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the header of search_spaces/beauty.yaml says to start it: the file does not name the data's folder."""
    revised: list[Any] = []

    def drive(ledger: Ledger, address: Any, quiet: bool, *, spec: Any, **options: Any) -> api.Sweep:
        with ledger:
            revised.append(ledger.revise(spec))
        return api.Sweep(ledger.folder)

    monkeypatch.setattr(api, "_drive", drive)
    monkeypatch.setattr(api, "require_here", lambda spec, address: None)
    file = tmp_path / "beauty.yaml"
    text = (Path(__file__).parents[2] / "search_spaces" / "beauty.yaml").read_text()
    file.write_text(text)
    given = {"dataset.dataset_folder": str(tmp_path / "data"), "train.epochs": 4}
    Ledger.create(tmp_path / "beauty", load_spec(file, config_overrides=given)).close()
    edited = text.replace("trials: 12", "trials: 14").replace("train.epochs: 6", "train.epochs: 4")
    assert edited.count("14") == 1 + text.count("14")
    file.write_text(edited)
    sweep = sweeps.resume("beauty", file=file, storage=tmp_path)
    assert revised[0].difference == {"budget.trials": [12, 14]}
    assert sweep.spec.base_config().dataset.dataset_folder == str(tmp_path / "data")
    file.write_text(edited.replace("train.epochs: 4", "train.epochs: 6").replace("trials: 14", "trials: 15"))
    with pytest.raises(InputError, match="base_values.train.epochs: 4 -> 6"):
        sweeps.resume("beauty", file=file, storage=tmp_path)
    sweeps.resume("beauty", file=file, settings={"train.epochs": 4}, storage=tmp_path)
    assert revised[-1].difference == {"budget.trials": [14, 15]}
    with pytest.raises(InputError, match=r"base_values.train.epochs: 4 -> 9"):
        sweeps.resume("beauty", settings={"train.epochs": 9}, storage=tmp_path)
