"""The Python API's manners; what it returns is in test_conclusion.py, whole sweeps are in test_whole_sweep.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sweeps
from genrec.errors import InputError
from sweeps.api import _sort_overrides
from sweeps.ledger import Ledger
from sweeps.spec import load_spec

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
