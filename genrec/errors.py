"""The one base of errors that are the user's to mend: the command lines print them as sentences and leave with code 2.

Anything else that is raised is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A setting, file or argument that cannot be used; the message names it, its value and the rule."""


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?` or nothing. A dotted key is also compared by its last part."""
    words = list(words)
    found = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if not found:
        tail = word.rsplit(".", 1)[-1]
        tails = {w.rsplit(".", 1)[-1]: w for w in words}
        found = [tails[t] for t in difflib.get_close_matches(tail, list(tails), n=1, cutoff=0.6)]
    return f"; did you mean {found[0]!r}?" if found else ""
