"""When the search ends: the limits of a sweep's budget beside the number of trials, whichever is reached first."""

from __future__ import annotations

from collections.abc import Callable

from sweeps.spec import ResourcesSpec, SweepSpec


def hours(trial_seconds: float, resources: ResourcesSpec) -> dict[str, float]:
    """Hours of a CPU and of a GPU that trials held, by name of their limits; `trial_seconds` over all trials.

    An elastic trial counts with its most workers, so that no more than the limit is spent.
    """
    each = trial_seconds / 3600 * resources.most_workers
    return {"cpu_hours": each * resources.cpus_per_worker, "gpu_hours": each * resources.gpus_per_worker}


class Budget:
    """What the search may still spend.

    `elapsed` tells the seconds of the search in all sessions so far; `spent` are the seconds that trials ran in earlier
    ones; `best` is the best value so far; `target`: whether the target is looked at.
    """

    def __init__(
        self,
        spec: SweepSpec,
        *,
        elapsed: Callable[[], float],
        spent: float = 0.0,
        best: float | None = None,
        target: bool = True,
    ):
        self._spec, self._elapsed, self._spent, self._best = spec, elapsed, spent, best
        self._goal = spec.budget.target if target else None
        self.reason: str | None = None
        "which limit ended the search, in words that begin with its name; None while none has"

    def see(self, value: float) -> None:
        """A value of the metric, from any trial."""
        better = max if self._spec.mode == "max" else min
        self._best = value if self._best is None else better(self._best, value)

    def is_target(self, value: float) -> bool:
        """Whether a value of the metric is as good as the target asks."""
        sign = 1 if self._spec.mode == "max" else -1
        return self._goal is not None and sign * value >= sign * self._goal

    def reached(self, trial_seconds: float) -> str | None:
        """The `reason`, after looking again. `trial_seconds`: what all trials of this session ran, those that run now
        included. A limit once reached stays reached."""
        if self.reason is None:
            limits = self._limits(self._spent + trial_seconds)
            spent = (f"{name}: {used:.4g} of {limit:g} spent" for name, used, limit in limits if used >= limit)
            self.reason = next(spent, None) or self._target()
        return self.reason

    def _limits(self, trial_seconds: float) -> list[tuple[str, float, float]]:
        """Name, what is spent, and the limit, where there is one."""
        budget = self._spec.budget
        used = {"time": self._elapsed(), **hours(trial_seconds, self._spec.resources)}
        used["cost"] = trial_seconds / 3600 * (budget.price_per_hour or 0.0)
        limits = {name: getattr(budget, name) for name in used}
        return [(name, used[name], limit) for name, limit in limits.items() if limit is not None]

    def _target(self) -> str | None:
        if self._best is None or not self.is_target(self._best):
            return None
        return f"target: {self._spec.metric} {self._best:.6g} has reached {self._goal:g}"
