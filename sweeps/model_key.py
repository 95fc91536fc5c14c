"""Which configs train the same model and measure it alike: those whose stage `tiger` has the same key."""

from __future__ import annotations

from genrec.config import RunConfig
from genrec.errors import InputError


def model_key(config: RunConfig) -> str | None:
    """The key of the config's model: of all settings that its stages read, the files' content and the stages' code.

    None where it cannot be known, because files of the config are not here. Takes a fraction of a millisecond, and
    loads torch at the first call."""
    from genrec.pipeline import stage_keys

    try:
        return stage_keys(config)["tiger"]
    except (InputError, OSError):
        return None
