"""A plan as a person reads it."""

from __future__ import annotations

from sweeps.plan import Plan, Range


def plan_lines(plan: Plan) -> list[str]:
    """The plan as a person reads it."""
    trials = "until the budget is spent" if plan.trials is None else f"{plan.trials}"
    size = "endless" if plan.space_points is None else f"{plan.space_points} points"
    grid = f", of which {plan.grid_points} grid points take turns" if plan.grid_points else ""
    lines = [
        f"{plan.name}: plan",
        f"  trials            {trials} ({plan.slots} at once); space: {size}{grid}",
        f"  infeasible        {plan.infeasible_share:.1%} of {plan.infeasible_checked} points"
        + (f"; the first: {plan.infeasible_example}" if plan.infeasible_example else ""),
        f"  parameters        {_range(plan.parameters)}",
        f"  training          {_range(plan.train_flops)}FLOP a trial that is not stopped",
        f"  memory            {_range(plan.memory_bytes)}B a trial, beside the process itself",
        f"  tokenizers        {plan.tokenizers} different among the planned trials, each trained once",
    ]
    if plan.taken_over:
        lines.append(f"  taken over        {plan.taken_over:.0%} of the trials, which earlier sweeps have run")
    if plan.search is None or plan.finalists is None or plan.speed is None:
        return [*lines, "  time              not known: no speed was measured here (see --like)"]
    stopping = ""
    if plan.trained_share is not None and plan.trained_share < 0.999:
        stopping = f"; early stopping leaves {plan.trained_share:.0%} of {plan.epochs_without_stopping} epochs"
    if plan.trials is not None and plan.search.runs < round(plan.trials * (1 - plan.taken_over)):
        stopping += f"; the budget ends it after {plan.search.runs} trials"
    cost = f", {plan.cost:.2f} at {plan.price_per_hour:g} an hour of a trial" if plan.cost is not None else ""
    spread = f"{duration_text(plan.search.low_seconds)} to {duration_text(plan.search.high_seconds)}"
    cpu_hours, gpu_hours = plan.hours(plan.cpus_per_trial) or 0.0, plan.hours(plan.gpus_per_trial) or 0.0
    whole = duration_text(plan.seconds or 0.0)
    elastic = []
    if plan.search_with_fewest is not None:
        longest = duration_text(plan.search_with_fewest.seconds)
        elastic = [f"  elastic           {longest} if every trial has only its fewest workers ({plan.fewest_workers})"]
    return [
        *lines,
        f"  search            {duration_text(plan.search.seconds)} ({spread}){stopping}",
        *elastic,
        f"  finalists         {duration_text(plan.finalists.seconds)} for {plan.finalists.runs} runs",
        f"  conclusion        about {duration_text(plan.conclusion_seconds)} for baselines and comparisons, an "
        "estimate without ensemble and export",
        f"  in all            {whole}, {cpu_hours:.2f} CPU-hours, {gpu_hours:.2f} GPU-hours{cost}",
        f"  speed             {plan.speed.source}",
    ]


def _range(values: Range) -> str:
    if values.low == values.high:
        return _short(values.low)
    return f"{_short(values.low)} to {_short(values.high)}, median {_short(values.median)}"


def _short(value: float) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} "


def duration_text(seconds: float) -> str:
    """`1 h 5 min`, `3 min 20 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
