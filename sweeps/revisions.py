"""What a sweep that was started may still become: more or less budget, a wider space, other finalists, other resources.

Every change is a revision in the ledger: the whole new spec, when, after how many trials, and what is different. What
would make the recorded trials mean something else is refused, key by key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from genrec.config import ConfigError
from genrec.errors import InputError
from sweeps.parameters import Float, Grid, Int, Listed, Parameter, settings_of
from sweeps.records import TrialRecord
from sweeps.space_file import show
from sweeps.spec import SweepSpec
from sweeps.widening import base_value, completed, holds

KEY = "revision"
"the study attributes that hold revisions: revision:1, revision:2, ..."
FREE = ("budget", "resources", "finalists", "max_failures", "max_failed_trials", "reuse", "notify", "storage")
"parts of a spec that may be anything later"
LABELS = ("base", "set")
"where `base_values`, which may not change, came from"


@dataclass(frozen=True)
class Revision:
    """One change of a sweep's spec."""

    at: str
    trials: int
    "how many trials there were"
    difference: dict[str, list[Any]]
    "key -> before, after"
    spec: dict[str, Any]
    "the whole spec from then on"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def widens(self) -> bool:
        """Whether the space, or what is feasible of it, changed."""
        return any(key.split(".")[0] in ("space", "constraints") for key in self.difference)


def stored_revisions(attrs: Mapping[str, Any]) -> list[Revision]:
    """The revisions among a study's attributes, oldest first."""
    numbers = sorted(int(key.partition(":")[2]) for key in attrs if key.startswith(f"{KEY}:"))
    return [Revision(**attrs[f"{KEY}:{number}"]) for number in numbers]


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    """What differs between two specs, by dotted key: before, after; null where it was, or is, absent. Parameters of the
    space are compared whole."""
    found: dict[str, list[Any]] = {}
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping) and prefix != "space.":
            found |= difference(before, after, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = [before, after]
    return found


def revise(old: SweepSpec, new: SweepSpec, trials: Sequence[TrialRecord]) -> Revision | None:
    """The revision that makes `new` of `old`; None where nothing differs.

    Raises `InputError` with a line for every key that contradicts what is recorded.
    """
    changed = difference(old.to_dict(), new.to_dict())
    if not changed:
        return None
    faults = [*_fixed(changed), *_narrowed(old, new)]
    if not faults:
        faults = list(_misread(new, trials))
    if faults:
        lines = [
            *faults,
            f"start a new sweep instead; with reuse: [{old.name}] it takes over the trials that are equal",
        ]
        raise InputError("\n".join([f"sweep {old.name} cannot become what is asked for:", *lines]))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Revision(now, len(trials), changed, new.to_dict())


def described(changed: Mapping[str, list[Any]]) -> list[str]:
    """A line a key: `budget.trials: 20 -> 40`."""
    return [f"{key}: {_shown(before)} -> {_shown(after)}" for key, (before, after) in changed.items()]


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return (
        "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
        if isinstance(value, dict)
        else show(value)
    )


def _fixed(changed: Mapping[str, list[Any]]) -> Iterable[str]:
    """Keys that may not change at all."""
    for key, (before, after) in changed.items():
        top = key.split(".")[0]
        if top not in (*FREE, *LABELS, "space", "constraints"):
            yield f"{key}: {_shown(before)} -> {_shown(after)}: the recorded trials were made with {_shown(before)}"


def _narrowed(old: SweepSpec, new: SweepSpec) -> Iterable[str]:
    """What the new space no longer has, or has in another way."""
    before, after = old.search_space, new.search_space
    for formula in new.constraints:
        if formula not in old.constraints:
            yield f"constraints: {formula!r} is new; a space can only become wider"
    for name, parameter in before.parameters.items():
        if name not in after.parameters:
            yield f"space.{name}: was searched; it cannot be left out"
        elif (reason := _not_wider(name, parameter, after.parameters[name])) is not None:
            yield f"space.{name}: {reason}"
    for name, parameter in after.parameters.items():
        if name not in before.parameters:
            try:
                base_value(name, parameter, new.base_values)
            except ValueError as error:
                yield f"space.{name}: is new, and {error}, with which the recorded trials were made"


def _not_wider(name: str, old: Parameter, new: Parameter) -> str | None:
    if type(old) is not type(new):
        return f"was {type(old).__name__.lower()} and cannot become {type(new).__name__.lower()}"
    if isinstance(old, (Float, Int)) and isinstance(new, (Float, Int)):
        if (old.log, old.step) != (new.log, new.step):
            return "log and step cannot change"
        if not (holds(new, old.low) and holds(new, old.high)):
            return f"from {old.low} to {old.high} was searched; {new.low} to {new.high} does not hold all of it"
    if isinstance(old, Listed) and isinstance(new, Listed):
        gone = [value for value in old.values if value not in new.values]
        if gone:
            return f"{', '.join(show(value) for value in gone)} was searched and cannot be left out"
        if any(settings_of(name, old, value) != settings_of(name, new, value) for value in old.values):
            return "what its values set cannot change"
        if isinstance(old, Grid) and isinstance(new, Grid) and old.ordered != new.ordered:
            return "ordered cannot change"
    if any(set(map(repr, new.when.get(above, ()))) < set(map(repr, values)) for above, values in old.when.items()):
        return "its condition (when) can only become wider"
    return None


def _misread(new: SweepSpec, trials: Sequence[TrialRecord]) -> Iterable[str]:
    """The last word: every recorded point must give the config that was run."""
    for record in trials:
        if not record.config_hash:
            continue
        try:
            point = completed(new.search_space, new.base_values, record.params)
            same = new.search_space.build(new.base_values, point).hash == record.config_hash
        except (ConfigError, ValueError, KeyError) as error:
            yield f"space: {record.id}: {error}"
            return
        if not same:
            yield f"space: {record.id} would have run with other settings"
            return
