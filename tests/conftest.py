"""How tests are shared out when several processes run them, as `make test` has it.

A file stays together, since what its fixtures have made serves all its tests; so do all files that use the local Ray of
`tests/sweeps/conftest.py`, of which one is enough. They are the longest part and therefore come first.
"""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    with_ray = {item.path for item in items if "ray_cluster" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in with_ray)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in with_ray else str(item.path)))
