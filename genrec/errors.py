"""The one base of errors that are the user's to mend: the command lines print them as sentences and leave with code 2.

Anything else that is raised is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class InputError(ValueError):
    """A setting, file or argument that cannot be used; the message names it, its value and the rule."""
