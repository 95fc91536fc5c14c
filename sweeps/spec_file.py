"""Reading a sweep file, and what the command line puts over it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genrec.config import ConfigError
from genrec.strict_yaml import YamlDocument, YamlError, load_yaml, parse_yaml
from sweeps.spec import SweepSpec
from sweeps.spec_checks import checked_spec


def load_spec(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    *,
    config_defaults: Mapping[str, Any] | None = None,
) -> SweepSpec:
    """Read a sweep file.

    `overrides` replace values of the spec by dotted path (`budget.trials`), `config_overrides` are added to `set`, and
    so are those of `config_defaults` that the file's own `set` does not name.
    Raises `ConfigError` with every fault of the file, one line each.
    """
    try:
        document = load_yaml(path)
    except YamlError as error:
        raise ConfigError([str(error)]) from None
    document.data.setdefault("name", re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem))
    named = document.data.get("set")
    own = named if isinstance(named, Mapping) else {}
    kept = {key: value for key, value in (config_defaults or {}).items() if key not in own}
    config_overrides = {**kept, **(config_overrides or {})}
    return _with_overrides(document, Path(path).parent, overrides, config_overrides)


def parse_spec(text: str, source: str) -> SweepSpec:
    """A sweep file's text as a spec; `source` stands where a file's name stands in a fault. Raises `ConfigError`."""
    try:
        return _with_overrides(parse_yaml(text, source), None, None, None)
    except YamlError as error:
        raise ConfigError([str(error)]) from None


def _with_overrides(
    document: YamlDocument,
    folder: Path | None,
    overrides: Mapping[str, Any] | None,
    config_overrides: Mapping[str, Any] | None,
) -> SweepSpec:
    data = dict(document.data)
    for key, value in (overrides or {}).items():
        data = _with_override(data, key, value)
    if config_overrides:
        own = data.get("set")
        data["set"] = {**(own if isinstance(own, Mapping) else {}), **config_overrides}
    return checked_spec(data, document, folder, config_overrides or {})


def _with_override(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    name, _, rest = key.partition(".")
    if not rest or name in ("set", "space"):
        return {**data, name: value if not rest else {**(data.get(name) or {}), rest: value}}
    section = data.get(name)
    return {**data, name: _with_override(dict(section) if isinstance(section, Mapping) else {}, rest, value)}
