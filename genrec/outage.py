"""Work that is tried again and again, in a thread that nobody watches: when it begins to fail, somebody must hear."""

from __future__ import annotations

import logging
import time

from genrec.masking import without_login

logger = logging.getLogger(__name__)


class Outage:
    """Failures in a row of one piece of work. The first of a row is told, and the end of the row; those between are
    not, since the work is tried every few seconds."""

    def __init__(self, work: str):
        """`work`: what is tried, as it stands after "cannot"."""
        self._work = work
        self._since: float | None = None

    def failed(self, error: Exception) -> float:
        """Seconds since the first failure of this row."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            reason = without_login(str(error).strip().partition("\n")[0])
            logger.warning("cannot %s (%s: %s); it is tried again", self._work, type(error).__name__, reason)
        return now - self._since

    def worked(self) -> None:
        if self._since is not None:
            logger.warning("could %s again, after %.0f s", self._work, time.monotonic() - self._since)
        self._since = None
