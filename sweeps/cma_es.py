"""One step of CMA-ES (Hansen 2016) as a function of the trials told so far. The only importer of cmaes.

Optuna's own sampler keeps a pickle of the optimiser in the storage: reading a ledger could then run code. Here the
optimiser is built again from the recorded points of every generation, which takes microseconds each, so that a resumed
sweep goes on exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SPREAD = 1 / 6
"first standard deviation, in parts of a range; the first mean is the middle"


class Told(NamedTuple):
    """A finished point: its place in the unit cube, its loss (less is better), its generation."""

    place: Sequence[float]
    loss: float
    generation: int


def next_point(told: Sequence[Told], dims: int, *, seed: int, population: int | None = None) -> tuple[list[float], int]:
    """A point in the unit cube and its generation. `seed` must differ from point to point.

    A generation is over when `population` of its points were told (the first ones count); trials that run meanwhile
    belong to the generation that they were asked in.
    """
    import cmaes
    import numpy as np

    optimiser = cmaes.CMA(
        mean=np.full(dims, 0.5),
        sigma=SPREAD,
        bounds=np.array([[0.0, 1.0]] * dims),
        seed=seed,
        population_size=population,
    )
    generation = 0
    while True:
        mine = [point for point in told if point.generation == generation][: optimiser.population_size]
        if len(mine) < optimiser.population_size:
            break
        optimiser.tell([(np.array(point.place, dtype=float), point.loss) for point in mine])
        generation += 1
    return [float(x) for x in optimiser.ask()], generation
