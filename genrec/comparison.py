"""What a model's numbers stand beside: baselines, a blend with them, and the oracle where the truth is known.

Two footings are never mixed. `most_popular` and `item_to_item` are fit on training items, as the model is;
`item_to_item_refit` has also counted the validation items, which is an advantage on the test split, and a blend with it
has the same. Nor are the two protocols `seen: keep` and `seen: exclude`: a table is of one of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from genrec.artifacts import ArtifactStore
from genrec.baselines import ItemToItemSettings, evaluate_baselines, fit_baselines, tune_item_to_item
from genrec.blending import Blend, Ensemble, choose_weight
from genrec.config import RunConfig, content_hash, validate_config, with_values
from genrec.data.interactions import Fit, Interactions, Split
from genrec.data.synthetic import SyntheticTruth, oracle
from genrec.durable import write_json
from genrec.errors import InputError
from genrec.evaluation import BeamRanker, agreement, evaluate, invalid_id_rate, sample_users
from genrec.models.tiger import Tiger
from genrec.pipeline import open_interactions, open_tiger, pick_device, run_pipeline, stage_keys
from genrec.ranking import KnownLists, Ranker, Seen, measure_rankers
from genrec.trie import Trie

logger = logging.getLogger(__name__)
BASELINES = ("most_popular", "item_to_item", "item_to_item_refit")
"in the order of a table"
WEIGHT_USERS = 5000
"most users of the validation split that a blend's weight is chosen on"
INVALID_USERS, AGREEMENT_USERS = 2000, 50
"users on which decoding is looked into; exact scores of a whole catalogue take half a second a user"


def measure_references(config: RunConfig, store: ArtifactStore, split: Split) -> dict[str, Any]:
    """`{"baselines": {name: metrics}, "oracle": metrics or None}` on all users of `split`; measured once a dataset."""
    settings = {"ks": config.evaluation.ks, "seen": config.evaluation.seen, "split": split}
    return _remember(config, store, "references", 2, settings, lambda: _measure(config, store, split))


def tuned_item_to_item(config: RunConfig, store: ArtifactStore) -> ItemToItemSettings:
    """The settings of item-to-item that are best on validation, found once a dataset and protocol."""
    seen = config.evaluation.seen

    def tune() -> dict[str, Any]:
        return asdict(tune_item_to_item(open_interactions(store, stage_keys(config)), seen))

    return ItemToItemSettings(**_remember(config, store, "item_to_item", 1, {"seen": seen}, tune))


def chosen_weight(config: RunConfig, store: ArtifactStore, models: Mapping[str, Tiger]) -> dict[str, Any]:
    """`{"weight": of the model in its blend with item-to-item, "ndcg": {weight: validation NDCG}}`, chosen once.

    `models`: by the key of their stage; of several the ensemble is what is blended. Chosen on validation with counts of
    training items, whatever the blend is to count later.
    """
    k, evaluation = max(config.evaluation.ks), config.evaluation
    settings = {"tiger": "+".join(models), "seen": evaluation.seen, "beam": evaluation.beam_size, "k": k}

    def choose() -> dict[str, Any]:
        interactions = open_interactions(store, stage_keys(config))
        baseline = fit_baselines(interactions, "train", tuned_item_to_item(config, store))["item_to_item"]
        ranker = ensemble_of(
            [BeamRanker(m, _trie(m), evaluation.beam_size, batch_size=evaluation.batch_size) for m in models.values()]
        )
        users = sample_users(interactions.users_of("validation"), WEIGHT_USERS)
        weight, values = choose_weight(ranker, baseline, interactions, evaluation.seen, k, users)
        return {"weight": weight, f"ndcg@{k}": {str(tried): value for tried, value in values.items()}}

    return _remember(config, store, "blend", 1, settings, choose)


def measure_bundles(
    bundles: Sequence[Path],
    store: ArtifactStore,
    split: Split,
    seen: Seen | None = None,
    beam_size: int | None = None,
) -> dict[str, Any]:
    """A bundle on all users of `split`, beside its blends and the references, under one protocol.

    Several bundles, of one dataset and one footing, are also measured as an ensemble, which then is what is blended.

    `seen` (`keep` or `exclude`) and `beam_size`: as the first was trained to be evaluated when None. Returns `rows`
    (`tiger`, or one a bundle by its name), the `protocol` they were taken under, the `blend`'s weight (None where a
    refit model's cannot be known), and what unconstrained and exact `decoding` of the first tell on a sample of users.
    """
    opened = [open_tiger(bundle, pick_device()) for bundle in bundles]
    configs = [validate_config(facts["config"]) for _, facts in opened]
    config = _comparable(bundles, configs, split)
    evaluation = {"evaluation.seen": seen, "evaluation.beam_size": beam_size}
    given = {key: value for key, value in evaluation.items() if value is not None}
    config = validate_config(with_values(config.to_dict(), given))
    references = measure_references(config, store, split)
    interactions = open_interactions(store, stage_keys(config))
    rows, lists = {}, []
    for bundle, (model, facts) in zip(bundles, opened, strict=True):
        known = KnownLists(interactions.users, len(interactions.catalogue), config.evaluation.seen)
        rows[_name_of(bundle, len(bundles), config)] = evaluate(
            model, _trie(model), interactions, split, config.evaluation, facts["tuple_levels"], known=known
        )
        lists.append(known)
    together = ensemble_of(lists)
    if len(bundles) > 1:
        ranked = {f"ensemble of {len(bundles)}": together}
        rows |= measure_rankers(ranked, interactions, split, config.evaluation.ks, config.evaluation.seen)
    blend = _weight_of(config, configs, [model for model, _ in opened], store)
    if blend is not None:
        rows |= _measure_blends(config, store, split, together, blend["weight"])
    for name in (name for name in BASELINES if name in references["baselines"]):
        row = references["baselines"][name]
        rows[f"{name} (fit: {row.pop('fit')})"] = row
    if references["oracle"]:
        rows["oracle"] = references["oracle"]
    seeds = [trained.seed for trained in configs]
    model, _ = opened[0]
    return {
        "rows": rows,
        "protocol": protocol(config, interactions, split) | {"seed": seeds[0] if len(seeds) == 1 else seeds},
        "blend": blend,
        "decoding": _look_into_decoding(config, model, _trie(model), interactions, split),
    }


def _name_of(bundle: Path, count: int, config: RunConfig) -> str:
    """Of a bundle's row: what was learnt is said where it is more than the training items."""
    name = "tiger" if count == 1 else f"tiger {bundle.name}"
    return f"{name} (fit: {config.train.fit_on})" if config.train.refit else name


def blend_weight(config: RunConfig, store: ArtifactStore, model: Tiger) -> dict[str, Any]:
    """`chosen_weight` for one config. A refit model's is that of the config as it was trained before.

    Raises `InputError` where that training is not in the store.
    """
    found = _weight_of(config, [config], [model], store)
    if found is None:
        raise InputError(
            "the weight of a blend is chosen on validation, which train.fit_on: train+validation learns; train the "
            "same config first with --set train.fit_on=train, into the same store"
        )
    return found


def _weight_of(
    config: RunConfig, configs: Sequence[RunConfig], models: Sequence[Tiger], store: ArtifactStore
) -> dict[str, Any] | None:
    if not config.train.refit:
        keys = [stage_keys(trained)["tiger"] for trained in configs]
        return chosen_weight(config, store, dict(zip(keys, models, strict=True)))
    keys = [stage_keys(before_refit(trained))["tiger"] for trained in configs]
    if not all(store.has("tiger", key) for key in keys):
        return None
    before = {key: open_tiger(store.path("tiger", key), pick_device())[0] for key in keys}
    return chosen_weight(before_refit(config), store, before)


def before_refit(config: RunConfig) -> RunConfig:
    """The config trained on training items alone, by which everything is chosen."""
    return config.model_copy(update={"train": config.train.model_copy(update={"fit_on": "train"})})


def ensemble_of(rankers: Sequence[Ranker]) -> Ranker:
    """The mean of the rankers; a single one is itself."""
    return rankers[0] if len(rankers) == 1 else Ensemble(rankers)


def _comparable(bundles: Sequence[Path], configs: Sequence[RunConfig], split: Split) -> RunConfig:
    """The first config, where all are of one dataset and footing, have distinct names, and have not learnt `split`."""
    first, names = configs[0], [bundle.name for bundle in bundles]
    for bundle, config in zip(bundles, configs, strict=True):
        if config.train.refit and split == "validation":
            raise InputError(f"{bundle} has learnt the validation items (train.fit_on): measure it on the test split")
        if config.train.fit_on != first.train.fit_on:
            learnt = f"{first.train.fit_on} in {bundles[0]}, {config.train.fit_on} in {bundle}"
            raise InputError(f"train.fit_on: {learnt}: two footings, which are never mixed")
        if stage_keys(config)["dataset"] != stage_keys(first)["dataset"]:
            raise InputError(f"{bundle} is of another dataset than {bundles[0]}: only one catalogue can be ranked")
    if len(set(names)) < len(names):
        raise InputError(f"bundles need distinct folder names, which stand for them in the table; got {names}")
    return first


def protocol(config: RunConfig, interactions: Interactions, split: Split) -> dict[str, Any]:
    """What every number must carry."""
    return {
        "split": split,
        "divided": config.dataset.split,
        "hit": "item",
        "beam": config.evaluation.beam_size,
        "seen": config.evaluation.seen,
        "users": len(interactions.users_of(split)),
        "catalogue": interactions.catalogue.hash,
    }


def table_lines(measured: dict[str, Any]) -> list[str]:
    """What `measure_bundles` returns, as text: item-level numbers, tuple-level ones apart, the protocol."""
    rows = measured["rows"]
    columns = [name for name in next(iter(rows.values())) if "@" in name]
    items = [name for name in columns if not name.startswith("tuple_")]
    tuples = [name for name in columns if name.startswith("tuple_")]
    models = {name: row for name, row in rows.items() if name.startswith("tiger")}
    decoding = [f"{name} {value:.4f}" for name, value in measured["decoding"].items() if "@" in name]
    return [
        *_table(rows, items),
        "",
        "the same lists read as semantic-ID tuples, as papers count; not comparable with the rows above",
        *_table(models, tuples),
        "",
        _blend_line(measured["blend"], "tiger" if len(models) == 1 else "ensemble"),
        f"decoding, on {measured['decoding']['users']} users: {'  '.join(decoding)}",
        "  ".join(f"{name}: {value}" for name, value in measured["protocol"].items()),
    ]


def _blend_line(blend: dict[str, Any] | None, blended: str) -> str:
    if blend is None:
        return "no blend: its weight is chosen by the same config trained without train.fit_on; the store has none"
    weight = blend["weight"]
    return f"blend: {weight} {blended} + {1 - weight:.1f} item_to_item, the weight chosen on validation"


def _measure(config: RunConfig, store: ArtifactStore, split: Split) -> dict[str, Any]:
    ks, seen = config.evaluation.ks, config.evaluation.seen
    interactions, settings = open_interactions(store, stage_keys(config)), tuned_item_to_item(config, store)
    fitted = evaluate_baselines(interactions, split, ks, seen, "train", settings)
    baselines: dict[str, Any] = {name: metrics | {"fit": "train"} for name, metrics in fitted.items()}
    if split == "test":
        refit = evaluate_baselines(interactions, split, ks, seen, "train+validation", settings)
        baselines["item_to_item_refit"] = refit["item_to_item"] | {"fit": "train+validation"}
    truth = None
    synthetic = config.dataset.synthetic
    if config.dataset.source == "synthetic" and len(interactions.catalogue) == synthetic.num_items:
        truth = oracle(interactions, SyntheticTruth.from_config(synthetic), split, ks, seen)
    return {"baselines": baselines, "oracle": truth}


def _measure_blends(
    config: RunConfig, store: ArtifactStore, split: Split, model: Ranker, weight: float
) -> dict[str, dict[str, float]]:
    """The model with item-to-item, one row a footing: counts of training items, and on test of validation too, which is
    the only footing of a model that has learnt them."""
    interactions, settings = open_interactions(store, stage_keys(config)), tuned_item_to_item(config, store)
    blends: dict[str, Ranker] = {}
    fits: list[Fit] = ["train", "train+validation"] if split == "test" else ["train"]
    for fit in fits[1:] if config.train.refit else fits:
        baseline = fit_baselines(interactions, fit, settings)["item_to_item"]
        blends[f"blend (fit: {fit})"] = Blend(model, baseline, weight)
    return measure_rankers(blends, interactions, split, config.evaluation.ks, config.evaluation.seen)


def _look_into_decoding(
    config: RunConfig, model: Tiger, trie: Trie, interactions: Interactions, split: Split
) -> dict[str, Any]:
    users = interactions.users_of(split)
    some, few = sample_users(users, INVALID_USERS), sample_users(users, AGREEMENT_USERS)
    found = invalid_id_rate(model, interactions, split, config.evaluation, some)
    found |= agreement(model, trie, interactions, split, config.evaluation, few)
    return found | {"users": f"{len(some)} and {len(few)}"}


def _trie(model: Tiger) -> Trie:
    return Trie(model.codes_NC)


def _remember(
    config: RunConfig, store: ArtifactStore, kind: str, code: int, settings: dict[str, Any], make: Any
) -> dict[str, Any]:
    """What `make` returns, kept in the store by dataset and `settings`. Raise `code` when its result changes."""
    run_pipeline(config, store, until="dataset")
    settings = {"dataset": stage_keys(config)["dataset"], "code": code} | settings

    def build(folder: Path) -> dict[str, Any]:
        write_json(folder / f"{kind}.json", make())
        return settings

    folder, _ = store.ensure(kind, content_hash(settings), build, logger.info)
    return json.loads((folder / f"{kind}.json").read_text())


def _table(rows: dict[str, dict[str, float]], columns: list[str]) -> list[str]:
    left, width = max(map(len, rows)), max(10, *(len(name) + 2 for name in columns))
    lines = [" " * left + "".join(f"{name:>{width}}" for name in columns)]
    for name, row in rows.items():
        cells = (f"{row[column]:.4f}" if column in row else "" for column in columns)
        lines.append(f"{name:{left}}" + "".join(f"{cell:>{width}}" for cell in cells))
    return lines
