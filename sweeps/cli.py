"""`sweeps`: validate, run, resume and look at sweeps. Thin commands: parse, call the library, print.

Exit codes: 0 done, 2 bad input (nothing started), 3 no trial succeeded, 4 cluster or storage, 130/143 interrupted and
resumable.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from genrec.cli import Commands, fail
from genrec.config import nearest, parse_overrides
from sweeps.spec import load_spec

if TYPE_CHECKING:
    from sweeps.ledger import Ledger


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="genrec-sweeps")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Search hyperparameters of TIGER and its tokenizers; re-evaluate the best; export the winner.

    FILE is a sweep's YAML file (see search_spaces/), NAME the name of a sweep that was started.
    """


storage_option = click.option(
    "--storage", default="runs", show_default=True, type=click.Path(file_okay=False), help="Folder of all sweeps."
)
set_option = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a setting of the base; may be repeated."
)
address_option = click.option("--address", help="Ray cluster HOST:PORT or auto; a local Ray when left out.")


@main.command()
@click.argument("file")
@set_option
def validate(file: str, assignments: tuple[str, ...]) -> None:
    """Check FILE against the config's schema; starts nothing."""
    spec = load_spec(file, config_overrides=parse_overrides(assignments))
    click.echo(f"{file}: a valid sweep named {spec.name}")
    for key, settings in spec.space.items():
        click.echo(f"  {key}: " + ", ".join(f"{name} {value}" for name, value in settings.items()))
    points = spec.search_space.grid_points()
    if points and points != [{}]:
        click.echo(f"  grid points: {len(points)}")
    click.echo(f"  trials: {spec.budget.trials or 'until the time is spent'}, metric: {spec.mode} {spec.metric}")


@main.command()
@click.argument("file")
@click.option("--name", help="Name of the sweep; default: the one in FILE.")
@click.option("--trials", type=click.IntRange(min=1), help="Number of trials, instead of the one in FILE.")
@click.option("--resume", "or_resume", is_flag=True, help="If the sweep exists already, continue it as it was started.")
@set_option
@storage_option
@address_option
def run(
    file: str,
    name: str | None,
    trials: int | None,
    or_resume: bool,
    assignments: tuple[str, ...],
    storage: str,
    address: str | None,
) -> None:
    """Run the sweep that FILE describes, from data to winner."""
    overrides = {key: value for key, value in (("name", name), ("budget.trials", trials)) if value is not None}
    spec = load_spec(file, overrides=overrides, config_overrides=parse_overrides(assignments))
    from sweeps.ledger import Ledger

    with _exit_codes(spec.name):
        folder = Path(storage) / spec.name
        if or_resume and (folder / "ledger.journal").is_file():
            _continue(folder, storage, address)
        else:
            _drive(Ledger.create(folder, spec), storage, address)


@main.command()
@click.argument("name")
@storage_option
@address_option
def resume(name: str, storage: str, address: str | None) -> None:
    """Continue a sweep after a crash, a kill or an interruption."""
    with _exit_codes(name):
        _continue(_sweep_folder(storage, name), storage, address)


@main.command()
@click.argument("name")
@storage_option
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def status(name: str, storage: str, form: str) -> None:
    """Print what a sweep has come to; reads the ledger only."""
    from sweeps.ledger import Ledger
    from sweeps.status import sweep_status

    with _exit_codes(name):
        ledger = Ledger.read(_sweep_folder(storage, name))
        if form == "json":
            click.echo(json.dumps(sweep_status(ledger), indent=1, sort_keys=True))
        else:
            _print_status(ledger, storage)


def _continue(folder: Path, storage: str, address: str | None) -> None:
    """Drive an existing sweep on; a finished one is only shown."""
    from sweeps.ledger import Ledger

    ledger = Ledger.read(folder)
    if ledger.state == "finished":
        click.echo(f"{folder.name} is finished; nothing to do")
        _print_status(ledger, storage)
    else:
        _drive(Ledger.open(folder), storage, address)


def _drive(ledger: Ledger, storage: str, address: str | None) -> None:
    from rich.console import Console

    from sweeps.driver import drive
    from sweeps.live import LiveView

    with ledger:
        view = LiveView(ledger, Console(stderr=True))
        with view.shown():
            drive(ledger, address=address, on_event=view.on_event, say=view.say)
        _print_status(ledger, storage)


def _print_status(ledger: Ledger, storage: str) -> None:
    from sweeps.leaderboard import status_lines

    for line in status_lines(ledger, storage):
        click.echo(line)


def _sweep_folder(storage: str, name: str) -> Path:
    """The folder of a sweep; a wrong name is answered with the nearest."""
    folder = Path(storage) / name
    if Path(name).name != name or not (folder / "ledger.journal").is_file():
        known = [path.parent.name for path in Path(storage).glob("*/ledger.journal")]
        fail(f"no sweep {name!r} in {storage}{nearest(name, known)}")
    return folder


@contextmanager
def _exit_codes(name: str) -> Iterator[None]:
    """Errors of a running sweep as sentences and exit codes."""
    from sweeps.driver import SweepFailed
    from sweeps.journal import LedgerError
    from sweeps.ray_tune import Interrupted

    try:
        yield
    except SweepFailed as error:
        fail(str(error), 3)
    except LedgerError as error:
        fail(str(error), 2 if "exists;" in str(error) or "being driven" in str(error) else 4)
    except Interrupted as stop:
        click.echo(f"{stop}; continue with: sweeps resume {name}", err=True)
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        click.echo(f"interrupted; continue with: sweeps resume {name}", err=True)
        sys.exit(130)
    except BrokenPipeError:
        raise  # click ends quietly when the reader of our output has gone
    except (ConnectionError, OSError) as error:
        fail(f"{error}\nnothing recorded is lost; continue with: sweeps resume {name}", 4)


if __name__ == "__main__":
    main()
