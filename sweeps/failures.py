"""When failed trials end a search: more of them than the sweep allows, or nothing but failures from the start."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sweeps.spec import SweepSpec

FIRST = 5
"trials of a session that fail before any trial has come to an epoch: then all will"


class FailureLimit:
    """Sees what becomes of a session's trials. `failed`: how many failed in earlier sessions; `again`: the command that
    resumes the sweep."""

    def __init__(self, spec: SweepSpec, again: str, failed: int = 0):
        self._spec, self._again, self._failed = spec, again, failed
        self._reasons: Counter[str] = Counter()
        self._has_trained = False

    def see(self, event: str, data: Mapping[str, Any]) -> None:
        """An event of `run_queue`."""
        if event == "report" and math.isfinite(data.get(self._spec.metric, math.nan)):
            self._has_trained = True
        elif event == "finished" and data["status"] == "failed":
            self._failed += 1
            self._reasons[(str(data.get("reason") or "no reason was recorded")).splitlines()[0][:300]] += 1
        elif event == "finished":
            self._has_trained = True

    def exceeded(self) -> str | None:
        """Why the search must not go on; None while it may."""
        limit, again = self._spec.max_failed_trials, self._again
        if limit is not None and self._failed > limit:
            fix = f"mend it, then {again}; or allow more: a higher max_failed_trials in the file, {again} --file FILE"
            return f"{self._failed} trials failed, more than max_failed_trials ({limit}){self._why()}; {fix}"
        now = self._reasons.total()
        if limit is None and now >= FIRST and not self._has_trained:
            return f"the first {now} trials failed and none came to an epoch{self._why()}; mend it, then {again}"
        return None

    def _why(self) -> str:
        """The most frequent reasons."""
        found = "; ".join(f"{count} x {reason}" for reason, count in self._reasons.most_common(3))
        return f": {found}" if found else ""
