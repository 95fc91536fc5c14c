"""Sweeps from Python and notebooks; the command line is a thin layer over this.

What goes wrong is raised: `InputError` for bad input (nothing was started), `LedgerError` for a record that cannot be
used so, `SweepFailed` when no trial succeeded, `Interrupted` (a `KeyboardInterrupt`) when a signal ended the sweep,
which `resume` continues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrec.config import RunConfig, with_values
from genrec.errors import InputError
from genrec.object_store import checked_storage
from sweeps.folders import DEFAULT as STORAGE
from sweeps.folders import folder_to_drive, has_sweep, storage_of, sweep_folder, sweeps_command, working_folder
from sweeps.interruption import interruptible
from sweeps.reuse import check_names
from sweeps.spec import SweepSpec
from sweeps.spec_file import load_spec
from sweeps.this_machine import require_here

if TYPE_CHECKING:
    import pandas as pd

    from genrec.data.interactions import Split
    from genrec.recommender import Recommender
    from sweeps.experiment import Experiment
    from sweeps.ledger import Ledger, Study
    from sweeps.report import ReportFiles
    from sweeps.resources import Resources


class Sweep:
    """A sweep's record, read anew at every access: a sweep that is running can be watched through it."""

    def __init__(self, folder: str | Path):
        """`folder`: the sweep's own, as `load` finds it by name."""
        from sweeps.ledger import Ledger

        self.folder = Path(folder)
        self.ledger: Ledger = Ledger.read(self.folder)

    def __repr__(self) -> str:
        return f"<Sweep {self.name}: {self.state}, {len(self.ledger.trials())} trials>"

    def __str__(self) -> str:
        """Leaderboard, finalists, verdict: what `sweeps status` prints."""
        from sweeps.leaderboard import status_lines

        return "\n".join(status_lines(self.ledger, storage_of(self.folder.parent)))

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def spec(self) -> SweepSpec:
        """What was asked for."""
        return self.ledger.spec

    @property
    def state(self) -> str:
        """`searching`, `finalists`, `finished`, `interrupted` or `failed`."""
        return self.ledger.state

    @property
    def study(self) -> Study:
        """The search as an Optuna study, for reading: `optuna.visualization` and `optuna.importance` take it."""
        return self.ledger.study

    @property
    def trials(self) -> pd.DataFrame:
        """One row a trial, indexed by its number: id, status, value of the metric, a column a parameter, and how it was
        run (epochs, seconds, seed, node, stages made and reused, reason of a stop or failure)."""
        from sweeps.frames import trials_frame

        return trials_frame(self.ledger)

    @property
    def curves(self) -> pd.DataFrame:
        """One row an epoch of a trial: trial, epoch, and all that was reported."""
        from sweeps.frames import curves_frame

        return curves_frame(self.ledger)

    @property
    def finalists(self) -> pd.DataFrame:
        """One row a re-evaluation: trial (or `base`), seed, status, and columns such as `test.ndcg@10`."""
        from sweeps.frames import finalists_frame

        return finalists_frame(self.ledger)

    @property
    def comparisons(self) -> pd.DataFrame:
        """One row a comparison of finalists: difference, interval, p-values, effect size, verdict."""
        from sweeps.frames import comparisons_frame

        return comparisons_frame(self.ledger)

    def status(self) -> dict[str, Any]:
        """Everything about the sweep as plain JSON types: what `sweeps status --format json` prints."""
        from sweeps.status import sweep_status

        return sweep_status(self.ledger)

    def best_config(self) -> RunConfig:
        """The winner's config; before there is a winner, that of the best trial so far."""
        from sweeps.finalists import best_config

        config = best_config(self.ledger)
        if config is None:
            raise InputError(f"sweep {self.name} has no trial with a result yet")
        return config

    def report(self, folder: str | Path | None = None) -> ReportFiles:
        """Write what the sweep has come to as a page with pictures, Markdown, CSV; by default to `report/` in its
        folder."""
        from sweeps.report import write_report

        return write_report(self.ledger, folder)

    def publish_report(self, folder: str | Path | None = None) -> str:
        """Publish the verdict and panels over the runs as a Report of Weights & Biases; returns its address.

        Its commands name the files of `folder`, which `report` wrote. The key comes from the environment or netrc.
        """
        from sweeps.wandb_report import publish

        return publish(self.ledger, Path(folder) if folder is not None else None)

    def recommender(self) -> Recommender:
        """The winner, ready to recommend."""
        from genrec.recommender import Recommender

        return Recommender.load(self.folder / "bundle")


def run(
    file: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    storage: str | Path | None = None,
    address: str | None = None,
    or_resume: bool = False,
    wait_seconds: float | None = None,
    quiet: bool = False,
) -> Sweep:
    """Run the sweep that `file` describes, from data to winner.

    Args:
        overrides: keys of the sweep (`name`, `budget.trials`) and settings of its base config (`train.epochs`).
        storage: folder of all sweeps, or URL of an object store (s3:// or gs://BUCKET/PREFIX); this one gets a folder
            by its name. By default what the file says.
        address: Ray cluster host:port or auto; a local Ray when None.
        or_resume: if a sweep of this name exists, continue it as it was started, instead of refusing.
        wait_seconds: for a node, when the cluster has no room for a single trial, at the start and later; by default
            300, at the start only where nodes come by themselves.
        quiet: show nothing while it runs.
    """
    own, settings = _sort_overrides(overrides or {})
    spec = load_spec(file, own, settings)
    return start(spec, storage=storage, address=address, or_resume=or_resume, wait_seconds=wait_seconds, quiet=quiet)


def start(
    spec: SweepSpec,
    *,
    storage: str | Path | None = None,
    address: str | None = None,
    or_resume: bool = False,
    revise: bool = False,
    wait_seconds: float | None = None,
    quiet: bool = False,
) -> Sweep:
    """`run` with a spec that is loaded already. `revise`: a sweep that is continued goes on with what `spec` says."""
    from sweeps.ledger import Ledger

    storage = storage or spec.storage or STORAGE
    folder = working_folder(storage) / spec.name
    if or_resume and (has_sweep(spec.name, storage) or Ledger.attach(folder, spec)):
        if revise:
            return _continue(load(spec.name, storage), spec, storage, address, quiet, wait_seconds=wait_seconds)
        if not quiet:
            _say_what_is_left_out(load(spec.name, storage).spec, spec, storage)
        return resume(spec.name, storage=storage, address=address, wait_seconds=wait_seconds, quiet=quiet)
    check_names(spec, storage)
    require_here(spec, address)
    return _drive(Ledger.create(folder, spec), address, quiet, is_new=True, wait_seconds=wait_seconds)


def resume(
    name: str,
    *,
    trials: int | None = None,
    time: float | str | None = None,
    file: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    accept_data: bool = False,
    accept_code: bool = False,
    storage: str | Path = STORAGE,
    address: str | None = None,
    wait_seconds: float | None = None,
    quiet: bool = False,
) -> Sweep:
    """Continue a sweep after a crash, a kill or an interruption, or with more to do. A finished one for which nothing
    changes is left as it is.

    Args:
        trials, time: other limits of the search, both in all, with what was run before; time in seconds or as `2h`.
        file: the sweep's file as it was edited: a wider space, other finalists, other resources. What contradicts the
            record raises `InputError` with a line for every key, and changes nothing. Settings of the base that the
            sweep was started with (`--set`) and that the file does not name stay as they are.
        settings: those of the base, by config path, to read the file with.
        accept_data, accept_code: go on although the data, or the code of the stages, are not those of the recorded
            trials.
        wait_seconds: as in `run`.
    """
    sweep = load(name, storage)
    limits = {key: value for key, value in (("trials", trials), ("time", time)) if value is not None}
    if file is not None:
        spec = load_spec(file, {"name": name}, settings, config_defaults=sweep.spec.set)
    else:
        spec = _with_settings(sweep.spec, settings or {})
    if limits:
        data = spec.to_dict()
        spec = SweepSpec.from_dict(data | {"budget": data["budget"] | limits})
    return _continue(
        sweep,
        spec,
        storage,
        address,
        quiet,
        accept_data=accept_data,
        accept_code=accept_code,
        wait_seconds=wait_seconds,
    )


def _continue(
    sweep: Sweep,
    spec: SweepSpec,
    storage: str | Path,
    address: str | None,
    quiet: bool,
    *,
    accept_data: bool = False,
    accept_code: bool = False,
    wait_seconds: float | None = None,
) -> Sweep:
    """Go on with a sweep as `spec` says; what contradicts its record raises `InputError`."""
    from sweeps.ledger import Ledger

    if sweep.state == "finished" and spec == sweep.spec:
        return sweep
    if spec.reuse != sweep.spec.reuse:
        check_names(spec, storage)
    require_here(spec, address)
    return _drive(
        Ledger.open(folder_to_drive(spec.name, storage)),
        address,
        quiet,
        spec=spec,
        accept_data=accept_data,
        accept_code=accept_code,
        wait_seconds=wait_seconds,
    )


def _with_settings(spec: SweepSpec, settings: Mapping[str, Any]) -> SweepSpec:
    """The spec as it would be had it been read with these settings of the base."""
    if not settings:
        return spec
    data = spec.to_dict()
    values = with_values(data["base_values"], settings)
    return SweepSpec.from_dict(data | {"set": data["set"] | dict(settings), "base_values": values})


def _say_what_is_left_out(started: SweepSpec, asked: SweepSpec, storage: str | Path) -> None:
    """A sweep that is continued as it was started takes nothing from a file that was edited since."""
    from rich.console import Console
    from rich.text import Text

    from sweeps.revisions import described, difference

    lines = described(difference(started.to_dict(), asked.to_dict()))
    if lines:
        go_on = sweeps_command("resume", started.name, "--file", "FILE", storage=storage)
        fix = f"with what is asked for it goes on by: {go_on}"
        text = "\n".join([f"warning: {started.name} continues as it was started, without:", *lines, fix])
        Console(stderr=True).print(Text(text), soft_wrap=True)


def load(name: str, storage: str | Path = STORAGE) -> Sweep:
    """A sweep that was started, whatever its state."""
    return Sweep(sweep_folder(name, storage))


def reevaluate(
    name: str,
    top_k: int | None = None,
    seeds: int | None = None,
    *,
    storage: str | Path = STORAGE,
    address: str | None = None,
    wait_seconds: float | None = None,
    quiet: bool = False,
) -> Sweep:
    """Choose finalists again from a sweep whose search is done: other numbers of trials or seeds.

    What has been measured is kept; winner, verdict, `best.yaml` and bundle are those of the new comparison.
    """
    from sweeps.ledger import Ledger

    chosen = {key: value for key, value in (("top_k", top_k), ("seeds", seeds)) if value is not None}
    if any(value < 1 for value in chosen.values()):
        raise InputError(f"top_k and seeds must be 1 or more, got {chosen}")
    sweep = load(name, storage)
    if sweep.ledger.fact("phase") not in ("finalists", "finished"):
        go_on = sweeps_command("resume", name, storage=storage)
        raise InputError(f"sweep {name}: its search is not done yet; continue with: {go_on}")
    require_here(sweep.spec, address)
    ledger = Ledger.open(folder_to_drive(name, storage))

    def begin() -> None:
        known = ledger.fact("reevaluation") or {}
        ledger.set_fact("reevaluation", known | chosen | {"revisions": len(ledger.revisions)})
        ledger.mark("finalists")

    return _drive(ledger, address, quiet, on_ready=begin, wait_seconds=wait_seconds)


def compare(
    a: str | Path,
    b: str | Path,
    seeds: int = 3,
    overrides: Mapping[str, Any] | None = None,
    *,
    metric: str | None = None,
    split: Split = "test",
    resources: Resources | None = None,
    storage: str | Path = STORAGE,
    address: str | None = None,
    quiet: bool = False,
) -> Experiment:
    """An A/B experiment: two configs, or the winners of two sweeps, each with several seeds, user by user.

    Args:
        a, b: a recipe, a config file, or the name of a finished sweep. Stages that exist are reused.
        overrides: settings of both, by config path.
        metric: by default what A's `evaluation.monitor` names.
        split: `validation` leaves the test split unread.
        resources: of one training; by default one CPU, or what a sweep among the two had.
    """
    from rich.text import Text

    from sweeps.experiment import run_experiment
    from sweeps.live import DriverConsole

    console = DriverConsole(quiet)
    with interruptible():
        return run_experiment(
            str(a),
            str(b),
            seeds,
            overrides or {},
            metric=metric,
            split=split,
            resources=resources,
            storage=checked_storage(storage),
            address=address,
            say=lambda line: console.print(Text(line), soft_wrap=True),
        )


def _sort_overrides(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of the sweep, and those of its base config; what both have is the sweep's."""
    settings = {
        key: value
        for key, value in overrides.items()
        if (top := key.split(".")[0]) in RunConfig.model_fields and top not in SweepSpec.model_fields
    }
    return {key: value for key, value in overrides.items() if key not in settings}, settings


def _drive(
    ledger: Ledger,
    address: str | None,
    quiet: bool,
    *,
    is_new: bool = False,
    spec: SweepSpec | None = None,
    accept_data: bool = False,
    accept_code: bool = False,
    on_ready: Callable[[], None] = lambda: None,
    wait_seconds: float | None = None,
) -> Sweep:
    """Drive an open ledger to its end and close it. `is_new`: begun by the caller; if it is refused before its first
    trial, it is taken back. `spec`: what it becomes. `on_ready`: see `drive`."""
    from sweeps.circumstances import note_session
    from sweeps.driver import drive
    from sweeps.live import DriverConsole, LiveView
    from sweeps.notify import told

    with interruptible(), ledger:
        view = LiveView(ledger, DriverConsole(quiet))
        try:
            note_session(ledger, view.say, accept_data=accept_data, accept_code=accept_code)
            if spec is not None:
                ledger.revise(spec)
            with told(ledger, view.say), view.shown():
                drive(
                    ledger,
                    address=address,
                    on_event=view.on_event,
                    say=view.say,
                    on_ready=on_ready,
                    wait_seconds=wait_seconds,
                )
        except (InputError, ConnectionError):
            if is_new and not ledger.trials():
                ledger.discard()
            raise
    return Sweep(ledger.folder)
