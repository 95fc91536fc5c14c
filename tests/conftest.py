"""How tests are shared out when several processes run them, as `make test` has it.

A file stays together, since what its fixtures have made serves all its tests; so do all files that use the local Ray of
`tests/sweeps/conftest.py`, of which one is enough. They are the longest part and come first, then the files with most
slow tests, so that no process is left with a long one at the end.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest


def uses_the_local_ray(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return "ray_cluster" in text or "nothing_left" in text


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    uses_ray = {path: uses_the_local_ray(path) for path in {item.path for item in items}}
    items.sort(key=lambda item: (not uses_ray[item.path], -slow[item.path]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Asked by pytest-xdist for `--dist loadfile`."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::", 1)[0]
            return "ray" if uses_the_local_ray(config.rootpath / path) else path

    return Scheduling(config, log)
