"""`genrec`: one model from data to recommendations. Thin commands: parse, call the library, print.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 2 bad input (nothing started), 3 training has
diverged, 4 storage, 130 interrupted and resumable. torch is imported only when there is work to do, so a bad config is
refused at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from genrec.config import ConfigError, Model, RunConfig, load_config, parse_overrides, recipe_files, schema_text
from genrec.errors import nearest
from genrec.terminal import Commands, printable

if TYPE_CHECKING:
    from genrec.artifacts import ArtifactStore
    from genrec.data.interactions import Split
    from genrec.ranking import Seen

logger = logging.getLogger("genrec")
MODELS = ("tiger", "rqvae")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="genrec-sweeps")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Train TIGER and its item tokenizers, evaluate them on items, recommend with them.

    CONFIG is the name of a recipe, a YAML file or a gin file; without one the defaults (an embedded catalogue) are
    used.
    """


# ------------------------------------------------------------ options shared

threads_option = click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores when left out.")
store_option = click.option(
    "--store", help="Folder or URL (s3://, gs://) of the stages' artifacts; default SAVE_DIR_ROOT/.artifacts."
)
format_option = click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
history_metavar = "ID,ID,..."
bundles_argument = click.argument(
    "bundles", nargs=-1, metavar="[BUNDLE]...", type=click.Path(exists=True, file_okay=False)
)


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """What all commands share that run stages of a config."""
    for option in (
        threads_option,
        store_option,
        click.option("--raw-dir", metavar="FOLDER", help="Folder of the data's files, which are there already."),
        click.option(
            "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a setting; may be repeated."
        ),
    ):
        command = option(command)
    return command


config_argument = click.argument("config", required=False, metavar="[CONFIG]")


def _start(
    config: str | None,
    assignments: Sequence[str],
    raw_dir: str | None,
    store: str | None,
    threads: int | None,
    model: Model = "tiger",
) -> tuple[RunConfig, ArtifactStore]:
    """The config, all faults told, and the store; then logging, and torch."""
    overrides = parse_overrides(assignments)
    if raw_dir is not None:
        if "dataset.dataset_folder" in overrides:
            raise ConfigError(["--raw-dir and --set dataset.dataset_folder say the same; give one"])
        overrides["dataset.dataset_folder"] = raw_dir
    run = load_config(config, overrides, model=model, tell=_tell)
    if raw_dir is not None and run.dataset.source == "synthetic":
        raise ConfigError([f"--raw-dir {raw_dir}: dataset.source is 'synthetic', which reads no files"])
    from genrec.artifacts import open_store
    from genrec.training import default_store

    level = logging.INFO if _speaks() else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    _set_threads(threads)
    return run, open_store(store) if store else default_store(run)


def _speaks() -> bool:
    """Whether this is the process that prints: of the workers of a launcher, the first."""
    return os.environ.get("RANK", "0") == "0"


def _tell(line: str) -> None:
    if _speaks():
        click.echo(printable(line), err=True)


def _say(line: str = "") -> None:
    if _speaks():
        click.echo(line)


def _set_threads(threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


# -------------------------------------------------------------------- training


@main.command()
@config_argument
@run_options
def prepare(config: str | None, **options: Any) -> None:
    """Read the data, embed the item texts, print the statistics."""
    run, artifacts = _start(config, **options)
    from genrec.pipeline import open_interactions, run_pipeline, stage_keys

    run_pipeline(run, artifacts, until="embeddings")
    for name, value in open_interactions(artifacts, stage_keys(run)).statistics().items():
        _say(f"{name:>24}  {value:.6g}")


@main.command()
@config_argument
@run_options
def tokenize(config: str | None, **options: Any) -> None:
    """Train the tokenizer, give every item its semantic ID, print the IDs' health."""
    run, artifacts = _start(config, **options)
    _tokenize(run, artifacts, None)


@main.command()
@click.argument("words", nargs=-1, metavar="[tiger|rqvae] [CONFIG]")
@click.option("--out", help="Folder of the bundle; default SAVE_DIR_ROOT/models/CONFIG-HASH.")
@run_options
def train(words: tuple[str, ...], out: str | None, **options: Any) -> None:
    """Run all stages and leave a bundle that `genrec recommend` uses. Continues where a killed run stopped.

    `train rqvae` trains the tokenizer alone; what it leaves can be another run's pretrained_rqvae_path.
    """
    model, config = _model_and_config(words)
    run, artifacts = _start(config, **options, model=model)
    if model == "rqvae":
        if run.tokenizer.kind != "rqvae":
            raise ConfigError([f"tokenizer.kind is {run.tokenizer.kind!r}; fix: --set tokenizer.kind=rqvae"])
        _tokenize(run, artifacts, out)
        return
    from genrec.training import train_model

    trained = train_model(run, store=artifacts, out=out)
    best = trained.best
    if run.train.refit:
        _say(f"epoch {best['epoch']}, the last; validation items were learnt too, so only the test split can tell more")
    else:
        _say(f"best epoch {best['epoch']} of {len(trained.rows)} by validation {run.evaluation.monitor}:")
        for k in run.evaluation.ks:
            found = [f"{name}@{k} {best[f'{name}@{k}']:.4f}" for name in ("recall", "ndcg") if f"{name}@{k}" in best]
            _say("  " + "   ".join(found))
    _say(f"bundle: {trained.bundle}")
    _say(f"next:   genrec evaluate {trained.bundle}")


def _model_and_config(words: tuple[str, ...]) -> tuple[Model, str | None]:
    """`[tiger|rqvae] [CONFIG]`, either of which may be left out."""
    model = words[0] if words and words[0] in MODELS else None
    rest = words[1:] if model else words
    if len(rest) > 1:
        hint = nearest(rest[0], MODELS)
        raise click.UsageError(f"got {' '.join(words)!r}; expected [{'|'.join(MODELS)}] [CONFIG]{hint}")
    return cast(Model, model or "tiger"), rest[0] if rest else None


def _tokenize(run: RunConfig, artifacts: ArtifactStore, out: str | None) -> None:
    from genrec.inspection import inspect_ids
    from genrec.pipeline import open_interactions, stage_keys
    from genrec.training import train_tokenizer_model

    trained = train_tokenizer_model(run, store=artifacts, out=out)
    _say(inspect_ids(trained.ids, open_interactions(artifacts, stage_keys(run)).catalogue))
    _say(f"tokenizer: {trained.folder}")
    _say(f"next:      --set tokenizer.pretrained_rqvae_path={trained.folder}")


def train_from_file(path: str | Path, overrides: Sequence[str] = (), model: Model = "tiger") -> None:
    """`genrec train MODEL PATH --set OVERRIDE ...`, for the trainers that are run as programs."""
    assignments = [part for override in overrides for part in ("--set", override)]
    main(["train", model, str(path), *assignments], prog_name="genrec")


# ----------------------------------------------------------------- looking on


@main.command()
@click.argument("target", required=False, metavar="[BUNDLE|CONFIG]")
@click.option("--picture", metavar="PATH", help="Draw how items spread over the codes, as .png or .svg.")
@click.option("--curves", metavar="PATH", help="Draw the learning curves of a bundle, as .png or .svg.")
@click.option("--attention", metavar="PATH", help="Draw where a bundle's encoder looks in --history, as .png or .svg.")
@click.option("--history", metavar=history_metavar, help="Item ids, oldest first, for --attention and --html.")
@click.option("--html", "page", metavar="PATH", help="Write table and pictures to one page that opens offline.")
@run_options
def inspect(
    target: str | None,
    picture: str | None,
    curves: str | None,
    attention: str | None,
    history: str | None,
    page: str | None,
    **options: Any,
) -> None:
    """Print the health of the semantic IDs of a bundle or a config, and draw them.

    For a config the tokenizer is trained first, if it is not in the store.
    """
    if (attention and not history) or (history and not (attention or page)):
        raise click.UsageError("--attention and --history go together")
    if target is not None and Path(target).is_dir():
        _inspect_bundle(Path(target), picture, curves, attention, history, page)
        return
    if curves or history:
        raise click.UsageError(f"--curves and --attention need the folder of a bundle, got {target or 'nothing'}")
    run, artifacts = _start(target, **options)
    from genrec.inspection import draw_ids, ids_figure, inspect_ids
    from genrec.inspection_page import write_page
    from genrec.pipeline import open_ids, open_interactions, run_pipeline, stage_keys

    run_pipeline(run, artifacts, until="semantic_ids")
    ids, items = open_ids(artifacts, stage_keys(run)), open_interactions(artifacts, stage_keys(run)).catalogue
    _say(inspect_ids(ids, items))
    if picture:
        _tell(f"picture: {draw_ids(ids, items, picture)}")
    if page:
        title = f"Semantic IDs of {target or 'the default config'}"
        figures = {"Code usage": ids_figure(ids, items)}
        _tell(f"page: {write_page(page, title, inspect_ids(ids, items), figures)}")


def _inspect_bundle(
    bundle: Path,
    picture: str | None,
    curves: str | None,
    attention: str | None,
    history: str | None,
    page: str | None,
) -> None:
    from genrec.data.interactions import Items
    from genrec.inspection import draw_ids, ids_figure, inspect_ids
    from genrec.inspection_page import write_page
    from genrec.pictures import attention_figure, curves_figure, draw_attention, draw_curves
    from genrec.pipeline import open_tiger
    from genrec.recommender import Recommender

    recommender = Recommender.load(bundle)
    ids, items = recommender.semantic_ids(), Items(recommender.ids, recommender.titles, recommender.titles)
    _say(inspect_ids(ids, items))
    if picture:
        _tell(f"picture: {draw_ids(ids, items, picture)}")
    if curves:
        _tell(f"curves: {draw_curves(open_tiger(bundle)[1]['rows'], curves)}")
    if attention:
        _tell(f"attention: {draw_attention(recommender, _items_of(str(history)), attention)}")
    if page:
        figures = {
            "Code usage": ids_figure(ids, items),
            "Learning curves": curves_figure(open_tiger(bundle)[1]["rows"]),
        }
        if history:
            figures["Attention of the history"] = attention_figure(recommender, _items_of(history))
        _tell(f"page: {write_page(page, f'Bundle {bundle.name}', inspect_ids(ids, items), figures)}")


@main.command()
@bundles_argument
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", show_default=True)
@click.option(
    "--seen",
    type=click.Choice(["keep", "exclude", "both"]),
    help="Whether items of the history may be recommended; both: a table each; default as trained.",
)
@click.option("--beam", type=click.IntRange(min=1), help="Width of the beams; default as trained.")
@store_option
@threads_option
@format_option
def evaluate(
    bundles: tuple[str, ...],
    split: str,
    seen: str | None,
    beam: int | None,
    store: str | None,
    threads: int | None,
    form: str,
) -> None:
    """Measure a bundle on all users, beside blends, baselines and, where the truth is known, the oracle.

    Several bundles of one dataset, such as seeds of a config, are also measured as an ensemble. Without BUNDLE the
    newest below runs/ is taken.
    """
    folders = _bundles(bundles)
    from genrec.artifacts import open_store
    from genrec.comparison import measure_bundles, table_lines
    from genrec.config import validate_config
    from genrec.pipeline import open_tiger
    from genrec.training import default_store

    _set_threads(threads)
    artifacts = open_store(store) if store else default_store(validate_config(open_tiger(folders[0])[1]["config"]))
    protocols = cast("list[Seen | None]", ["keep", "exclude"] if seen == "both" else [seen])
    measured = [measure_bundles(folders, artifacts, cast("Split", split), protocol, beam) for protocol in protocols]
    if form == "json":
        named = {found["protocol"]["seen"]: found for found in measured}
        _say(json.dumps(named if seen == "both" else measured[0], indent=1, sort_keys=True))
        return
    for number, found in enumerate(measured):
        if number:
            _say()
        for line in table_lines(found):
            _say(line)


@main.command()
@bundles_argument
@click.option("--history", required=True, metavar=history_metavar, help="Item ids, oldest first.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="How many items.")
@click.option("--exclude-seen/--keep-seen", default=None, help="Leave out the history's items; default as evaluated.")
@format_option
def recommend(bundles: tuple[str, ...], history: str, k: int, exclude_seen: bool | None, form: str) -> None:
    """Print the next items for a history: id, score, title.

    Of several bundles over one catalogue the mean of their probabilities counts. Without BUNDLE the newest below runs/
    is taken.
    """
    folders = _bundles(bundles)
    from genrec.recommender import Recommender

    recommender = Recommender.load(*folders)
    items = _items_of(history)
    found = recommender.recommend([items], k, exclude_seen)[0]
    if form == "json":
        _say(json.dumps([vars(r) for r in found], indent=1))
        return
    for item in items:
        _say(f"history  {printable(item):14}          {printable(recommender.titles[recommender.index[item]])}")
    for place, r in enumerate(found, 1):
        _say(f"{place:7}  {printable(r.item):14} {r.score:8.3f} {printable(r.title)}")


def _items_of(history: str) -> list[str]:
    return [item.strip() for item in history.split(",") if item.strip()]


def _bundles(given: Sequence[str]) -> list[Path]:
    """The bundles that were named, or the newest that a sweep or `genrec train` has left."""
    if given:
        return [Path(name) for name in given]
    found = [*Path("runs").glob("*/bundle/model"), *Path("runs/models").glob("*/model")]
    if not found:
        raise ConfigError(["no bundle below runs/; name one, or make one by genrec train or sweeps run"])
    newest = max(found, key=lambda path: path.stat().st_mtime).parent
    _tell(f"bundle: {newest}")
    return [newest]


@main.command()
@click.option("--show", metavar="NAME", help="Print a recipe's file instead.")
def recipes(show: str | None) -> None:
    """List the recipes shipped with the package."""
    files = recipe_files()
    if show is None:
        for name in files:
            _say(name)
    elif show in files:
        click.echo(files[show].read_text(encoding="utf-8"), nl=False)
    else:
        raise ConfigError([f"--show {show}: no such recipe{nearest(show, files)}"])


@main.command()
def schema() -> None:
    """Print the JSON schema of a run's YAML file, for editors."""
    click.echo(schema_text(), nl=False)


if __name__ == "__main__":
    main()
