"""A grid from the command line, as the YAML file that says the same: `--grid train.learning_rate=1e-4,3e-4`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genrec.config import ConfigError
from genrec.strict_yaml import parse_yaml

SOURCE = "grid"
"what stands where a file's name stands in a fault"


def grid_yaml(
    name: str | None,
    recipe: str | None,
    grids: Sequence[str],
    assignments: Sequence[str],
    trials: int | None,
    time: str | None = None,
) -> str:
    """The sweep file for these words; the values stand in it as they were typed. Raises `ConfigError`.

    What the values must be is checked where every sweep file is.
    """
    space = [f"  {key}: {{type: grid, values: [{values}]}}" for key, values in map(_parted, grids)]
    searched = {_parted(text)[0] for text in grids}
    for key in (_parted(text, "--set")[0] for text in assignments):
        if key in searched:
            raise ConfigError([f"--set {key}: is searched by --grid {key}, so no trial would have this value"])
    lines = ["name: " + (name or (Path(recipe).stem if recipe else "default") + "-grid")]
    lines += [f"base: {recipe}"] if recipe else []
    if assignments:
        lines += ["set:", *(f"  {key}: {value}" for key, value in (_parted(text, "--set") for text in assignments))]
    lines += ["space:", *space]
    budget = [*([f"trials: {trials}"] if trials else []), *([f"time: {time}"] if time else [])]
    lines += [f"budget: {{{', '.join(budget)}}}"] if budget else []
    return "\n".join(lines) + "\n"


def _parted(text: str, option: str = "--grid") -> tuple[str, str]:
    """Setting and value, the value a piece of YAML by itself: nothing in it can become another key."""
    key, equals, value = (part.strip() for part in text.partition("="))
    example = "train.learning_rate=1e-4,3e-4" if option == "--grid" else "train.epochs=6"
    if not key or not equals or not value or "\n" in text:
        raise ConfigError([f"{option} {text}: expected KEY=VALUE{',VALUE' * (option == '--grid')}: {example}"])
    written = f"[{value}]" if option == "--grid" else value
    try:
        parsed = parse_yaml(f"{key}: {written}\n", f"{option} {text}").data
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    if list(parsed) != [key]:
        raise ConfigError([f"{option} {text}: {key!r} is no name of a setting"])
    return key, value
