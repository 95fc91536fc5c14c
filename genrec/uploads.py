"""Upload what Weights & Biases wrote offline, once: its own `wandb sync`, run for the folders that it has not marked.

The mark (`run-ID.wandb.synced`, beside the record) is set by `wandb sync` when a run has arrived as a whole, so an
upload that was interrupted is continued by the next one. The key comes from the environment or netrc.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from genrec.tracking import require_server


def offline_runs(folder: Path) -> list[Path]:
    """Folders of runs below `folder` that were written offline and are not uploaded, oldest first."""
    records = sorted(folder.rglob("offline-run-*/run-*.wandb"), key=lambda record: record.parent.name)
    return [record.parent for record in records if not is_uploaded(record.parent)]


def is_uploaded(run: Path) -> bool:
    return any(run.glob("*.wandb.synced"))


def upload(folder: Path, say: Callable[[str], None]) -> int:
    """Upload all runs below `folder` that are not uploaded yet; returns how many there were.

    Raises `InputError` without a key, `ConnectionError` when the server does not answer or a run did not arrive.
    """
    runs = offline_runs(folder)
    if not runs:
        return 0
    require_server()
    for number, part in enumerate(_rounds(runs), 1):
        say(f"uploading {len(part)} runs" + (f", which go on with earlier ones ({number})" if number > 1 else ""))
        subprocess.run([sys.executable, "-m", "wandb", "sync", *map(str, part)], check=False, stdout=sys.stderr)
    left = offline_runs(folder)
    if left:
        raise ConnectionError(f"{len(left)} of {len(runs)} runs did not arrive; the first: {left[0]}")
    return len(runs)


def _rounds(runs: Sequence[Path]) -> list[list[Path]]:
    """A trial that was started again has a folder for each start: the n-th round holds the n-th of each, so that no
    two folders of one run are uploaded at the same time."""
    rounds: list[list[Path]] = []
    seen: dict[str, int] = {}
    for run in runs:
        run_id = run.name.rsplit("-", 1)[1]
        place = seen[run_id] = seen.get(run_id, -1) + 1
        if place == len(rounds):
            rounds.append([])
        rounds[place].append(run)
    return rounds
