"""Results of earlier sweeps for the same configs (`reuse: [NAME, ...]`).

Equal means: the same model, by the key of its stage (`sweeps.model_key`) up to `seed`, unless the sweep varies it; the
same metric and direction; the earlier trial ran to its end; and the code and files that it was trained with are still
those of today. A trial's own seed comes from its number, so that it would hardly ever be equal; what is taken over
keeps the seed that it was trained with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from genrec.config import RunConfig, validate_config
from genrec.errors import InputError
from sweeps.folders import has_sweep, sweep_folder
from sweeps.model_key import model_key
from sweeps.records import TrialRecord
from sweeps.spec import SweepSpec

if TYPE_CHECKING:
    from sweeps.ledger import Ledger

logger = logging.getLogger(__name__)


class Earlier(NamedTuple):
    """A completed trial of an earlier sweep."""

    sweep: str
    record: TrialRecord
    result: dict[str, Any]


def check_names(spec: SweepSpec, storage: str | Path) -> None:
    """Raises `InputError` for an earlier sweep that is not there, with the nearest name."""
    for name in spec.reuse:
        if name == spec.name:
            raise InputError(f"reuse: a sweep knows its own trials already, got {name!r}")
        try:
            sweep_folder(name, storage)
        except InputError as error:
            raise InputError(f"reuse: {error}") from None


class EarlierResults:
    """The results that a sweep may take over, read from the earlier ledgers when the first is asked for."""

    def __init__(
        self, spec: SweepSpec, storage: str | Path, data: Callable[[], str | None], read: Callable[[Path], Ledger]
    ):
        """`data`: the sweep's dataset, None while it is not known; `read`: opens a ledger for reading."""
        self._spec = spec
        self._storage = storage
        self._data = data
        self._read = read
        self._found: dict[str, Earlier] | None = None

    def of(self, config: RunConfig) -> Earlier | None:
        """The result for a config of the sweep, if an earlier sweep has it."""
        if self._found is None:
            self._found = {}
            for name in self._spec.reuse:
                if has_sweep(name, self._storage):  # one that was deleted since has given what it gave
                    self._take(name, self._read(sweep_folder(name, self._storage)))
        key = self._key(config)
        return None if key is None else self._found.get(key)

    def _key(self, config: RunConfig) -> str | None:
        if "seed" in self._spec.search_space.paths:
            return model_key(config)
        return model_key(validate_config(config.to_dict() | {"seed": self._spec.base_values["seed"]}))

    def _take(self, name: str, ledger: Ledger) -> None:
        objectives = self._spec.objectives
        if any(ledger.spec.objectives.get(metric) != mode for metric, mode in objectives.items()):
            return
        data, theirs = self._data(), ledger.dataset()
        if data is not None and theirs is not None and data != theirs:
            raise InputError(
                f"reuse: sweep {name} was run on other data (dataset {theirs}, here {data}); fix: leave it out"
            )
        assert self._found is not None
        outdated = 0
        for record, result in ledger.completed():
            config = ledger.config_of(record.number)
            trained = record.artifacts.get("tiger")
            if trained is None or trained != model_key(config):
                outdated += 1
            elif (key := self._key(config)) is not None and self._passes_gate(record):
                self._found.setdefault(key, Earlier(name, record, result))
        if outdated:
            logger.warning("reuse: %d trials of %s had other code or files and are not taken over", outdated, name)

    def _passes_gate(self, record: TrialRecord) -> bool:
        """Whether the tokenizer is one that this sweep would train TIGER on."""
        from genrec.semantic_ids import Health

        return not record.health or not Health(**record.health).faults(**self._spec.health.model_dump())
