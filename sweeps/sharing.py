"""Which stages a task would make that other tasks need as well: by it the queue holds back who would only wait."""

from __future__ import annotations

from genrec.artifacts import ArtifactStore
from genrec.config import validate_config
from genrec.errors import InputError
from genrec.pipeline import STAGES, Stage, stage_keys
from sweeps.records import Task

SHARED: tuple[Stage, ...] = tuple(stage for stage in STAGES if stage != "tiger")


class SharedStages:
    """Called with a task: the names of its shared stages that are not in the store yet.

    It is asked ten times a second about tasks that wait, so it computes keys once and asks for no stage that it has
    seen. A config whose keys cannot be computed here shares nothing; its trial will say what is wrong.
    """

    def __init__(self, store: ArtifactStore):
        self._store = store
        self._keys: dict[str, dict[Stage, str]] = {}
        self._there: set[str] = set()

    def __call__(self, task: Task) -> frozenset[str]:
        if task.id not in self._keys:
            self._keys[task.id] = _keys(task)
        return frozenset(f"{stage}-{key}" for stage, key in self._keys[task.id].items() if not self._has(stage, key))

    def _has(self, stage: Stage, key: str) -> bool:
        if key not in self._there and self._store.has(stage, key):
            self._there.add(key)
        return key in self._there


def _keys(task: Task) -> dict[Stage, str]:
    try:
        keys = stage_keys(validate_config(task.payload["config"]))
    except (InputError, OSError):
        return {}
    return {stage: keys[stage] for stage in SHARED}
