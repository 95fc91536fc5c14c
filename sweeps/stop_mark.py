"""Word to all nodes that a run is over, where they share no folder: a key in Ray's own store on the head."""

from __future__ import annotations

import time

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

LOOK_EVERY = 1.0
"seconds between questions to the head"


class StopMark:
    """Used as the path of a file that one touches and others look for. Ray must be initialised."""

    def __init__(self, name: str):
        self._key = f"genrec-sweeps-stop-{name}".encode()
        self._is_there = False
        self._look_at = 0.0

    def touch(self) -> None:
        _internal_kv_put(self._key, b"1")

    def exists(self) -> bool:
        now = time.monotonic()
        if not self._is_there and now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            try:
                self._is_there = _internal_kv_get(self._key) is not None
            except Exception:  # the head does not answer: what that means for the run is for others to say
                return False
        return self._is_there

    def remove(self) -> None:
        _internal_kv_del(self._key)
