"""What a report says: recomputed from the ledger, in every state of a sweep, whatever is missing."""

from __future__ import annotations

import csv
import json
import math
import random
import re
import shlex
import shutil
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml
from click.testing import CliRunner
from made_up_trials import SAMPLED, finished_sweep, spec_of
from optuna.distributions import FloatDistribution
from scipy import stats

from genrec.config import load_config
from genrec.semantic_ids import SemanticIds, measure_health
from sweeps.cli import main
from sweeps.finalists import compare_finalists, current_runs, finalist_name, note_plan, plan_finalists
from sweeps.leaderboard import status_lines
from sweeps.ledger import FinalistQueue, Ledger
from sweeps.model_key import model_key
from sweeps.report import make_document, sweep_text, write_report
from sweeps.report.catalogue import MAX_NODES, tree
from sweeps.report.document import Block, Commands, Document, Picture, Spread, Table, Text, shown
from sweeps.report.importance import MIN_TRIALS, Comparable, comparable_trials, measure_importance
from sweeps.report.standing import chosen_config
from sweeps.report.summary import commands
from sweeps.significance import Ranked
from sweeps.spec import SweepSpec
from sweeps.spec_file import load_spec
from sweeps.status import sweep_status

TINY = Path(__file__).with_name("tiny.yaml")
SPACE = {
    "train.learning_rate": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True},
    "tiger.dropout": {"type": "float", "low": 0.0, "high": 0.3},
    "train.batch_size": {"type": "choice", "values": [32, 64]},
}
Score = Callable[[dict[str, Any]], float]


def searched(folder: Path, trials: int, score: Score = lambda params: 1.0, **overrides: Any) -> Ledger:
    """A made-up search: three epochs each, the last with the value of `score`; every fourth is stopped after two."""
    spec = load_spec(TINY, {"name": "made", "space": SPACE, "budget.trials": trials, **overrides})
    with Ledger.create(folder / "made", spec) as ledger:
        while task := ledger.next():
            number = task.payload["number"]
            value = score(ledger.trials()[number].params)
            epochs = 2 if number % 4 == 3 else 3
            for epoch in range(1, epochs + 1):
                ledger.report(task.id, {"epoch": epoch, "ndcg@10": value * epoch / 3, "loss": 3.0 - epoch})
            reason = "stopped by the scheduler at epoch 2" if epochs == 2 else None
            result = {"node": f"node-{number % 2}", "duration": 1.0, "reason": reason}
            result |= {"trained": ["tiger"], "reused": ["dataset", "tokenizer"]}
            ledger.finish(task.id, "stopped" if epochs == 2 else "completed", result)
    return Ledger.read(folder / "made")


def blocks(document: Document, section: str) -> list[Block]:
    return next(found.blocks for found in document.sections if found.id == section)


def tables(found: Iterable[Block]) -> dict[str, Table]:
    return {block.caption: block for block in found if isinstance(block, Table)}


def pictures(document: Document) -> dict[str, Picture]:
    return {b.title: b for section in document.sections for b in section.blocks if isinstance(b, Picture)}


# -- a finished sweep -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ledger(hostile_sweep: Path) -> Ledger:
    return Ledger.read(hostile_sweep)


@pytest.fixture(scope="module")
def document(ledger: Ledger) -> Document:
    return make_document(ledger)


def values(ledger: Ledger, name: str, split: str, metric: str) -> list[float]:
    """The metric of every seed of a finalist, as the ledger has it."""
    runs = [run for run in current_runs(ledger) if finalist_name(run.finalist) == name]
    return [run.result[split][metric] for run in runs]


def test_every_claim_of_the_verdict_is_recomputed_from_the_ledger(ledger: Ledger, document: Document) -> None:
    names = {finalist_name(run.finalist) for run in current_runs(ledger)}
    winner = max(sorted(names), key=lambda name: statistics.fmean(values(ledger, name, "validation", "ndcg@10")))
    test = values(ledger, winner, "test", "ndcg@10")
    mean = statistics.fmean(test)
    said = [block.text for block in blocks(document, "verdict") if isinstance(block, Text)]
    chosen = values(ledger, winner, "validation", "ndcg@10")
    assert said[0] == (
        f"{winner} wins: ndcg@10 {mean:.4f} ± {statistics.stdev(test):.4f} on the test split, mean and deviation "
        f"over {len(test)} seeds; chosen by validation, where it has ndcg@10 {statistics.fmean(chosen):.4f} ± "
        f"{statistics.stdev(chosen):.4f}."
    )
    checked = 1
    for name in names - {winner}:
        above = statistics.fmean(values(ledger, name, "test", "ndcg@10")) > mean
        checked += above
        assert any(text.startswith(f"{name} is above the winner on the test split") for text in said) == above
    for comparison in ledger.fact("comparisons"):
        [sentence] = [text for text in said if text == comparison["verdict"]]
        for side in "ab":
            if comparison[side] in names:
                expected = statistics.fmean(values(ledger, comparison[side], "test", "ndcg@10"))
                assert comparison[f"mean_{side}"] == pytest.approx(expected)
            assert f"{comparison[f'mean_{side}']:.4f}" in sentence
        assert comparison["difference"] == pytest.approx(comparison["mean_a"] - comparison["mean_b"])
        told_apart = comparison["p"] < 0.05
        assert told_apart == (" beats " in sentence)
        assert told_apart == ("can't be told apart" not in sentence)
        checked += 1
    for name, row in ledger.fact("baselines").items():
        above = "above" if mean > row["ndcg@10"] else "BELOW"
        sentence = (
            f"The winner is {above} the baseline {name} (fit: {row['fit']}): {mean:.4f} against {row['ndcg@10']:.4f}."
        )
        assert said.count(sentence) == 1
        checked += 1
    checked += sum(text.startswith("No trial is better on validation") for text in said) * (winner == "base")
    checked += sum(text == "The winner has the settings of the base config." for text in said) * (winner == "base")
    assert checked == len(said)


def test_a_win_in_words_is_recomputed_from_the_places_of_the_users(tmp_path: Path) -> None:
    users, rng = 300, np.random.default_rng(1)
    ease_U = rng.random(users)

    def places(*rates: float) -> np.ndarray:
        """(3, U): under a model that lists a share of the targets."""
        listed = (ease_U * 0.5 + rng.random((3, users)) * 0.5) < np.array(rates)[:, None]
        return np.where(listed, rng.integers(0, 10, (3, users)), -1)

    ranks = {"trial-0000": places(0.48, 0.52, 0.5), "base": places(0.42, 0.40, 0.44)}
    measured = {name: Ranked(name, np.arange(users), found) for name, found in ranks.items()}
    comparisons = compare_finalists(list(measured), measured, "ndcg@10")
    finished_sweep(tmp_path / "hand", load_spec(TINY, {"name": "hand", "budget.trials": 2}))
    with Ledger.open(tmp_path / "hand") as ledger:
        ledger.set_fact("comparisons", [comparison.to_dict() for comparison in comparisons])
        ledger.set_fact("verdict", [comparison.verdict for comparison in comparisons])
    document = make_document(Ledger.read(tmp_path / "hand"))

    a_SU, b_SU = (
        np.array([[1 / math.log2(place + 2) if place >= 0 else 0.0 for place in row] for row in found])
        for found in ranks.values()
    )
    difference_U = a_SU.mean(0) - b_SU.mean(0)
    parts = [difference_U, a_SU.mean(1), b_SU.mean(1)]  # Welch over users and the seeds of both
    squares = [part.var(ddof=1) / len(part) for part in parts]
    error = math.sqrt(sum(squares))
    freedom = sum(squares) ** 2 / sum(s**2 / (len(part) - 1) for s, part in zip(squares, parts, strict=True))
    student, mean = stats.t(df=freedom, loc=difference_U.mean(), scale=error), difference_U.mean()
    p = float(2 * stats.t.sf(mean / error, freedom))
    signs = stats.permutation_test((difference_U,), np.mean, permutation_type="samples", n_resamples=999, rng=7)
    assert signs.pvalue < p < 0.05, "of the two p-values the larger counts"
    low, high = student.interval(0.95)
    effect = mean / difference_U.std(ddof=1)
    expected = (
        f"trial-0000 beats base in test ndcg@10 (p = {p:.2g}): {a_SU.mean():.4f} against {b_SU.mean():.4f}, "
        f"+{a_SU.mean() / b_SU.mean() - 1:.1%}; 95 % interval of the difference {low:.4f} to {high:.4f} over 300 users "
        f"and 3 + 3 seeds, effect size {effect:.3f}."
    )
    assert [text for text in said_in(document, "verdict") if " beats " in text] == [expected]
    [row] = tables(blocks(document, "numbers"))["Comparisons behind the verdict"].rows
    numbers = [cell for cell in row if isinstance(cell, float)]
    for value in (a_SU.mean(), b_SU.mean(), mean, low, high, p, effect):
        assert any(number == pytest.approx(value) for number in numbers), value


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_winner_that_is_told_by_hand_is_told_the_same_by_the_report(tmp_path: Path, seeds: int) -> None:
    spec = load_spec(TINY, {"name": "hand", "budget.trials": 2, "finalists.seeds": seeds})
    finished_sweep(tmp_path / "hand", spec)
    spread = {1: "0.2100", 3: "0.2200 ± 0.0100"}[seeds]
    over = {1: "one seed", 3: "mean and deviation over 3 seeds"}[seeds]
    base = {1: "0.1100", 3: "0.1200 ± 0.0100"}[seeds]
    mean = spread.split(" ")[0]
    document = make_document(Ledger.read(tmp_path / "hand"))
    assert [block.text for block in blocks(document, "verdict") if isinstance(block, Text)] == [
        f"trial-0000 wins: ndcg@10 {spread} on the test split, {over}; chosen by validation, where it has "
        f"ndcg@10 {spread}.",
        f"The winner is BELOW the baseline knn (fit: train): {mean} against 0.3000.",
        f"The winner is above the baseline popularity (fit: train): {mean} against 0.0500.",
        f"The best possible ndcg@10 on this data is {2 * float(mean):.4f}; the winner reaches 50%.",
    ]
    items, tuples, *_ = tables(blocks(document, "numbers")).values()
    assert [[shown(cell) for cell in row] for row in items.rows] == [
        ["trial-0000", spread, spread, str(seeds), ""],
        ["base", base, base, str(seeds), ""],
        ["popularity (fit: train)", "", "0.05", "", ""],
        ["knn (fit: train)", "", "0.3", "", ""],
        ["oracle (best possible)", "", f"{2 * float(mean):.4g}", "", ""],
    ]
    assert [str(row[1]) for row in tuples.rows] == {
        1: ["0.3100", "0.2100"],
        3: ["0.3200 ± 0.0100", "0.2200 ± 0.0100"],
    }[seeds]


def test_the_comparisons_behind_the_verdict_stand_below_it_as_the_ledger_has_them(
    ledger: Ledger, document: Document
) -> None:
    table = tables(blocks(document, "numbers"))["Comparisons behind the verdict"]
    facts = ledger.fact("comparisons")
    assert len(table.rows) == len(facts) > 0
    for row, fact in zip(table.rows, facts, strict=True):
        keys = ("a", "b", "metric", "mean_a", "mean_b", "difference", "low", "high", "interval_over", "effect", "p")
        assert list(row) == [*(fact[key] for key in keys), fact["users"]]
        assert fact["low"] <= fact["difference"] <= fact["high"]
        assert fact["users"] == ledger.fact("protocol")["users"]


def test_the_numbers_are_means_and_deviations_over_the_seeds(ledger: Ledger, document: Document) -> None:
    found = tables(blocks(document, "numbers"))
    items = found["Item level: a hit is the very item"]
    tuples = found["Tuple level: a hit is the item's semantic-ID tuple, as papers count"]
    assert not any(column.startswith("tuple_") for column in items.columns)
    for table in (items, tuples):
        rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
        for name in {finalist_name(run.finalist) for run in current_runs(ledger)}:
            for column in table.columns[1:-2]:
                split, metric = ("validation", "ndcg@10") if " " in column else ("test", column)
                seeds = values(ledger, name, split, metric)
                cell = rows[name][column]
                assert isinstance(cell, Spread)
                assert (cell.mean, cell.std) == pytest.approx((statistics.fmean(seeds), statistics.stdev(seeds)))
    for name, baseline in ledger.fact("baselines").items():
        [row] = [row for row in items.rows if row[0] == f"{name} (fit: {baseline['fit']})"]
        assert list(row[2:]) == [baseline.get(metric) for metric in items.columns[2:]]
    facts = dict(found["What every number is measured by"].rows)  # type: ignore[arg-type]
    assert facts["split"] == "test"
    assert facts["users"] == 80
    assert {"beam", "catalogue", "seen", "hit"} <= facts.keys()


def test_the_winner_is_shown_as_a_difference_from_the_base(ledger: Ledger, document: Document) -> None:
    winner = ledger.fact("winner")["trial"]
    found = tables(blocks(document, "verdict"))
    if winner == "base":
        assert not found
        return
    [table] = found.values()
    rate = ledger.trials()[int(winner[-4:])].params["train.learning_rate"]
    assert list(table.rows) == [["train.learning_rate", ledger.spec.base_config().train.learning_rate, rate]]


def test_recommendations_are_those_of_the_bundle_and_the_target_is_the_last_item(
    ledger: Ledger, document: Document
) -> None:
    lines = (Path(ledger.spec.base_values["dataset"]["dataset_folder"]) / "sequential_data.txt").read_text().split("\n")
    items = {line.split()[0]: line.split()[1:] for line in lines if line}
    rows = (ledger.folder / "bundle" / "items.jsonl").read_text().splitlines()
    titles = [json.loads(row)["title"] for row in rows]
    found = tables(blocks(document, "examples"))
    assert len(found) == 5
    for caption, table in found.items():
        user = caption.removeprefix("User ")
        [target] = [row for row in table.rows if row[0] == "true next item"]
        assert target[2] == titles[int(items[user][-1]) - 1]
        assert sum(str(row[0]).startswith("recommended") for row in table.rows) == 10


def test_every_picture_of_a_finished_sweep_is_there_but_what_three_trials_cannot_tell(document: Document) -> None:
    missing = {title: picture.note for title, picture in pictures(document).items() if picture.figure is None}
    assert list(missing) == ["Importance of the parameters"]
    assert "below 10 nothing can be said" in missing["Importance of the parameters"]


def test_failures_are_listed_with_their_reasons(document: Document, hostile: tuple[str, ...]) -> None:
    table = tables(blocks(document, "failures"))["Failed trials and re-evaluations"]
    assert [row[0] for row in table.rows] == ["trial-0002"]
    assert str(table.rows[0][2]).startswith(hostile[0])


def test_the_sweep_beside_the_report_is_the_same_sweep(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(sweep_text(ledger))
    spec = load_spec(path)
    assert spec.base_values == ledger.spec.base_values
    ours, theirs = spec.to_dict(), ledger.spec.to_dict()
    assert {k: v for k, v in ours.items() if k not in ("base", "set")} == {
        k: v for k, v in theirs.items() if k not in ("base", "set")
    }


def test_the_command_writes_all_files_and_leaves_the_sweep_as_it_is(hostile_sweep: Path, tmp_path: Path) -> None:
    journal = (hostile_sweep / "ledger.journal").read_bytes()
    words = ["report", "hostile", "--storage", str(hostile_sweep.parent)]
    done = CliRunner().invoke(main, [*words, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    names = ["report.html", "report.md", "trials.csv", "sweep.yaml", "best.yaml"]
    assert done.output.splitlines() == [str(tmp_path / name) for name in names]
    assert load_config(tmp_path / "best.yaml").hash == load_config(hostile_sweep / "best.yaml").hash
    assert (hostile_sweep / "ledger.journal").read_bytes() == journal
    printed = CliRunner().invoke(main, [*words, "--csv"])
    assert printed.output == (tmp_path / "trials.csv").read_text()
    assert CliRunner().invoke(main, [*words, "--markdown"]).output.startswith("# Sweep hostile\n")
    assert CliRunner().invoke(main, ["report", "hostil", "--storage", str(hostile_sweep.parent)]).exit_code == 2


def test_without_artifacts_and_bundle_the_rest_of_the_report_is_the_same(
    hostile_sweep: Path, document: Document, tmp_path: Path
) -> None:
    shutil.copytree(hostile_sweep, tmp_path / "hostile", ignore=shutil.ignore_patterns("bundle"))
    alone = make_document(Ledger.read(tmp_path / "hostile"))
    missing = {title: picture.note for title, picture in pictures(alone).items() if picture.figure is None}
    assert "not in" in missing["Semantic IDs"]
    assert "not in" in missing["Examples"]
    for section in ("verdict", "numbers", "leaderboard", "failures"):
        assert blocks(alone, section) == blocks(document, section)


def test_a_damaged_artifact_costs_its_pictures_alone(hostile_sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(hostile_sweep.parent, tmp_path / "copy")
    for path in (tmp_path / "copy" / ".artifacts").glob("semantic_ids-*/ids/*.safetensors"):
        path.write_bytes(b"nonsense")
    found = make_document(Ledger.read(tmp_path / "copy" / "hostile"))
    assert "can't be read" in pictures(found)["Semantic IDs"].note
    assert tables(blocks(found, "examples"))


# -- unfinished sweeps ------------------------------------------------------------------------------------------------


def test_a_sweep_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "new", load_spec(TINY, {"name": "new"})).close()
    files = write_report(Ledger.read(tmp_path / "new"))
    assert files.best is None
    assert "There is no winner yet: the sweep was interrupted, and no trial has a result." in files.page.read_text()
    assert files.trials.read_text().startswith("number,trial,status")


def test_a_running_sweep_shows_the_best_so_far_and_what_is_running(tmp_path: Path) -> None:
    spec = load_spec(TINY, {"name": "live", "space": SPACE, "budget.trials": 4})
    with Ledger.create(tmp_path / "live", spec) as writer:
        first, second = writer.next(), writer.next()
        assert first is not None
        assert second is not None
        writer.report(first.id, {"epoch": 1, "ndcg@10": 0.25})
        writer.finish(first.id, "completed", {"node": "here", "duration": 1.0})
        writer.report(second.id, {"epoch": 1, "ndcg@10": float("nan")})
        files = write_report(Ledger.read(tmp_path / "live"))
        document = make_document(Ledger.read(tmp_path / "live"))
    said = [block.text for block in blocks(document, "verdict") if isinstance(block, Text)]
    assert said[0] == (
        "There is no winner yet: the sweep is searching. Best so far is trial-0000, with validation ndcg@10 0.2500."
    )
    assert files.best is not None
    assert files.best.read_text().startswith("# Not final")
    assert load_config(files.best).train.learning_rate == pytest.approx(
        yaml.safe_load(files.best.read_text())["train"]["learning_rate"]
    )
    assert [row[0] for row in tables(blocks(document, "time"))["Busy and idle"].rows] == ["here 1", "unknown 1"]


def test_stopped_trials_are_marked_where_they_stopped_and_listed_with_the_rule(tmp_path: Path) -> None:
    scheduler = {"type": "asha", "grace_epochs": 2, "reduction_factor": 3}
    document = make_document(searched(tmp_path, 8, lambda p: 0.3, scheduler=scheduler))
    figure = pictures(document)["Validation ndcg@10 over the epochs"].figure
    assert figure is not None
    [crosses] = [trace for trace in figure["data"] if trace["name"] == "stopped here"]
    assert crosses["x"] == [2, 2]
    rule, table = blocks(document, "stopped")
    assert isinstance(rule, Text)
    assert rule.text.startswith("Rule asha (2 trials): at epoch 2 and at its multiples by 3, a trial goes on only if")
    assert isinstance(table, Table)
    assert [row[3:] for row in table.rows] == [["asha", "stopped by the scheduler at epoch 2"]] * 2
    rows = {row[0]: row[1:] for row in tables(blocks(document, "stages"))["Stages"].rows}
    assert rows == {"dataset": [0, 8], "tokenizer": [0, 8], "tiger": [8, 0]}


@pytest.mark.parametrize(
    ("scheduler", "own"),
    [
        ("median", "stopped at epoch 1: its best value"),
        ("promote", "not promoted at epoch 1: rank 3 of 4"),
        ("none", ""),
    ],
)
def test_every_stopped_trial_has_the_rule_that_stopped_it_and_no_other_is_named(
    tmp_path: Path, scheduler: str, own: str
) -> None:
    reasons = ["health gate: 40.0% of the items share their tuple (above 10%)", "ended with the budget: time: 9 of 9"]
    reasons += [own] if own else []
    spec = load_spec(TINY, {"name": "ended", "budget.trials": len(reasons) + 1, "scheduler.type": scheduler})
    with Ledger.create(tmp_path / "ended", spec) as writer:
        for reason in (None, *reasons):
            task = writer.next()
            assert task is not None
            writer.report(task.id, {"epoch": 1, "ndcg@10": 0.2})
            writer.finish(task.id, "stopped" if reason else "completed", {"reason": reason})
    *rules, table = blocks(make_document(Ledger.read(tmp_path / "ended")), "stopped")
    assert isinstance(table, Table)
    expected = ["health gate", "budget", *([scheduler] if own else [])]
    assert [row[3] for row in table.rows] == expected
    assert [row[4] for row in table.rows] == reasons
    named = [block.text.removeprefix("Rule ").split(" (")[0] for block in rules if isinstance(block, Text)]
    assert sorted(named) == sorted(expected)
    assert ("multiples by" in str(rules)) == (scheduler == "promote")


def test_several_objectives_show_their_front(tmp_path: Path) -> None:
    spec = load_spec(TINY, {"name": "two", "space": SPACE, "budget.trials": 3, "against": {"parameters": "min"}})
    with Ledger.create(tmp_path / "two", spec) as writer:
        for value, parameters in ((0.3, 30.0), (0.2, 10.0), (0.1, 20.0)):
            task = writer.next()
            assert task is not None
            writer.report(task.id, {"epoch": 1, "ndcg@10": value})
            writer.finish(task.id, "completed", {"parameters": parameters})
    document = make_document(Ledger.read(tmp_path / "two"))
    [picture] = blocks(document, "pareto")
    assert isinstance(picture, Picture)
    assert picture.figure is not None
    traces = {trace["name"]: trace for trace in picture.figure["data"]}
    assert sorted(traces["Pareto front"]["y"]) == [10, 30]
    assert traces["beaten by another"]["y"] == [20]


@pytest.mark.parametrize(("metric", "mode", "shape"), [("ndcg@10", "max", "vh"), ("loss", "min", "hv")])
def test_a_front_has_no_trial_that_one_of_another_status_beats_and_is_joined_by_what_it_reaches(
    tmp_path: Path, metric: str, mode: str, shape: str
) -> None:
    goals = {"metric": metric, "mode": mode, "against": {"parameters": "min"}}
    spec = load_spec(TINY, {"name": "two", "space": SPACE, "budget.trials": 4, **goals})
    with Ledger.create(tmp_path / "two", spec) as writer:
        points = ((0.3, 10.0, "completed"), (0.4, 30.0, "completed"), (0.05, 25.0, "stopped"), (0.2, 20.0, "completed"))
        for value, parameters, status in points:
            task = writer.next()
            assert task is not None
            writer.report(task.id, {"epoch": 1, metric: value if mode == "max" else 1 - value})
            writer.finish(task.id, status, {"parameters": parameters, "reason": None})
    [picture] = blocks(make_document(Ledger.read(tmp_path / "two")), "pareto")
    assert isinstance(picture, Picture)
    assert picture.figure is not None
    [front] = [trace for trace in picture.figure["data"] if trace["name"] == "Pareto front"]
    assert sorted(front["text"]) == ["trial-0000", "trial-0001"]
    assert front["x"] == sorted(front["x"])
    assert front["line"]["shape"] == shape


# -- a sweep that goes on after its end -------------------------------------------------------------------------------


def said_in(document: Document, section: str) -> list[str]:
    return [block.text for block in blocks(document, section) if isinstance(block, Text)]


def purposes(document: Document) -> list[str]:
    [block] = [block for block in blocks(document, "commands") if isinstance(block, Commands)]
    return [purpose for purpose, _ in block.lines]


def test_while_it_is_measured_again_the_winner_of_before_is_no_winner(tmp_path: Path) -> None:
    finished_sweep(tmp_path / "hand", load_spec(TINY, {"name": "hand", "budget.trials": 4, "finalists.seeds": 3}))
    assert "continue the sweep" not in purposes(make_document(Ledger.read(tmp_path / "hand")))
    with Ledger.open(tmp_path / "hand") as ledger:
        ledger.set_fact("comparisons", [{"a": "trial-0000", "b": "base"}])
        plans = plan_finalists(ledger.spec, [(n, ledger.config_of(n)) for n in (0, 1)])
        note_plan(ledger, plans)
        queue = FinalistQueue(ledger, plans)
        task = queue.next()
        assert task is not None
        figures = {"ndcg@10": 0.5, "tuple_ndcg@10": 0.6}
        queue.finish(task.id, "completed", {"validation": figures, "test": figures})
        document = make_document(Ledger.read(tmp_path / "hand"))
    strong, *others = said_in(document, "verdict")
    assert strong.startswith(
        "There is no winner of the sweep as it is now: the finalists are being measured. Best so far"
    )
    assert others[
        0
    ] == "Previous winner: trial-0000, being measured again; 7 of this re-evaluation have ended.".replace(
        "7 of", "7 of 9 runs of"
    )
    assert not [text for text in (strong, *others) if " wins" in text or "BELOW" in text or "above" in text]
    found = tables(blocks(document, "numbers"))
    assert "Not final: 7 of 9 runs have ended" in found["Item level: a hit is the very item"].note
    assert "Comparisons behind the verdict" not in found
    assert "look on until it ends" in purposes(document)
    assert "recommend with the previous winner" in purposes(document)
    later = make_document(Ledger.read(tmp_path / "hand"))
    assert "continue the sweep" in purposes(later), "nobody drives it"


def test_a_resumed_search_does_not_keep_the_verdict_of_the_smaller_one(tmp_path: Path) -> None:
    finished_sweep(tmp_path / "hand", load_spec(TINY, {"name": "hand", "budget.trials": 4}))
    with Ledger.open(tmp_path / "hand") as ledger:
        more = ledger.spec.to_dict()
        ledger.revise(SweepSpec.from_dict(more | {"budget": more["budget"] | {"trials": 8}}))
        task = ledger.next()
        assert task is not None
        ledger.report(task.id, {"epoch": 1, "ndcg@10": 9.0})
        ledger.finish(task.id, "completed", {"duration": 1.0, "node": "n1"})
        document = make_document(Ledger.read(tmp_path / "hand"))
    strong, previous, *_ = said_in(document, "verdict")
    assert strong.endswith("the sweep is searching. Best so far is trial-0004, with validation ndcg@10 9.0000.")
    assert previous == "Previous winner: trial-0000; what it was compared with has changed since."
    [table] = [block for block in blocks(document, "record") if isinstance(block, Table)]
    assert [list(row)[2:] for row in table.rows] == [[4, "budget.trials: 4 -> 8"]]


def test_what_was_taken_over_is_not_counted_as_made_here(tmp_path: Path) -> None:
    space = {"train.learning_rate": {"type": "grid", "values": [1e-3, 2e-3, 3e-3]}}
    for name, reuse in (("one", []), ("two", ["one"])):
        spec = load_spec(TINY, {"name": name, "space": space, "budget.trials": 3, "reuse": reuse})
        with Ledger.create(tmp_path / name, spec) as writer:
            while task := writer.next():
                writer.report(task.id, {"epoch": 1, "ndcg@10": 0.1})
                stages = {"trained": ["dataset", "tiger"], "reused": ["tokenizer"]}
                artifacts = {"tiger": model_key(writer.config_of(task.payload["number"]))}
                result = {"duration": 60.0, "node": "old-node", "artifacts": artifacts, **stages}
                writer.finish(task.id, "completed", result)
    ledger = Ledger.read(tmp_path / "two")
    assert {record.id: record.source is not None for record in ledger.trials()} == {
        f"trial-{number:04d}": True for number in range(3)
    }
    status = sweep_status(ledger)
    assert (status["trained_stages"], status["reused_stages"], status["taken_over"]) == (0, 0, 3)
    document = make_document(ledger)
    said = "3 trials taken over from one: not made here."
    assert said_in(document, "stages") == [said]
    assert said in tables(blocks(document, "leaderboard"))["Trials, best first"].note
    assert "Busy and idle" not in tables(blocks(document, "time"))
    table = tables(blocks(document, "record"))["Taken over from earlier sweeps"]
    assert list(table.rows) == [["one", 3]]
    earlier = tables(blocks(make_document(Ledger.read(tmp_path / "one")), "stages"))["Stages"]
    assert next(iter(earlier.rows)) == ["dataset", 3, 0]


def test_the_record_says_why_the_search_ended_and_what_drove_it(tmp_path: Path) -> None:
    finished_sweep(tmp_path / "hand", load_spec(TINY, {"name": "hand", "budget.trials": 4}))
    versions = {"torch": "2.9", "ray": None}
    session = {"at": "2026-01-01T00:00:00", "host": "h1", "git": None, "data": "d", "command": "sweeps run x"}
    with Ledger.open(tmp_path / "hand") as ledger:
        ledger.set_fact("stop_reason", "budget")
        ledger.set_fact("sessions", [session | {"versions": versions | {"genrec-sweeps": "1.0"}}])
    document = make_document(Ledger.read(tmp_path / "hand"))
    assert said_in(document, "record") == ["The search ended by: budget (all trials of the budget were run)."]
    [row] = tables(blocks(document, "record"))["Sessions of the driver"].rows
    assert list(row) == ["2026-01-01T00:00:00", "h1", "1.0", "d", "torch 2.9, genrec-sweeps 1.0", "sweeps run x"]


def test_a_search_that_pauses_its_trials_has_a_report_while_it_runs(tmp_path: Path) -> None:
    spec = load_spec(TINY, {"name": "prom", "space": SPACE, "budget.trials": 12, "scheduler.type": "promote"})
    with Ledger.create(tmp_path / "prom", spec) as writer:
        for number in range(12):
            task = writer.next()
            assert task is not None
            writer.report(task.id, {"epoch": 1, "ndcg@10": 0.1 + (number * 5 % 12) / 100})
            writer.pause(task.id, 1)
        document = make_document(Ledger.read(tmp_path / "prom"))
    said = [block.text for block in blocks(document, "verdict") if isinstance(block, Text)]
    assert said[0].endswith("Best so far is trial-0007 (paused), with validation ndcg@10 0.2100.")
    table = tables(blocks(document, "leaderboard"))["Trials, best first"]
    assert [row[1:3] for row in table.rows[:2]] == [["trial-0007", "waiting"], ["trial-0002", "waiting"]]
    assert [row[3] for row in table.rows[:2]] == pytest.approx([0.21, 0.2])
    assert len(table.rows) == 12
    drawn = pictures(document)
    curves = drawn["Validation ndcg@10 over the epochs"].figure
    history = drawn["Trials in the order of the search"].figure
    assert curves is not None
    assert history is not None
    assert sum(value is not None for trace in curves["data"] for value in trace["y"]) == 13, "the best has its own line"
    [best] = [trace for trace in history["data"] if trace["name"] == "best so far"]
    assert best["x"] == list(range(12))
    assert best["y"][:4] == [0.1, 0.15, 0.2, 0.2]
    assert (
        "12 trials as they stood after epoch 1"
        in tables(blocks(document, "parameters"))["Importance of the parameters"].note
    )
    best_config = chosen_config(Ledger.read(tmp_path / "prom"))
    assert best_config is not None
    first = dict(zip(table.columns, table.rows[0], strict=True))
    assert best_config.train.learning_rate == first["train.learning_rate"]


def test_the_axis_of_the_search_has_the_numbers_of_the_trials(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "few", load_spec(TINY, {"name": "few", "budget.trials": 3})) as writer:
        for status in ("failed", "completed", "stopped"):
            task = writer.next()
            assert task is not None
            writer.report(task.id, {"epoch": 1, "ndcg@10": 0.3})
            writer.finish(task.id, status, {"reason": "why"})
    figure = pictures(make_document(Ledger.read(tmp_path / "few")))["Trials in the order of the search"].figure
    assert figure is not None
    assert {trace["name"]: trace["x"] for trace in figure["data"]} == {
        "stopped": [2],
        "completed": [1],
        "best so far": [1, 2],
    }
    assert figure["layout"]["xaxis"]["dtick"] == 1


def test_the_plan_is_set_against_what_it_took(tmp_path: Path) -> None:
    ledger = searched(tmp_path, 4)
    said = blocks(make_document(ledger), "time")[-1]
    assert isinstance(said, Text)
    assert said.text.startswith("No plan lies beside this sweep")
    (ledger.folder / "plan.json").write_text(json.dumps(PLAN))
    table = tables(blocks(make_document(ledger), "time"))["Planned and actual"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["trials"] == [8, 4, "50%"]
    assert rows["epochs"] == [22, 11, "50%"]
    assert rows["search slot seconds"] == [8.0, 4.0, "50%"]
    assert "finalists seconds" not in rows
    assert "for other settings" in table.note


PLAN = {
    "version": 1,
    "trials": 8,
    "infeasible_share": 0.0,
    "search": {"epochs": 22, "seconds": 100.0, "busy_seconds": 8.0},
    "finalists": {"seconds": 50.0},
    "cpu_hours": 2.0,
    "gpu_hours": 4.0,
    "spec_hash": "other",
}


def test_actual_times_and_hours_are_those_of_the_ledger(tmp_path: Path) -> None:
    resources = {"workers": 2, "cpus_per_worker": 3.0, "gpus_per_worker": 1.0}
    finished_sweep(tmp_path / "hand", load_spec(TINY, {"name": "hand", "budget.trials": 3, "resources": resources}))
    ledger = Ledger.read(tmp_path / "hand")
    (ledger.folder / "plan.json").write_text(json.dumps(PLAN))
    table = tables(blocks(make_document(ledger), "time"))["Planned and actual"]
    actual = {row[0]: row[2] for row in table.rows}
    slots = 3 * 1.5 + 4 * 2.0
    one_by_one = [r.finished - r.started for r in ledger.trials() if r.started and r.finished]
    longest = sum(span.total_seconds() for span in one_by_one)
    assert 0 < actual["search seconds"] <= longest + 1e-6, "of these the time in which a driver ran"  # type: ignore[operator]
    assert actual["CPU-hours"] == pytest.approx(slots / 3600 * 6)
    assert actual["GPU-hours"] == pytest.approx(slots / 3600 * 2)
    assert actual["infeasible share"] == 0.0
    assert actual["search slot seconds"] == sum(r.duration or 0.0 for r in ledger.trials())


# -- semantic IDs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_items", [50, 20_000])
def test_the_tree_leads_to_titles_and_has_no_branch_without_its_parent(num_items: int) -> None:
    codes_NC = torch.randint(0, 64, (num_items, 3), generator=torch.Generator().manual_seed(0))
    ids = SemanticIds(codes_NC, (64, 64, 64), 3, measure_health(codes_NC, 64))
    picture = tree(ids, [f"title {item}" for item in range(num_items)])
    assert picture.figure is not None
    [trace] = picture.figure["data"]
    assert len(trace["ids"]) <= MAX_NODES
    known = set(trace["ids"])
    assert len(known) == len(trace["ids"])
    assert trace["parents"][0] == ""
    assert set(trace["parents"][1:]) <= known
    counts = dict(zip(trace["ids"], trace["values"], strict=True))
    leaves = known - set(trace["parents"])
    titles = {name: text for name, text in zip(trace["ids"], trace["labels"], strict=True) if text.startswith("title")}
    assert all(counts[name] == 1 for name in titles)
    assert titles.keys() >= {name for name in leaves if counts[name] == 1}
    assert counts[trace["level"]] <= 40, "it opens where titles can be read"
    below = [name for name in titles if name.startswith(f"{trace['level']}/")]
    assert below
    if num_items == 50:
        shared = sum(count for count in torch.unique(codes_NC, dim=0, return_counts=True)[1].tolist() if count > 1)
        assert sorted(titles.values()) == sorted(f"title {item}" for item in range(50))[: 50 - shared]
        assert "drawn one by one" not in picture.note
    else:
        assert len(titles) > MAX_NODES / 3, "the largest branches are open down to their items"
        assert "drawn one by one" in picture.note
        assert all("title" in text for text in trace["text"][1:64]), "of the others the first titles are told"
    for name, value in zip(trace["ids"][1:50], trace["values"][1:50], strict=True):
        prefix = [int(code) for code in name.split("/")]
        assert value == int((codes_NC[:, : len(prefix)] == torch.tensor(prefix)).all(1).sum())


# -- importance -------------------------------------------------------------------------------------------------------


def test_importance_finds_what_decides_and_says_how_sure_it_is(tmp_path: Path) -> None:
    ledger = searched(tmp_path, 24, lambda p: 0.5 - p["tiger.dropout"] + (p["train.batch_size"] == 64) * 0.02)
    comparable = comparable_trials(ledger)
    assert not isinstance(comparable, str)
    assert comparable.epoch == 3
    assert len(comparable.trials) == 18, "the stopped ones did not get so far"
    found = measure_importance(comparable)
    assert not isinstance(found, str)
    assert found.ranked[0] == "tiger.dropout"
    assert "tiger.dropout" in found.above_chance
    for shares in (found.variance, found.top):
        assert sum(mean for mean, _, _ in shares.values()) == pytest.approx(1)
        assert all(low <= mean <= high for mean, low, high in shares.values())
        assert any(low < high for _, low, high in shares.values())


def noise(trials: int, seed: int) -> Comparable:
    """Trials whose values have nothing to do with their four parameters."""
    rng = random.Random(seed)
    distributions: dict[str, Any] = {f"p{index}": FloatDistribution(0, 1) for index in range(4)}
    study = optuna.create_study(direction="maximize")
    for _ in range(trials):
        params = {name: rng.random() for name in distributions}
        study.add_trial(optuna.create_trial(value=rng.gauss(0, 1), params=params, distributions=distributions))
    return Comparable(1, study)


@pytest.mark.parametrize("seed", [0])
def test_in_pure_noise_no_parameter_is_above_chance_and_no_order_is_claimed(seed: int) -> None:
    found = measure_importance(noise(40, seed))
    assert not isinstance(found, str)
    assert found.above_chance == set()
    for shares in (found.variance, found.top):
        assert max(share.low for share in shares.values()) <= min(share.high for share in shares.values())


def test_importance_compares_after_an_epoch_that_enough_trials_have_reached(tmp_path: Path) -> None:
    ledger = searched(tmp_path, MIN_TRIALS)
    comparable = comparable_trials(ledger)
    assert not isinstance(comparable, str)
    assert (comparable.epoch, len(comparable.trials)) == (2, MIN_TRIALS)
    assert measure_importance(comparable) == "all trials have the same value"


def test_importance_is_refused_with_too_few_trials(tmp_path: Path) -> None:
    found = comparable_trials(searched(tmp_path, MIN_TRIALS - 1))
    assert found == "9 trials with a result; below 10 nothing can be said about parameters"


# -- Markdown and CSV -------------------------------------------------------------------------------------------------


def test_markdown_is_text_whatever_the_titles_are(hostile_sweep: Path, tmp_path: Path) -> None:
    text = write_report(Ledger.read(hostile_sweep), tmp_path).markdown.read_text()
    assert all(character.isprintable() or character == "\n" for character in text)
    outside = re.sub(r"```.*?```", "", text, flags=re.S)
    assert not re.search(r"(?<!\\)<[a-zA-Z/!]", outside), "a tag"
    assert not re.search(r"(?<!\\)\]\(", outside), "a link"
    assert not re.search(r"https?://", outside), "a bare address becomes a link"
    assert "www.evil" not in outside
    assert not re.search(r"(?<![\\\w])@\w", outside), "a mention"
    widths: dict[int, int] = {}
    for number, line in enumerate(outside.splitlines()):
        if line.startswith("|"):
            cells = len(re.findall(r"(?<!\\)\|", line))
            assert cells == widths.get(number - 1, cells), line
            widths[number] = cells


def test_cells_of_the_csv_are_no_formulas(hostile_sweep: Path, tmp_path: Path, hostile: tuple[str, ...]) -> None:
    from sweeps.report.spreadsheet import csv_text

    text = csv_text(["=1+1", "n"], [[title, -1.5] for title in hostile])
    rows = list(csv.reader(text.splitlines()))
    assert rows[0][0] == "'=1+1"
    assert {row[1] for row in rows[1:]} == {"-1.5"}, "numbers stay numbers"
    assert not any(row[0].strip()[:1] in tuple("=+-@|%\uff1d\uff0b\uff0d\uff20") for row in rows)
    assert all(character.isprintable() for row in rows for cell in row for character in cell)
    files = write_report(Ledger.read(hostile_sweep), tmp_path)
    table = list(csv.DictReader(files.trials.read_text().splitlines()))
    assert [row["status"] for row in table] == ["completed", "completed", "failed"]
    assert float(table[0]["train.learning_rate"]) == 3e-3


def test_commands_that_are_printed_can_be_copied_whatever_the_storage_is_called(tmp_path: Path) -> None:
    storage = tmp_path / "its $HOME"
    finished_sweep(storage / "s", spec_of(tmp_path, SAMPLED, budget__trials=2, name="s"))
    (storage / "s" / "bundle").mkdir()
    (storage / "s" / "bundle" / "items.jsonl").write_text('{"item": "one item"}\n{"item": "B2"}\n')
    ledger = Ledger.read(storage / "s")
    lines = [line for line in status_lines(ledger, str(storage)) if line.startswith(("  genrec", "  sweeps"))]
    lines += [line for _, line in commands(ledger, sweep_status(ledger), storage / "s" / "report").lines]
    words = [shlex.split(line) for line in lines]
    assert len(words) == 9
    for one in words:
        assert str(storage) in one or str(storage / "s" / "bundle") in one or f"{storage}/.artifacts" in one, one
    assert [one[4] for one in words if one[:2] == ["genrec", "recommend"]] == ["one item,B2"] * 2
