"""Who waits, since when, and when a person hears of it: after a minute, and every minute from then on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

TELL_EVERY = 60.0
"seconds"


class Waits:
    """`tell` gets what is waited for, in words, and for how many seconds so far."""

    def __init__(self, tell: Callable[[str, float], None]):
        self._tell = tell
        self._since: dict[str, float] = {}
        self._told: dict[str, int] = {}

    def note(self, reasons: Mapping[str, str]) -> None:
        """All that wait now (any names), and what for. Who is not named waits no longer."""
        now = time.monotonic()
        self._since = {who: self._since.get(who, now) for who in reasons}
        self._told = {who: self._told.get(who, 0) for who in reasons}
        for who, reason in reasons.items():
            minutes = int((now - self._since[who]) / TELL_EVERY)
            if minutes > self._told[who]:
                self._told[who] = minutes
                self._tell(reason, now - self._since[who])

    def seconds(self, who: str) -> float:
        """How long it has waited; 0 if it does not."""
        return time.monotonic() - self._since[who] if who in self._since else 0.0
