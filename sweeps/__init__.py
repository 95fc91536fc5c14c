"""Hyperparameter sweeps over `genrec`: Ray trains, Optuna searches, the ledger remembers.

From Python and notebooks, as by the commands of the same names:

    import sweeps
    sweep = sweeps.run("search_spaces/quickstart.yaml", overrides={"budget.trials": 6, "train.epochs": 3})
    sweep = sweeps.load("quickstart")
    sweep.trials; sweep.curves; sweep.finalists    # pandas DataFrames
    sweep.study                                    # the Optuna study

Importing this package loads neither Ray nor torch; what needs them loads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.api import Sweep, compare, load, reevaluate, resume, run

__all__ = ["Sweep", "compare", "load", "reevaluate", "resume", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sweeps import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
