"""Every command of ours, and of Ray, that the deploy files run or show is read by that program's own parser."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import ray.scripts.scripts

from genrec.cli import main as genrec
from sweeps.cli import main as sweeps

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and path.suffix != ".pyc")
PROGRAMS: dict[str, click.Command] = {"sweeps": sweeps, "genrec": genrec, "ray": ray.scripts.scripts.cli}
NAMES = "|".join(PROGRAMS)
STARTS = re.compile(rf"(?:^|[;&|({{]|- |: )\s*((?:{NAMES}) [a-z].*)")
"where a command may stand in a line that is no comment"
IMAGE_FOLDER = "/opt/sweeps/"


def commands(path: Path) -> Iterator[list[str]]:
    """The commands of a file as words. Lines that are folded in YAML, or continued, count as one."""
    text = path.read_text(encoding="utf-8")
    folded = re.sub(r">-\n((?: +.*\n)+?)(?=\n|\S| *- | *\w+:)", lambda found: " ".join(found[1].split()) + "\n", text)
    for line in folded.splitlines():
        is_comment = line.lstrip().startswith("#") or path.suffix == ".md"
        found = re.findall(rf"`((?:{NAMES}) [a-z][^`]*)`", line) if is_comment else STARTS.findall(line)
        for command in found:
            for part in re.split(r"\s*(?:;|&&|\|\||[|&]|\d?>\S*)\s*(?=\s|$)", command):
                if re.match(rf"(?:{NAMES}) ", part):
                    yield [word for word in shlex.split(part.partition(" #")[0]) if part[:4] != "ray " or word != "$@"]
    for words in re.findall(r"sbatch \S*slurm\.sh ([^`\"\[\n]+)", text):
        yield ["sweeps", "run", *shlex.split(words), "--resume"]


def read(words: list[str]) -> list[str]:
    """The names of a program and its subcommand; raises `click.UsageError` for words that it does not know."""
    command, names, rest = PROGRAMS[words[0]], [words[0]], words[1:]
    while isinstance(command, click.Group):
        with click.Context(command) as context:
            inner = command.get_command(context, rest[0])
        if inner is None:
            raise click.UsageError(f"no command {' '.join([*names, rest[0]])}")
        command, names, rest = inner, [*names, rest[0]], rest[1:]
    if rest:
        here = [str(ROOT / word.removeprefix(IMAGE_FOLDER)) if word.startswith(IMAGE_FOLDER) else word for word in rest]
        command.make_context(" ".join(names), here)
    return names


ALL = [
    pytest.param(words, path.suffix == ".md", id=f"{path.relative_to(CLUSTER)}: {' '.join(words)}")
    for path in FILES
    for words in commands(path)
]


@pytest.mark.parametrize(("words", "is_prose"), ALL)
def test_a_command_that_is_run_or_shown_is_one(
    words: list[str], is_prose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with contextlib.suppress(*[click.MissingParameter] * is_prose):  # text may speak of a part of a command
        read(words)
    if "--" in words:
        read(words[words.index("--") + 1 :])
    for word in words:
        if word.startswith(IMAGE_FOLDER) or re.fullmatch(r"(?:search_spaces|cluster)/.*\.\w+", word):
            assert (ROOT / word.removeprefix(IMAGE_FOLDER)).is_file(), word


def test_the_commands_are_found() -> None:
    found = {path.name: {" ".join(words[:2]) for words in commands(path)} for path in FILES}
    assert {"ray start", "ray stop"} <= found["aws.yaml"] & found["gcp.yaml"] & found["on_premise.yaml"]
    assert found["rayjob.yaml"] == {"sweeps run"}
    assert {"ray start", "ray status", "sweeps run"} <= found["slurm.sh"]
    assert {"ray job", "ray up", "sweeps submit"} <= found["README.md"]
    [start] = [words for words in commands(CLUSTER / "aws.yaml") if "--head" in words]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start


@pytest.mark.parametrize(
    "line", ["sweeps run x.yaml --strorage /s", "sweeps start x.yaml", "sweeps run --trials many", "ray job sumbit"]
)
def test_what_is_none_is_seen(line: str) -> None:
    with pytest.raises(click.UsageError):
        read(line.split())
