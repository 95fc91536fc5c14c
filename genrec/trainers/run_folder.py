"""What a training run keeps on disk: its last two checkpoints, and `metrics.jsonl` with one row an epoch.

Only the first rank reads and writes the folder, and sends what it has read to the others: they need not see it, and
where they do (a shared folder, whose listings each node keeps for a while) they might see another checkpoint as newest.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from genrec.checkpoint import CheckpointError, latest_generation, save_generation
from genrec.ranks import from_first_rank, rank_and_world
from genrec.trainers.stepping import Stepper

logger = logging.getLogger(__name__)
METRICS = "metrics.jsonl"


@dataclass
class Fitted:
    """What training leaves: one row of metrics an epoch, the best row, and the weights of that epoch."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    "of workers, threads or torch's version in mid-training, after which the bits are not those of one run"


class RunFolder:
    """Checkpoints below `path` (none when it is None), at least `interval` seconds apart."""

    def __init__(self, path: Path | None, interval: float):
        self.path, self.interval, self.saved_at = path, interval, time.monotonic()
        self._saved_epoch = 0

    def resume(self, model: nn.Module, stepper: Stepper, fitted: Fitted) -> tuple[int, int]:
        """Load the newest whole checkpoint into all parts; returns the epochs and optimizer steps that are done."""
        found = _from_first_rank(self.path) if self.path else None
        if found is None:
            return 0, 0
        tensors, facts = found
        epoch = facts["epoch"]
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, key = name.partition(":")
            parts[part][key] = tensor
        model.load_state_dict(parts["model"])
        stepper.restore(parts["optimizer"], facts["scaler"])
        fitted.rows, fitted.best, fitted.best_weights = facts["rows"], facts["best"], parts["best"]
        changed = [f"{key} {facts[key]} -> {value}" for key, value in _circumstances().items() if facts[key] != value]
        fitted.changes = facts.get("changes", []) + [f"after epoch {epoch}: {change}" for change in changed]
        if changed:
            logger.warning("continuing, but not bit-exact: %s", ", ".join(changed))
        logger.info("continuing after epoch %d", epoch)
        return epoch, facts["step"]

    def save(self, model: nn.Module, stepper: Stepper, fitted: Fitted, epoch: int, step: int, *, last: bool) -> None:
        """Write a checkpoint if one is due, or if it is the `last` chance; not twice after one epoch."""
        due = last or time.monotonic() - self.saved_at >= self.interval
        if self.path is None or not due or epoch == self._saved_epoch or rank_and_world()[0] > 0:
            return
        optimizer, scaler = stepper.state()
        tensors = {f"model:{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {f"best:{name}": tensor for name, tensor in fitted.best_weights.items()}
        tensors |= {f"optimizer:{name}": tensor for name, tensor in optimizer.items()}
        facts = {"epoch": epoch, "step": step, "rows": fitted.rows, "best": fitted.best, "scaler": scaler}
        facts["changes"] = fitted.changes
        save_generation(self.path, epoch, tensors, facts | _circumstances())
        self.saved_at, self._saved_epoch = time.monotonic(), epoch

    def write_rows(self, rows: list[dict[str, Any]], *, anew: bool = False) -> None:
        """Append rows of metrics; `anew` starts the file again, as a resumed run does with the rows it goes on from."""
        if self.path is None or rank_and_world()[0] > 0:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / METRICS, "w" if anew else "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _circumstances() -> dict[str, Any]:
    """What the bits of a run depend on beside its settings."""
    return {"threads": torch.get_num_threads(), "world": rank_and_world()[1], "torch": torch.__version__}


def _from_first_rank(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts of the newest whole checkpoint that the first rank finds; every rank must ask. Where all that
    it finds are damaged, every rank raises `CheckpointError`."""
    is_first, tensors = rank_and_world()[0] == 0, {}
    said: dict[str, Any] = {}
    if is_first:
        try:
            found = latest_generation(path, logger.warning)
        except CheckpointError as error:
            said = {"error": str(error)}
        else:
            tensors, facts = found or ({}, None)
            said = {"facts": facts}
    said = json.loads(from_first_rank(json.dumps(said).encode()))
    if "error" in said:
        raise CheckpointError(said["error"])
    if said["facts"] is None:
        return None
    data = from_first_rank(save(tensors) if is_first and rank_and_world()[1] > 1 else b"")
    return tensors if is_first else load(data), said["facts"]
