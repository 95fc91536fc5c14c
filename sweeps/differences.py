"""In which settings two configs differ."""

from __future__ import annotations

from typing import Any

from genrec.config import RunConfig, config_keys
from sweeps.space import value_at

_OWN = ("seed", "save_dir_root", "tracking", "train.checkpoint_interval", "evaluation.batch_size")
"settings, or sections of them, that two configs may differ in without being different"


def differing_settings(a: RunConfig, b: RunConfig) -> dict[str, list[Any]]:
    """Config path -> the two values, where they differ."""
    found, both = {}, (a.to_dict(), b.to_dict())
    for key in config_keys():
        values = [value_at(config, key) for config in both]
        if values[0] != values[1] and not {key, key.split(".")[0]} & set(_OWN):
            found[key] = values
    return found
