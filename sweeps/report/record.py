"""Under which circumstances a sweep was run: why its search ended, sessions, revisions, what was taken over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sweeps.circumstances import SESSIONS, code_of
from sweeps.finalists import finalist_name
from sweeps.ledger import Ledger
from sweeps.records import TrialRecord
from sweeps.report.document import Block, Cell, Section, Table, Text
from sweeps.revisions import described
from sweeps.wording import counted

MAX_ROWS = 200
_MEANING = {
    "budget": "all trials of the budget were run",
    "time": "the budget's time was spent",
    "grid done": "every point of the grid was run",
    "space exhausted": "nearly every point that can be proposed was tried before",
    "stopped": "it was stopped",
}


def record_section(ledger: Ledger) -> Section:
    """What stands behind the numbers."""
    records = ledger.trials()
    blocks = [ended(ledger), *sessions(ledger), *revisions(ledger), *taken_over(records), *changes(ledger, records)]
    return Section("record", "Record of the sweep", blocks)


def ended(ledger: Ledger) -> Text:
    """Why the search is over, or that it isn't."""
    reason, phase = ledger.fact("stop_reason"), ledger.fact("phase")
    if reason is None:
        over = phase not in (None, "searching")
        return Text("Why the search ended is not recorded." if over else "The search has not ended.")
    words = f"{reason} ({_MEANING[reason]})" if reason in _MEANING else f"{reason}"
    if phase == "searching":
        return Text(f"The search goes on. It had ended before by: {words}.")
    return Text(f"The search ended by: {words}.")


def sessions(ledger: Ledger) -> list[Block]:
    """Every session of a driver whose circumstances were others than those of the one before."""
    rows: list[list[Cell]] = []
    for session in (ledger.fact(SESSIONS) or [])[-MAX_ROWS:]:
        known = {name: version for name, version in (session.get("versions") or {}).items() if version}
        versions = ", ".join(f"{name} {version}" for name, version in known.items())
        facts = (session.get("at"), session.get("host"), code_of(session), session.get("data"))
        rows.append([*facts, versions, session.get("command")])
    if not rows:
        return []
    note = "A session like the one before it has no row. Code: the commit, + what was not committed, or the version."
    return [Table("Sessions of the driver", ["from", "host", "code", "data", "versions", "command"], rows, note)]


def revisions(ledger: Ledger) -> list[Block]:
    """What the sweep was made into after its start."""
    rows: list[list[Cell]] = [
        [number, revision.at, revision.trials, line]
        for number, revision in enumerate(ledger.revisions, start=1)
        for line in described(revision.difference)
    ]
    return [Table("Revisions", ["revision", "at", "after trials", "change"], rows)] if rows else []


def taken_over(records: Sequence[TrialRecord]) -> list[Block]:
    """Trials whose results are those of earlier sweeps."""
    sweeps = Counter(record.source["sweep"] for record in records if record.source)
    rows: list[list[Cell]] = [[name, count] for name, count in sweeps.most_common()]
    note = "They count as trials of this sweep; their stages, times and costs are those of the earlier one."
    return [Table("Taken over from earlier sweeps", ["sweep", "trials"], rows, note)] if rows else []


def taken_over_line(records: Sequence[TrialRecord]) -> str:
    """How many trials were taken over, from where; empty where none was."""
    sweeps = Counter(record.source["sweep"] for record in records if record.source)
    if not sweeps:
        return ""
    return f"{counted(sweeps.total(), 'trial')} taken over from {', '.join(sweeps)}: not made here."


def changes(ledger: Ledger, records: Sequence[TrialRecord]) -> list[Block]:
    """Trials whose workers or threads changed in mid-training."""
    rows: list[list[Cell]] = [[record.id, line] for record in records for line in record.changes]
    rows += [
        [f"{finalist_name(run.finalist)} seed {run.seed}", line]
        for run in ledger.finalist_runs()
        for line in run.result.get("changes") or []
    ]
    if not rows:
        return []
    note = "Their numbers are not bit for bit those of an undisturbed run."
    note += f" The first {MAX_ROWS} are shown." if len(rows) > MAX_ROWS else ""
    return [Table("Changes in mid-training", ["trial", "change"], rows[:MAX_ROWS], note)]
