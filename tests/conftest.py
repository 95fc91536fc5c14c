"""Object stores for all tests, and how tests are shared out when several processes run them, as `make test` has it.

A file stays together, since what its fixtures have made serves all its tests. Those that start a Ray run one after
another in one of the processes: several Rays at once get in each other's way on two CPUs. They are the longest part and
come first, then the files with most slow tests, so that no process is left with a long one at the end.
"""

from __future__ import annotations

import functools
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RAY = ("ray_cluster", "nothing_left", "start_ray", "SmallCluster", 'command("sweeps"', "head.run(")
"words of the files whose tests start one, in their process or in others"


@functools.cache
def starts_ray(path: Path) -> bool:
    """Asked for every test, by the sorting and by pytest-xdist."""
    text = path.read_text(encoding="utf-8")
    return any(word in text for word in RAY)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (not starts_ray(item.path), -slow[item.path]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Asked by pytest-xdist for `--dist loadfile`."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::", 1)[0]
            return "ray" if starts_ray(config.rootpath / path) else path

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Any]:
    """An S3 server in a process of its own, see `sweeps/s3_server.py`."""
    for package in ("moto", "flask", "boto3"):
        pytest.importorskip(package, reason=f"{package} is not installed (make test installs it)")
    from s3_server import Server

    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def google_server() -> Iterator[Any]:
    """A stand-in for Google Cloud Storage in a process of its own, see `sweeps/google_server.py`."""
    for package in ("werkzeug", "google.auth"):
        pytest.importorskip(package, reason=f"{package} is not installed (make test installs it)")
    from google_server import Server

    server = Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty place on that server; this process has its key, and a cache folder of its own."""
    yield from empty_place("s3", s3_server, tmp_path, monkeypatch)


@pytest.fixture(params=["s3", "gs"])
def object_server(request: pytest.FixtureRequest) -> Any:
    """Both servers, in turn."""
    return request.getfixturevalue({"s3": "s3_server", "gs": "google_server"}[request.param])


@pytest.fixture
def place(
    object_server: Any, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """As `s3`, on the `object_server`."""
    scheme = request.node.callspec.params["object_server"]
    yield from empty_place(scheme, object_server, tmp_path, monkeypatch)


def empty_place(scheme: str, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    bucket = f"bucket-{secrets.token_hex(4)}"
    server.make_bucket(bucket)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GENREC_CACHE", str(tmp_path / "cache"))
    yield f"{scheme}://{bucket}/sweeps"
    server.fail()
