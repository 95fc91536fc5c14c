"""What `ray job submit --working-dir .` takes along from a checkout, by Ray's own packager."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[2]
LEFT_HERE = (
    ".env",
    ".env.production",
    ".netrc",
    ".aws/credentials",
    ".git/config",
    ".venv/bin/python",
    "key.pem",
    "server.key",
    "id_ed25519",
    "secrets.yaml",
    "credentials.json",
    "notes.txt",
    "vectors.npy",
    "data/beauty/items.jsonl",
    "results/table.csv",
    "runs/sweep/ledger.journal",
    "tests/test_docs.py",
    "search_spaces/.env",
    "search_spaces/key.pem",
    "search_spaces/vectors.npy",
    "genrec/data/items.csv",
    "sweeps/__pycache__/cli.cpython-311.pyc",
)
OWN = ("my_sweep.yaml", "my_config.gin", "search_spaces/mine.yaml")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of this repository, and what lies about in a working copy."""
    for folder in ("genrec", "sweeps", "search_spaces", "cluster"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"):
        shutil.copy(path, tmp_path / path.name)
    for name in (*LEFT_HERE, *OWN):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("secret")
    return tmp_path


@pytest.mark.parametrize("gitignore", [True, False])
def test_code_and_searches_travel_and_neither_keys_nor_data(checkout: Path, gitignore: bool) -> None:
    """Also where RAY_RUNTIME_ENV_IGNORE_GITIGNORE is set."""
    parcel = checkout.with_suffix(".zip")
    create_package(str(checkout), parcel, include_gitignore=gitignore)
    names = {name for name in zipfile.ZipFile(parcel).namelist() if not name.endswith("/")}
    assert names.isdisjoint(LEFT_HERE)
    assert names >= {*OWN, "search_spaces/quickstart.yaml"}
    assert {name.split("/")[0] for name in names} == {"genrec", "sweeps", "search_spaces", *OWN[:2]}
    for package in ("genrec", "sweeps"):
        files = {path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix != ".pyc"}
        assert {path.relative_to(ROOT).as_posix() for path in files} <= names
