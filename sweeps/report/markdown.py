"""The report as Markdown, for pull requests and job logs: the same sections without the pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from genrec.terminal import printable
from sweeps.report.document import Block, Cell, Commands, Document, Picture, Table, Text, one_line, shown

MAX_ROWS = 25
"of a table; the page and trials.csv have the rest"
_MEANING = re.compile(r"[\\`*\[\]<>#|~&$]|(?<!\w)[_@]|_(?!\w)|:(?=//)|(?<=www)\.")


def markdown(document: Document) -> str:
    """The whole document as text."""
    lines = [f"# {escape(document.title)}", "", escape(document.lead)]
    for section in document.sections:
        blocks = [part for block in section.blocks if (part := block_lines(block))]
        if blocks:
            lines += ["", f"## {escape(section.title)}"]
            for part in blocks:
                lines += ["", *part]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """A foreign text on one line, without control characters, that Markdown and HTML read as nothing but text.

    A title neither calls a person by `@` nor becomes a link.
    """
    return _MEANING.sub(r"\\\g<0>", one_line(text))


def block_lines(block: Block) -> list[str]:
    """A block as lines of Markdown; none for a picture that is drawn elsewhere."""
    if isinstance(block, Text):
        text = escape(block.text)
        return [f"**{text}**" if block.strong else text]
    if isinstance(block, Commands):
        return ["```sh", *(f"{printable(line)}  # {purpose}" for purpose, line in block.lines), "```"]
    if isinstance(block, Picture):
        return [] if block.figure is not None or not block.note else [f"{escape(block.title)}: {escape(block.note)}"]
    return _table(block)


def _table(table: Table) -> list[str]:
    hidden = len(table.rows) - MAX_ROWS
    note = [table.note] if table.note else []
    note += [f"{hidden:,} more rows are in the page."] if hidden > 0 else []
    lines = [f"**{escape(table.caption)}**", "", _row(table.columns), _row(["---"] * len(table.columns), raw=True)]
    lines += [_row(row) for row in table.rows[:MAX_ROWS]]
    return lines + ([""] + [escape(line) for line in note] if note else [])


def _row(cells: Sequence[Cell], raw: bool = False) -> str:
    return "| " + " | ".join(str(cell) if raw else escape(shown(cell)) or " " for cell in cells) + " |"
