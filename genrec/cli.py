"""`genrec`: one model from data to recommendations. Thin commands: parse, call the library, print.

torch is imported only when there is work to do, so a bad config is refused at once.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from genrec.config import ConfigError, RunConfig, load_config, nearest, parse_overrides, recipe_names
from genrec.errors import InputError

if TYPE_CHECKING:
    from genrec.data.interactions import Split

logger = logging.getLogger("genrec")


class Commands(click.Group):
    """A group whose commands end bad input with a sentence and exit code 2 instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            if ctx.params.get("debug"):
                raise
            fail(str(error))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(error.format_message().rstrip(".") + nearest(args[0], self.commands)) from None


def fail(message: str, code: int = 2) -> None:
    """Print `error: ...` for every line of the message and leave with `code`."""
    for line in message.splitlines() or ["unknown error"]:
        click.echo(f"error: {line}", err=True)
    sys.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="genrec-sweeps")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Train TIGER and its item tokenizers, evaluate them on items, recommend with them.

    CONFIG is the name of a recipe or a YAML file; without one the defaults (an embedded catalogue) are used.
    """


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """CONFIG, --set, --store and --threads, which all training commands share."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores when left out."),
        click.option("--store", default="runs/.artifacts", show_default=True, help="Folder of the stages' artifacts."),
        click.option(
            "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a setting; may be repeated."
        ),
        click.argument("config", required=False, metavar="[CONFIG]"),
    ):
        command = option(command)
    return command


@main.command()
@run_options
def prepare(config: str | None, assignments: tuple[str, ...], store: str, threads: int | None) -> None:
    """Read the data, embed the item texts, print the statistics."""
    run, artifacts = _start(config, assignments, store, threads)
    from genrec.pipeline import open_interactions, run_pipeline, stage_keys

    run_pipeline(run, artifacts, until="embeddings")
    for name, value in open_interactions(artifacts, stage_keys(run)).statistics().items():
        click.echo(f"{name:>16}  {value:.6g}")


@main.command()
@run_options
def tokenize(config: str | None, assignments: tuple[str, ...], store: str, threads: int | None) -> None:
    """Train the tokenizer, give every item its semantic ID, print the IDs' health."""
    run, artifacts = _start(config, assignments, store, threads)
    from genrec.pipeline import open_ids, run_pipeline, stage_keys

    run_pipeline(run, artifacts, until="semantic_ids")
    ids = open_ids(artifacts, stage_keys(run))
    for name, value in ids.health.to_dict().items():
        click.echo(f"{name:>16}  {value}")


@main.command()
@run_options
@click.option("--out", default=None, help="Folder of the bundle; default runs/models/CONFIG-HASH.")
def train(config: str | None, assignments: tuple[str, ...], store: str, threads: int | None, out: str | None) -> None:
    """Run all stages and leave a bundle that `genrec recommend` uses. Continues where a killed run stopped."""
    run, artifacts = _start(config, assignments, store, threads)
    from genrec.pipeline import open_tiger, run_pipeline
    from genrec.recommender import export_bundle

    run_pipeline(run, artifacts)
    folder = export_bundle(run, artifacts, Path(out) if out else Path("runs/models") / run.hash)
    _, facts = open_tiger(folder)
    best = facts["best"]
    click.echo(f"best epoch {best['epoch']} of {len(facts['rows'])} by validation {run.evaluation.monitor}:")
    for k in run.evaluation.ks:
        click.echo(f"  recall@{k} {best[f'recall@{k}']:.4f}   ndcg@{k} {best[f'ndcg@{k}']:.4f}")
    click.echo(f"bundle: {folder}")
    click.echo(f"next:   genrec evaluate {folder}")


@main.command()
@click.argument("bundle", required=False, type=click.Path(exists=True, file_okay=False))
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", show_default=True)
@click.option("--store", default="runs/.artifacts", show_default=True, help="Folder of the stages' artifacts.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores when left out.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def evaluate(bundle: str | None, split: str, store: str, threads: int | None, form: str) -> None:
    """Measure a bundle on all users, beside the baselines and, where the truth is known, the oracle.

    Without BUNDLE the newest below runs/ is taken.
    """
    from genrec.artifacts import ArtifactStore
    from genrec.comparison import measure_bundle

    _set_threads(threads)
    result = measure_bundle(_bundle(bundle), ArtifactStore(store), cast("Split", split))
    if form == "json":
        click.echo(json.dumps(result, indent=1, sort_keys=True))
        return
    columns = [name for name in result["rows"]["tiger"] if "@" in name and not name.startswith("tuple_")]
    click.echo(f"{'':32}" + "".join(f"{name:>11}" for name in columns))
    for row, metrics in result["rows"].items():
        click.echo(f"{row:32}" + "".join(f"{metrics[name]:11.4f}" for name in columns))
    protocol = result["protocol"]
    click.echo("  ".join(f"{name}: {value}" for name, value in protocol.items()))


@main.command()
@click.argument("bundle", required=False, type=click.Path(exists=True, file_okay=False))
@click.option("--history", required=True, metavar="ID,ID,...", help="Item ids, oldest first.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="How many items.")
@click.option("--exclude-seen/--keep-seen", default=None, help="Leave out the history's items; default as evaluated.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def recommend(bundle: str | None, history: str, k: int, exclude_seen: bool | None, form: str) -> None:
    """Print the next items for a history: id, log-probability, title.

    Without BUNDLE the newest below runs/ is taken.
    """
    from genrec.recommender import Recommender

    recommender = Recommender.load(_bundle(bundle))
    items = [item.strip() for item in history.split(",") if item.strip()]
    found = recommender.recommend([items], k, exclude_seen)[0]
    if form == "json":
        click.echo(json.dumps([vars(r) for r in found], indent=1))
        return
    for item in items:
        click.echo(f"history  {printable(item):14}          {printable(recommender.titles[recommender.index[item]])}")
    for place, r in enumerate(found, 1):
        click.echo(f"{place:7}  {printable(r.item):14} {r.score:8.3f} {printable(r.title)}")


@main.command()
def recipes() -> None:
    """List the recipes shipped with the package."""
    for name in recipe_names():
        click.echo(name)


def printable(text: str) -> str:
    """Text of foreign origin without control characters, so that a title cannot drive the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _start(config: str | None, assignments: tuple[str, ...], store: str, threads: int | None) -> tuple[RunConfig, Any]:
    run = load_config(config, parse_overrides(assignments))
    from genrec.artifacts import ArtifactStore

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    _set_threads(threads)
    return run, ArtifactStore(store)


def _bundle(given: str | None) -> Path:
    """The bundle that was named, or the newest that a sweep or `genrec train` has left."""
    if given:
        return Path(given)
    found = [*Path("runs").glob("*/bundle/model"), *Path("runs/models").glob("*/model")]
    if not found:
        raise ConfigError(["no bundle below runs/; name one, or make one by genrec train or sweeps run"])
    newest = max(found, key=lambda path: path.stat().st_mtime).parent
    click.echo(f"bundle: {newest}", err=True)
    return newest


def _set_threads(threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
