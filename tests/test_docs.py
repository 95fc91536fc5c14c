"""The documentation keeps its word: commands and options exist, the example of the grammar is a valid sweep, targets
are in the Makefile, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from genrec.cli import main as genrec
from sweeps.cli import main as sweeps
from sweeps.spec_file import load_spec

ROOT = Path(__file__).parents[1]
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "search_spaces/README.md", "cluster/README.md")
    )
]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
GROUPS = {"sweeps": sweeps, "genrec": genrec}


def commands(page: Path) -> list[str]:
    """Everything in code that starts with one of our programs."""
    text = page.read_text(encoding="utf-8")
    spans = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.S) for line in block.splitlines()]
    spans += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return [span.split(" #")[0].strip() for span in spans if re.match(r"(sweeps|genrec) [a-z]", span)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_that_is_shown_exists(page: Path) -> None:
    for line in commands(page):
        program, verbs, *words = line.split()
        for verb in verbs.split("|"):
            command = GROUPS[program].commands.get(verb)
            assert isinstance(command, click.Command), f"{page.name}: {line}"
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            for word in words:
                if word.startswith("-"):
                    assert word in known, f"{page.name}: {line}: no option {word}"


def test_the_grammars_example_is_a_valid_sweep(tmp_path: Path) -> None:
    text = (ROOT / "search_spaces" / "README.md").read_text(encoding="utf-8")
    example = re.findall(r"```yaml\n(.*?)```", text, re.S)[0]
    (tmp_path / "example.yaml").write_text(example, encoding="utf-8")
    assert load_spec(tmp_path / "example.yaml").name == "my-sweep"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_make_target_and_link_that_is_shown_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)", text):
        if f"`make {target}" in text or f"\nmake {target}" in text:
            assert f"\n{target}:" in makefile, target
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / link).exists(), link


def test_every_search_space_is_in_the_table() -> None:
    text = (ROOT / "search_spaces" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "search_spaces").glob("*.yaml"):
        assert f"`{path.name}`" in text


def test_every_dependency_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for line in re.findall(r'^ {4}"[A-Za-z].*$', text, re.M):
        if re.search(r'"[A-Za-z][\w.\[\],-]*(?:[<>=!~][^"]*)?",', line) and ">" in line:
            assert "# " in line, line


def test_every_module_has_its_place_in_the_layout() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = re.split(r"^(?=\w+/ )", text.partition("## Layout")[2].partition("```\n\n")[0], flags=re.M)
    for package in GROUPS:
        [room] = [room for room in rooms if room.startswith(f"{package}/ ")]
        named = set(re.findall(r"\w+\.py", room))
        there = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py"}
        assert named == there, package


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_table_waits_for_its_values(page: Path) -> None:
    """In a row something stands beside its first cell, and below a column's name something in some row."""
    for table in re.findall(r"(?:^\|.*\|\n)+", page.read_text(encoding="utf-8"), re.M):
        head, _, *rows = (cells(row) for row in table.splitlines())
        assert [row[0] for row in rows if len(row) > 1 and row[0] and not any(row[1:])] == [], head
        columns = zip(head, *rows, strict=True)
        assert [name for name, *values in columns if name and values and not any(values)] == [], head
