"""How a command ends: its exit code, and the base of errors that are the user's to mend.

The command lines print such an error as a sentence and leave with its code. Anything else that is raised is a bug of
ours, keeps its traceback and leaves with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What `genrec` and `sweeps` leave with."""

    DONE = 0
    INPUT = 2
    "bad input, and nothing was started"
    FAILED = 3
    "no trial succeeded, too many failed, or the training has diverged"
    ENVIRONMENT = 4
    "the cluster, the storage or the disk"
    HUNG_UP = 129
    "by SIGHUP; this and the codes below: interrupted, and resumable"
    INTERRUPTED = 130
    "by SIGINT"
    TERMINATED = 143
    "by SIGTERM"

    @staticmethod
    def of_signal(signum: int) -> int:
        """As shells have it: 128 and the signal's number."""
        return 128 + signum


class InputError(ValueError):
    """A setting, file or argument that cannot be used; the message names it, its value and the rule."""

    exit_code = ExitCode.INPUT


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?` or nothing. A dotted key is also compared by its last part."""
    words = list(words)
    found = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if not found:
        tail = word.rsplit(".", 1)[-1]
        tails = {w.rsplit(".", 1)[-1]: w for w in words}
        found = [tails[t] for t in difflib.get_close_matches(tail, list(tails), n=1, cutoff=0.6)]
    return f"; did you mean {found[0]!r}?" if found else ""
