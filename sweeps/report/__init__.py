"""What a sweep came to, as files: a page with pictures, Markdown, CSV, the winner's config, the sweep to repeat.

Everything is made from the ledger; what needs artifacts is left out with a reason where they are gone. So a report can
be had at any time: while the sweep runs, after a crash, years later.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import yaml

from genrec.config import config_keys
from genrec.durable import write_text
from sweeps.ledger import Ledger
from sweeps.report.document import Document
from sweeps.space import value_at

__all__ = ["ReportFiles", "make_document", "write_report"]

FOLDER = "report"
"below the sweep's own"


class ReportFiles(NamedTuple):
    """Where the parts of a report are. `best`: None before any trial has a result."""

    page: Path
    markdown: Path
    trials: Path
    sweep: Path
    best: Path | None


def write_report(ledger: Ledger, folder: str | Path | None = None) -> ReportFiles:
    """Write the report of a sweep in whatever state into `folder`, by default `report` in the sweep's own."""
    from sweeps.report.markdown import markdown
    from sweeps.report.page import page
    from sweeps.report.spreadsheet import trials_csv

    folder = ledger.folder / FOLDER if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    document = make_document(ledger, folder)
    texts = {
        "report.html": page(document),
        "report.md": markdown(document),
        "trials.csv": trials_csv(ledger),
        "sweep.yaml": sweep_text(ledger),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    page_path, markdown_path, trials, sweep = (folder / name for name in texts)
    return ReportFiles(page_path, markdown_path, trials, sweep, _write_best(ledger, folder / "best.yaml"))


def make_document(ledger: Ledger, folder: Path | None = None) -> Document:
    """The report before it is HTML or Markdown. `folder`: as for `write_report`, whose files its commands name."""
    from sweeps.report.catalogue import catalogue_sections
    from sweeps.report.course import course_sections
    from sweeps.report.examples import examples
    from sweeps.report.record import record_section
    from sweeps.report.search import search_sections
    from sweeps.report.summary import lead, summary

    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    sections = [
        *summary(ledger, folder or ledger.folder / FOLDER),
        *search_sections(ledger),
        *catalogue_sections(ledger),
        examples(ledger),
        *course_sections(ledger),
        record_section(ledger),
    ]
    return Document(f"Sweep {ledger.spec.name}", f"{lead(ledger)}; written {now}", sections)


def sweep_text(ledger: Ledger) -> str:
    """The sweep as a file that needs no other: the base config is in it, setting by setting."""
    spec = ledger.spec.model_dump(mode="json", exclude_defaults=True, exclude={"name", "base", "set", "base_values"})
    settings = {key: value_at(ledger.spec.base_values, key) for key in config_keys()}
    found = {"name": ledger.spec.name, "set": settings, **spec}
    head = f"# The sweep {ledger.spec.name} as it was run; sweeps run FILE --name ANOTHER repeats it.\n"
    return head + yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def _write_best(ledger: Ledger, path: Path) -> Path | None:
    """The winner's config as it was exported; before there is one, that of the best trial so far."""
    if ledger.fact("winner") is not None and (ledger.folder / path.name).is_file():
        text = (ledger.folder / path.name).read_text(encoding="utf-8")
        head = "" if ledger.state == "finished" else "# The previous winner: the sweep has gone on since.\n"
        write_text(path, head + text)
        return path
    from sweeps.report.standing import best_so_far, chosen_config

    config, best = chosen_config(ledger), best_so_far(ledger)
    if config is None:
        return None
    head = f"# Not final: the best trial so far of the sweep {ledger.spec.name}, {best.id if best else 'unknown'}.\n"
    write_text(path, head + yaml.safe_dump(config.to_dict(), sort_keys=False))
    return path
