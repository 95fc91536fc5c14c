"""`sweeps`: validate, run, resume and look at sweeps. Thin commands: parse, call the library, print.

Exit codes (`genrec.errors.ExitCode`): 0 done, 2 bad input (nothing started), 3 no trial succeeded or too many failed, 4
cluster or storage; 129, 130 and 143 interrupted by SIGHUP, SIGINT and SIGTERM, and resumable.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from genrec.config import parse_overrides
from genrec.errors import ExitCode, InputError
from genrec.object_store import checked_storage, is_url
from genrec.terminal import Commands, fail, printable
from sweeps import api
from sweeps.errors import LedgerError, SweepFailed
from sweeps.folders import DEFAULT, has_sweep, is_sweep, sweeps_command, working_folder
from sweeps.interruption import Interrupted, interruptible
from sweeps.reuse import check_names
from sweeps.spec import SweepSpec, seconds
from sweeps.spec_file import load_spec, parse_spec

if TYPE_CHECKING:
    from genrec.data.interactions import Split
    from sweeps.ledger import Ledger


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="genrec-sweeps")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Search hyperparameters of TIGER and its tokenizers; re-evaluate the best; export the winner.

    FILE is a sweep's YAML file (see search_spaces/), NAME the name of a sweep that was started.
    """


class Storage(click.Path):
    """A folder, or the URL of an object store."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        value = checked_storage(value)
        return value if is_url(value) else super().convert(value, parameter, context)


storage_option = click.option(
    "--storage",
    default=DEFAULT,
    show_default=True,
    type=Storage(file_okay=False),
    help="Folder of all sweeps, or s3:// or gs://BUCKET/PREFIX.",
)
storage_of_file_option = click.option(
    "--storage",
    type=Storage(file_okay=False),
    help=f"Folder of all sweeps, or s3:// or gs://BUCKET/PREFIX; default: the one in FILE, or {DEFAULT}.",
)
set_option = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a setting of the base; may be repeated."
)


class Seconds(click.ParamType):
    """A time such as 15m, as seconds."""

    name = "time"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        try:
            return float(seconds(value))
        except ValueError as error:
            self.fail(str(error), parameter, context)


wait_option = click.option(
    "--wait-for-nodes",
    "wait",
    metavar="TIME",
    type=Seconds(),
    help="How long to wait for a node when the cluster has no room for a single trial, at the start and later: 15m. "
    "Default: 5m, at the start only where nodes come by themselves.",
)
address_option = click.option("--address", help="Ray cluster HOST:PORT or auto; a local Ray when left out.")


@main.command()
@click.argument("file")
@set_option
@storage_of_file_option
@click.option("--address", help="Ray cluster on which it would run: this machine's data and size don't matter then.")
def validate(file: str, assignments: tuple[str, ...], storage: str | None, address: str | None) -> None:
    """Check FILE against the config's schema, and whether this machine could run it; starts nothing.

    Data that FILE or --set names and that are not here are an error; what its base expects at a usual place, and what
    its trials need of a machine, is only said.
    """
    spec = load_spec(file, config_overrides=parse_overrides(assignments))
    check_names(spec, _storage(spec, storage))
    click.echo(f"{file}: a valid sweep named {spec.name}")
    for key, settings in spec.space.items():
        click.echo(f"  {key}: " + ", ".join(f"{name} {value}" for name, value in settings.items()))
    for path, formula in spec.derive.items():
        click.echo(f"  {path} = {formula}")
    space = spec.search_space
    if space.grid:
        click.echo(f"  grid points: {space.num_grid_points()}")
    share, example = space.infeasible_share(spec.base_values)
    click.echo(f"  infeasible: {share:.0%}" + (f"; the first: {example}" if example else ""))
    objectives = ", ".join(f"{mode} {name}" for name, mode in spec.objectives.items())
    click.echo(f"  trials: {spec.budget.how_many}, metric: {objectives}")
    _say_what_is_missing_here(spec, address)


def _say_what_is_missing_here(spec: SweepSpec, address: str | None) -> None:
    """What would keep `run` from beginning on this machine. Raises `InputError` where the sweep itself names it."""
    from genrec.data.presence import missing_inputs
    from sweeps.this_machine import ELSEWHERE, lacking, runs_here

    if not runs_here(address):
        return
    missing = missing_inputs(spec.base_config())
    if missing and any(key.startswith(("dataset.", "embeddings.", "tokenizer.pretrained")) for key in spec.set):
        raise InputError("\n".join([*missing, ELSEWHERE]))
    for line in [*missing, *lacking(spec.resources)]:
        click.echo(printable(f"warning: not on this machine: {line}"), err=True)


@main.command()
def schema() -> None:
    """Print the JSON schema of a sweep's YAML file, for editors."""
    from sweeps.schema import schema_text

    click.echo(schema_text(), nl=False)


name_option = click.option("--name", help="Name of the sweep; default: the one in FILE.")
trials_option = click.option(
    "--trials", type=click.IntRange(min=1), help="Number of trials, instead of the one in FILE."
)


@main.command()
@click.argument("file")
@name_option
@trials_option
@click.option("--like", metavar="NAME", help="Take the speed from the trials of an earlier sweep.")
@click.option("--measure/--no-measure", default=True, show_default=True, help="Train a few batches here for the speed.")
@click.option("--cpus", type=click.IntRange(min=1), help="CPUs of the cluster; default: this machine's.")
@click.option("--gpus", type=click.IntRange(min=0), help="GPUs of the cluster; default: this machine's.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@set_option
@storage_of_file_option
def plan(
    file: str,
    name: str | None,
    trials: int | None,
    like: str | None,
    measure: bool,
    cpus: int | None,
    gpus: int | None,
    form: str,
    assignments: tuple[str, ...],
    storage: str | None,
) -> None:
    """Print what the sweep that FILE describes will cost, and write it beside the sweep; starts no trial."""
    spec = _spec(file, name, trials, assignments)
    storage = _storage(spec, storage)
    from sweeps.plan_text import plan_lines
    from sweeps.planner import plan_sweep

    ledger = api.load(like, storage).ledger if like else None
    planned = plan_sweep(spec, storage, measure=measure, like=ledger, cpus=cpus, gpus=gpus)
    if form == "json":
        click.echo(json.dumps(planned.to_dict(), indent=1, sort_keys=True))
    else:
        _print_lines(plan_lines(planned))


def _storage(spec: SweepSpec, storage: str | None) -> str:
    """The storage of the command line, or of the sweep's file."""
    return storage or spec.storage or DEFAULT


def _spec(
    file: str, name: str | None, trials: int | None, assignments: tuple[str, ...], time: str | None = None
) -> SweepSpec:
    given = {"name": name, "budget.trials": trials, "budget.time": time}
    overrides = {key: value for key, value in given.items() if value is not None}
    return load_spec(file, overrides=overrides, config_overrides=parse_overrides(assignments))


time_option = click.option("--time", metavar="DURATION", help="Time of the search in all, such as 90m or 2h.")
recipe_option = click.option("--recipe", help="Instead of FILE: the recipe or config file that a grid starts from.")
grid_option = click.option(
    "--grid", "grids", multiple=True, metavar="KEY=A,B", help="Values of a setting; all combinations run."
)


@main.command()
@click.argument("file", required=False)
@recipe_option
@grid_option
@name_option
@trials_option
@time_option
@click.option("--dry-run", is_flag=True, help="Only plan it: what it will cost, measured here; starts no trial.")
@click.option("--resume", "or_resume", is_flag=True, help="If the sweep exists already, continue it as it was started.")
@click.option("--revise", is_flag=True, help="With --resume: continue it with what FILE and the options say now.")
@set_option
@storage_of_file_option
@address_option
@wait_option
def run(
    file: str | None,
    recipe: str | None,
    grids: tuple[str, ...],
    name: str | None,
    trials: int | None,
    time: str | None,
    dry_run: bool,
    or_resume: bool,
    revise: bool,
    assignments: tuple[str, ...],
    storage: str | None,
    address: str | None,
    wait: float | None,
) -> None:
    """Run the sweep that FILE describes, or the grid of --grid, from data to winner."""
    _check_source(file, recipe, grids)
    if revise and not or_resume:
        raise click.UsageError("--revise goes with --resume")
    if file is not None:
        spec = _spec(file, name, trials, assignments, time)
    else:
        spec, text = _shown_grid(name, recipe, grids, assignments, trials, time)
        if not dry_run:
            _keep_grid(spec, text, storage or DEFAULT)
    storage = _storage(spec, storage)
    if dry_run:
        from sweeps.plan_text import plan_lines
        from sweeps.planner import plan_sweep

        _print_lines(plan_lines(plan_sweep(spec, storage)))
        return

    def again() -> str:
        begun = is_sweep(working_folder(storage) / spec.name)
        return _resume_command(spec.name, storage, address) if begun else "the same command"

    with _exit_codes(again):
        sweep = api.start(spec, storage=storage, address=address, or_resume=or_resume, revise=revise, wait_seconds=wait)
        _print_status(sweep.ledger, storage)


def _check_source(file: str | Path | None, recipe: str | None, grids: tuple[str, ...]) -> None:
    if (file is None) == (not grids):
        raise click.UsageError("give either a FILE or --grid KEY=A,B (one or more)")
    if file is not None and recipe is not None:
        raise click.UsageError("--recipe goes with --grid; a FILE names its own base")


def _keep_grid(spec: SweepSpec, text: str, storage: str) -> None:
    """The file that says what the grid is, beside the ledger."""
    from genrec.durable import write_text

    path = working_folder(storage) / spec.name / "sweep.yaml"
    if not has_sweep(spec.name, storage):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        click.echo(f"kept as {path}", err=True)


def _shown_grid(
    name: str | None,
    recipe: str | None,
    grids: tuple[str, ...],
    assignments: tuple[str, ...],
    trials: int | None,
    time: str | None,
) -> tuple[SweepSpec, str]:
    """The spec of a grid, and the file that says the same, which is shown."""
    from sweeps.quick_grid import SOURCE, grid_yaml

    text = grid_yaml(name, recipe, grids, assignments, trials, time)
    spec = parse_spec(text, SOURCE)
    click.echo(text, err=True)
    return spec, text


@main.command()
@click.argument("name")
@click.option("--trials", type=click.IntRange(min=1), help="Number of trials from now on, the earlier ones included.")
@time_option
@click.option("--file", metavar="FILE", help="The sweep's file, edited: a wider space, other finalists or resources.")
@set_option
@click.option("--accept-data", is_flag=True, help="Go on although the data are not those of the recorded trials.")
@click.option("--accept-code", is_flag=True, help="Go on although the code of the stages is not that of the trials.")
@storage_option
@address_option
@wait_option
def resume(
    name: str,
    trials: int | None,
    time: str | None,
    file: str | None,
    assignments: tuple[str, ...],
    accept_data: bool,
    accept_code: bool,
    storage: str,
    address: str | None,
    wait: float | None,
) -> None:
    """Continue a sweep after a crash, a kill or an interruption, or with more to do.

    What changes is recorded as a revision; what contradicts the recorded trials is refused. What the sweep was started
    with by --set holds on where the FILE names no other value.
    """
    with _exit_codes(_resume_command(name, storage, address)):
        before = api.load(name, storage)
        sweep = api.resume(
            name,
            trials=trials,
            time=time,
            file=file,
            settings=parse_overrides(assignments),
            accept_data=accept_data,
            accept_code=accept_code,
            storage=storage,
            address=address,
            wait_seconds=wait,
        )
        if before.state == "finished" and sweep.ledger.revisions == before.ledger.revisions:
            click.echo(f"{name} is finished; nothing to do")
        _print_status(sweep.ledger, storage)


@main.command()
@click.argument("name")
@click.option("--top-k", type=click.IntRange(min=1), help="How many trials; default: as before.")
@click.option("--seeds", type=click.IntRange(min=1), help="Seeds of each; 1 measures the models of the search.")
@storage_option
@address_option
@wait_option
def reevaluate(
    name: str, top_k: int | None, seeds: int | None, storage: str, address: str | None, wait: float | None
) -> None:
    """Choose the winner of NAME again, from more trials or with more seeds; what is measured is kept."""
    with _exit_codes(_resume_command(name, storage, address)):
        sweep = api.reevaluate(name, top_k, seeds, storage=storage, address=address, wait_seconds=wait)
        _print_status(sweep.ledger, storage)


@main.command()
@click.argument("a")
@click.argument("b")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="Seeds of each.")
@click.option("--metric", help="Metric of the test; default: what A is monitored by.")
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", show_default=True)
@click.option("--cpus", type=click.FloatRange(min=0, min_open=True), help="Of one training; default 1.")
@click.option("--gpus", type=click.FloatRange(min=0), help="Of one training, may be a part; default 0.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@set_option
@storage_option
@address_option
def compare(
    a: str,
    b: str,
    seeds: int,
    metric: str | None,
    split: str,
    cpus: float | None,
    gpus: float | None,
    form: str,
    assignments: tuple[str, ...],
    storage: str,
    address: str | None,
) -> None:
    """Train A and B with the same seeds and test whether one is better, user by user.

    A and B are configs (a recipe or a file) or finished sweeps, which stand for their winners. What was trained before
    is not trained again.
    """
    overrides = parse_overrides(assignments)
    with _exit_codes("the same command"):
        from sweeps.resources import Resources

        resources = None
        if cpus is not None or gpus is not None:
            resources = Resources(cpus_per_worker=cpus or 1.0, gpus_per_worker=gpus or 0.0)
        found = api.compare(
            a,
            b,
            seeds,
            overrides,
            metric=metric,
            split=cast("Split", split),
            resources=resources,
            storage=storage,
            address=address,
        )
        if form == "json":
            click.echo(json.dumps(found.to_dict(), indent=1, sort_keys=True))
        else:
            _print_lines(str(found).splitlines())


@main.command()
@click.argument("name")
@storage_option
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--watch", "watched", is_flag=True, help="First look on until the sweep ends; from any machine.")
def status(name: str, storage: str, form: str, watched: bool) -> None:
    """Print what a sweep has come to; reads the ledger only."""
    with _exit_codes(sweeps_command("status", name, *(["--watch"] if watched else []), storage=storage)):
        sweep = api.load(name, storage)
        if watched:
            from rich.console import Console

            from sweeps.watch import watch

            watch(sweep.ledger, Console(stderr=form == "json"), refresh=lambda: api.load(name, storage))
        if form == "json":
            click.echo(json.dumps(sweep.status(), indent=1, sort_keys=True))
        else:
            _print_status(sweep.ledger, storage)


@main.command()
@click.argument("name")
@storage_option
def sync(name: str, storage: str) -> None:
    """Upload to Weights & Biases what the trials of NAME wrote offline; what has arrived is not sent again."""
    with _exit_codes(sweeps_command("sync", name, storage=storage)):
        from genrec.uploads import upload
        from sweeps.folders import tracking_folder

        count = upload(tracking_folder(name, storage), say=lambda line: click.echo(line, err=True))
        click.echo(f"{name}: {count} runs uploaded" if count else f"{name}: nothing to upload")


@main.command()
@click.argument("name")
@storage_option
@click.option("--out", type=click.Path(file_okay=False), help="Folder of the report; default: `report` in the sweep's.")
@click.option("--csv", "only_csv", is_flag=True, help="Only print the trials as CSV.")
@click.option("--markdown", "only_markdown", is_flag=True, help="Only print the report as Markdown.")
@click.option("--wandb", "to_wandb", is_flag=True, help="Then publish it as a Report of Weights & Biases.")
@click.option("--dry-run", is_flag=True, help="With --wandb: only print what would be published.")
def report(
    name: str, storage: str, out: str | None, only_csv: bool, only_markdown: bool, to_wandb: bool, dry_run: bool
) -> None:
    """Write what NAME has come to as a page with pictures, Markdown and CSV; also while it runs."""
    if only_csv + only_markdown + to_wandb > 1:
        raise click.UsageError("--csv, --markdown and --wandb exclude each other")
    if dry_run and not to_wandb:
        raise click.UsageError("--dry-run goes with --wandb")
    with _exit_codes(sweeps_command("report", name, *(["--wandb"] if to_wandb else []), storage=storage)):
        from sweeps.report import make_document
        from sweeps.report.markdown import markdown
        from sweeps.report.spreadsheet import trials_csv

        sweep = api.load(name, storage)
        if only_csv:
            click.echo(trials_csv(sweep.ledger), nl=False)
        elif only_markdown:
            click.echo(markdown(make_document(sweep.ledger)), nl=False)
        elif not dry_run:
            _print_lines(str(path) for path in sweep.report(out) if path is not None)
        if to_wandb:
            _wandb_report(sweep, out, publish=not dry_run)


def _wandb_report(sweep: api.Sweep, out: str | None, *, publish: bool) -> None:
    """Publish the report, or print what would be published; say which runs its panels can't show yet."""
    from sweeps.wandb_report import make_report, outline, upload_advice

    if advice := upload_advice(sweep.ledger):
        click.echo(printable(advice), err=True)
    if publish:
        click.echo(printable(sweep.publish_report(out)))
    else:
        _print_lines(outline(make_report(sweep.ledger, Path(out) if out else None)))


@main.command()
@click.argument("name")
@storage_option
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
def dashboard(name: str, storage: str, port: int) -> None:
    """Look at NAME in optuna-dashboard, on this machine, until Ctrl-C; it can change nothing."""
    with _exit_codes(sweeps_command("dashboard", name, storage=storage)):
        from sweeps.dashboard import HOST, open_dashboard

        with open_dashboard(api.load(name, storage).ledger, port) as server:
            click.echo(f"http://{HOST}:{server.server_port}/dashboard/ (Ctrl-C ends it)")
            with suppress(KeyboardInterrupt):
                server.serve_forever()


@main.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@recipe_option
@grid_option
@click.option(
    "--address", required=True, envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard: http://HEAD:8265."
)
@click.option(
    "--storage",
    help="Folder of all sweeps on the cluster, absolute, seen by all nodes, or s3:// or gs://BUCKET/PREFIX; "
    "default: in FILE.",
)
@click.option("--pip", multiple=True, metavar="PACKAGE", help="Package that the cluster's image lacks; default: none.")
@click.option(
    "--wait/--no-wait", "follow", default=True, show_default=True, help="Follow the log and leave with its exit code."
)
@name_option
@trials_option
@time_option
@set_option
@wait_option
def submit(
    file: Path | None,
    recipe: str | None,
    grids: tuple[str, ...],
    address: str,
    storage: str | None,
    pip: tuple[str, ...],
    follow: bool,
    name: str | None,
    trials: int | None,
    time: str | None,
    assignments: tuple[str, ...],
    wait: float | None,
) -> None:
    """Run the sweep that FILE describes, or the grid of --grid, as a job of a Ray cluster.

    Again: join that job, or continue the sweep with what FILE and the options say now.
    """
    _check_source(file, recipe, grids)
    spec = (
        _spec(str(file), name, trials, assignments, time)
        if file is not None
        else _shown_grid(name, recipe, grids, assignments, trials, time)[0]
    )
    words = [word for grid in grids for word in ("--grid", grid)]
    words += [word for assignment in assignments for word in ("--set", assignment)]
    options = {"recipe": recipe, "name": name, "trials": trials, "time": time}
    words += [word for key, value in options.items() if value for word in (f"--{key}", str(value))]
    words += [] if wait is None else ["--wait-for-nodes", f"{wait:g}s"]
    with _exit_codes("the same command"):
        from sweeps.job_server import Cluster
        from sweeps.submission import Request

        request = Request(spec, file, words, _storage(spec, storage), pip)
        cluster = Cluster(address)
        job = cluster.submit(request, lambda line: click.echo(printable(line), err=True))
        stop = f"ray job stop --address {cluster.address} {job}"
        click.echo(f"it does not need this shell; the same command follows it, and this stops it: {stop}", err=True)
        if follow:
            end = cluster.follow(job, lambda line: click.echo(printable(line)))
            click.echo(printable(end.sentence), err=True)
            sys.exit(end.code)


def _print_status(ledger: Ledger, storage: str) -> None:
    from sweeps.leaderboard import status_lines

    _print_lines(status_lines(ledger, storage))


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(printable(line))


def _resume_command(name: str, storage: str, address: str | None) -> str:
    return sweeps_command("resume", name, *(["--address", address] if address else []), storage=storage)


@contextmanager
def _exit_codes(again: str | Callable[[], str]) -> Iterator[None]:
    """Errors of a running sweep, and signals, as sentences and exit codes; `again`: the command that continues."""

    def go_on() -> str:
        return again if isinstance(again, str) else again()

    try:
        with interruptible():
            yield
    except (LedgerError, SweepFailed) as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        signum = stop.signum if isinstance(stop, Interrupted) else signal.SIGINT
        click.echo(f"{str(stop) or 'interrupted'}; continue with: {go_on()}", err=True)
        sys.exit(ExitCode.of_signal(signum))
    except BrokenPipeError:
        raise  # click ends quietly when the reader of our output has gone
    except OSError as error:
        fail(f"{error}\nnothing recorded is lost; continue with: {go_on()}", ExitCode.ENVIRONMENT)


if __name__ == "__main__":
    main()
