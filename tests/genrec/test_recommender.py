"""A bundle recommends what the model in it would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from genrec.baselines import ItemToItemSettings, fit_baselines
from genrec.blending import Blend
from genrec.checkpoint import CheckpointError
from genrec.comparison import chosen_weight, tuned_item_to_item
from genrec.config import RunConfig, validate_config
from genrec.data.interactions import Histories
from genrec.decoding import beam_search
from genrec.errors import InputError
from genrec.evaluation import BeamRanker
from genrec.pipeline import open_interactions, open_tiger, run_pipeline, stage_keys
from genrec.ranking import best_items
from genrec.recommender import Recommender, export_bundle
from genrec.trie import Trie


@pytest.fixture(scope="module")
def recommender(trained) -> Recommender:
    return Recommender.load(trained.bundle)


def ids_of(recommender: Recommender, numbers: list[int]) -> list[str]:
    return [recommender.ids[number] for number in numbers]


def test_a_bundle_recommends_what_beam_search_finds(trained, recommender):
    keys = stage_keys(trained.config)
    model, _ = open_tiger(trained.store.path("tiger", keys["tiger"]))
    catalogue = open_interactions(trained.store, keys).catalogue
    histories = [[1, 2, 3], [5], [7, 7, 8, 30]]
    found = recommender.recommend([ids_of(recommender, history) for history in histories], k=7)
    for history, recommendations in zip(histories, found, strict=True):
        beams = beam_search(model, Trie(model.codes_NC), torch.tensor([history]), 50)
        items = beams.item_BW[0, :7].tolist()
        assert [r.item for r in recommendations] == [catalogue.ids[item] for item in items]
        assert [r.title for r in recommendations] == [catalogue.titles[item] for item in items]
        assert [r.score for r in recommendations] == pytest.approx(beams.score_BW[0, :7].tolist())


def test_a_list_does_not_depend_on_its_companions(recommender):
    histories = [ids_of(recommender, history) for history in ([1, 2, 3], [5], [7, 7, 8, 30], [4, 9, 11])]
    together = recommender.recommend(histories, 5, exclude_seen=True)
    for history, found in zip(histories, together, strict=True):
        (alone,) = recommender.recommend([history], 5, exclude_seen=True)
        assert [r.item for r in alone] == [r.item for r in found]
        assert [r.score for r in alone] == pytest.approx([r.score for r in found])


def test_a_long_history_counts_by_its_recent_items(trained, recommender):
    longest = trained.config.tiger.max_seq_len
    history = ids_of(recommender, [n % 40 for n in range(3 * longest)])
    assert recommender.recommend([history]) == recommender.recommend([history[-longest:]])


def test_items_of_the_whole_history_can_be_left_out(trained, recommender):
    history = ids_of(recommender, list(range(30)))
    assert trained.config.tiger.max_seq_len < 30
    (kept,), (left,) = (recommender.recommend([history], 40, exclude_seen=flag) for flag in (False, True))
    assert len(kept) == 40
    assert [r.item for r in left] == [r.item for r in kept if r.item not in history]


def test_leaving_items_out_does_not_shorten_the_list(recommender, monkeypatch):
    """However narrow the beam, as long as the catalogue has enough other items."""
    monkeypatch.setattr("genrec.recommender.MIN_BEAM", 1)
    history = ids_of(recommender, list(range(25)))
    assert len(recommender.recommend([history], 15, exclude_seen=True)[0]) == 15


def test_by_default_seen_items_are_treated_as_in_evaluation(recommender):
    history = ids_of(recommender, [1, 2, 3])
    assert recommender.config.evaluation.seen == "keep"
    assert recommender.recommend([history], 40) == recommender.recommend([history], 40, exclude_seen=False)


def test_an_unknown_item_gets_the_nearest(recommender):
    known = recommender.ids[6]
    typo = known[:-1] + "x"
    with pytest.raises(InputError, match=rf"item '{typo}' is not in the catalogue of 40 items; did you mean 'S\d+'"):
        recommender.recommend([[typo]])


@pytest.mark.parametrize("k", [0, -1, 41])
def test_a_length_the_catalogue_cannot_give_is_refused(recommender, k):
    with pytest.raises(InputError, match=f"k must be from 1 to the 40 items of the catalogue, got {k}"):
        recommender.recommend([[recommender.ids[0]]], k=k)


def test_an_empty_history_is_refused(recommender):
    with pytest.raises(InputError, match="an empty history"):
        recommender.recommend([[]])


def test_a_history_that_is_no_list_and_users_that_do_not_fit_are_refused(recommender):
    with pytest.raises(InputError, match="a history must be a list of item ids, got the text"):
        recommender.recommend([recommender.ids[0]])
    with pytest.raises(InputError, match="one user id a history, got 2 for 1 histories"):
        recommender.recommend([[recommender.ids[0]]], users=["a", "b"])


def test_a_model_with_user_tokens_recommends_by_user(make_codes, make_tiger):
    model = make_tiger(make_codes(12, (3, 3, 2)), (3, 3, 2), num_user_embeddings=50)
    names = [f"i{number}" for number in range(12)]
    config = validate_config({"tiger": {"num_user_embeddings": 50}})
    recommender = Recommender(model, config, names, names, tuple_levels=2)
    history = ["i1", "i2"]
    anna, bob, nobody = (recommender.recommend([history], 12, users=users)[0] for users in (["anna"], ["bob"], None))
    assert len({tuple(r.score for r in found) for found in (anna, bob, nobody)}) == 3
    together = recommender.recommend([history] * 2, 12, users=["bob", "anna"])
    assert [[r.item for r in found] for found in together] == [[r.item for r in found] for found in (bob, anna)]


def test_exporting_again_replaces_the_bundle(trained, tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "old").touch()
    export_bundle(trained.config, trained.store, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in trained.bundle.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_needs_nothing_else(trained, tmp_path):
    copy = shutil.copytree(trained.bundle, tmp_path / "elsewhere")
    history = [Recommender.load(trained.bundle).ids[3]]
    assert Recommender.load(copy).recommend([history]) == Recommender.load(trained.bundle).recommend([history])


def test_a_missing_or_damaged_bundle_is_refused(trained, tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        Recommender.load(tmp_path / "none")
    copy = shutil.copytree(trained.bundle, tmp_path / "damaged")
    (copy / "model" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no model in it"):
        Recommender.load(copy)


def test_a_bundle_that_does_not_fit_its_items_is_refused(trained, tmp_path):
    copy = shutil.copytree(trained.bundle, tmp_path / "short")
    lines = (copy / "items.jsonl").read_text().splitlines()
    (copy / "items.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(CheckpointError, match="39 rows do not fit a model of 40 items"):
        Recommender.load(copy)
    (copy / "items.jsonl").write_text("no json\n" * 40)
    with pytest.raises(CheckpointError, match="cannot be read as the items of a bundle"):
        Recommender.load(copy)


def test_an_export_that_fails_leaves_the_old_bundle_alone(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained.bundle, tmp_path / "bundle")
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(self: object, folder: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("genrec.data.lsa.Lsa.save", fail)
    with pytest.raises(OSError, match="disk full"):
        export_bundle(trained.config, trained.store, folder)
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# ----------------------------------------------------------------- cold items


def text_of(trained, item: str) -> str:
    catalogue = open_interactions(trained.store, stage_keys(trained.config)).catalogue
    return catalogue.texts[catalogue.index[item]]


def with_room(recommender: Recommender) -> set[str]:
    """The items whose tuples have a collision code left."""
    _, group, count = torch.unique(
        recommender.model.codes_NC[:, : recommender.tuple_levels], dim=0, return_inverse=True, return_counts=True
    )
    room = count[group] < recommender.model.level_sizes[-1]
    return {item for item, free in zip(recommender.ids, room.tolist(), strict=True) if free}


def test_a_new_item_that_reads_like_a_popular_one_is_recommended(trained):
    recommender = Recommender.load(trained.bundle)
    old_ids = recommender.model.codes_NC.clone()
    history = ids_of(recommender, [1, 2, 3])
    best = recommender.recommend([history], 40)[0]
    like = next(r.item for r in best if r.item in with_room(recommender))
    (named,) = recommender.add_items([{"item": "NEW1", "title": "A novelty", "text": text_of(trained, like)}])
    found = recommender.recommend([history], 41)[0]
    place = [r.item for r in found].index("NEW1")
    assert found[place].title == "A novelty"
    assert place < 10
    tuples_NL = old_ids[:, : recommender.tuple_levels]
    group = (tuples_NL == tuples_NL[recommender.index[like]]).all(1).nonzero().flatten().tolist()
    mean = np.mean([np.exp(r.score) for r in best if recommender.index[r.item] in group])
    assert np.exp(found[place].score) == pytest.approx(mean)
    assert named == "-".join(map(str, recommender.model.codes_NC[40].tolist()))
    assert torch.equal(recommender.model.codes_NC[:40], old_ids)
    assert [r.item for r in found if r.item != "NEW1"] == [r.item for r in best]
    (of_new,) = recommender.recommend([["NEW1"]], 5, exclude_seen=True)
    assert len(of_new) == 5


def test_new_items_may_come_as_vectors_and_are_many(trained):
    recommender = Recommender.load(trained.bundle)
    vectors_NE = np.load(trained.store.path("embeddings", stage_keys(trained.config)["embeddings"]) / "embeddings.npy")
    with pytest.raises(InputError, match=r"must have the shape \(2, 8\)"):
        recommender.add_items([{"item": "A"}, {"item": "B"}], vectors_NE[:1])
    # Twice as many items as there is room for in any one group: they spread over their neighbourhood.
    recommender.add_items([{"item": f"N{n}"} for n in range(40)], vectors_NE[[3] * 40])
    assert recommender.titles[40:] == recommender.ids[40:]
    assert len(torch.unique(recommender.model.codes_NC, dim=0)) == 80
    assert len(recommender.recommend([["N7", recommender.ids[0]]], 80)[0]) == 80
    assert recommender.add_items([]) == []


def test_new_items_that_cannot_be_used_are_refused(trained, recommender):
    known = recommender.ids[0]
    for items, message in (
        ([{"item": known, "text": "x"}], f"new item 0: '{known}' is in the catalogue already"),
        ([{"item": "A", "text": "x"}, {"item": "A", "text": "x"}], "item ids must be unique; 'A'"),
        ([{"item": "A", "text": " "}], "new item 0: 'text' must be a text that is not empty, got ' '"),
        ([{"text": "x"}], "new item 0: 'item' must be a text that is not empty, got None"),
        ([{"item": "A", "txt": "x"}], "new item 0: unknown key 'txt'; did you mean 'text'?"),
    ):
        with pytest.raises(InputError) as error:
            recommender.add_items(items)
        assert message in str(error.value)
    assert len(recommender.ids) == 40


def test_texts_say_nothing_where_the_catalogue_came_as_an_array(trained, make_codes, make_tiger):
    recommender = Recommender.load(trained.bundle)
    embeddings = recommender.config.embeddings.model_copy(update={"encoder": "npy", "path": "v.npy"})
    recommender.config = recommender.config.model_copy(update={"embeddings": embeddings})
    with pytest.raises(InputError, match="give vectors= for new items"):
        recommender.add_items([{"item": "A", "text": "x"}])


# ---------------------------------------------------------------------- blend


@pytest.fixture(scope="module")
def blended(trained, tmp_path_factory) -> tuple[RunConfig, Path]:
    """The tiny run with a blend on the second footing; the model is the same."""
    evaluation = trained.config.evaluation.model_dump() | {"blend": "item_to_item", "blend_fit": "train+validation"}
    config = validate_config(trained.config.to_dict() | {"evaluation": evaluation})
    assert run_pipeline(config, trained.store).trained == []
    return config, export_bundle(config, trained.store, tmp_path_factory.mktemp("blended") / "bundle")


def test_a_bundle_with_a_blend_recommends_by_it(trained, blended):
    config, bundle = blended
    keys = stage_keys(config)
    model, _ = open_tiger(trained.store.path("tiger", keys["tiger"]))
    settings = tuned_item_to_item(config, trained.store)
    interactions = open_interactions(trained.store, keys)
    weight = chosen_weight(config, trained.store, {keys["tiger"]: model})["weight"]
    baseline = fit_baselines(interactions, "train+validation", settings)["item_to_item"]
    blend = Blend(BeamRanker(model, Trie(model.codes_NC), 50, room_for_seen=True), baseline, weight)
    recommender = Recommender.load(bundle)
    histories = [[1, 2, 3], [5], [7, 7, 8, 30]]
    found = recommender.recommend([ids_of(recommender, history) for history in histories], 6, exclude_seen=True)
    items_BK, scores_BK = best_items(blend.scores(Histories.from_lists(histories), 6, "exclude"), 6)
    for row, recommendations in enumerate(found):
        assert [r.item for r in recommendations] == ids_of(recommender, items_BK[row].tolist())
        assert [r.score for r in recommendations] == pytest.approx(np.log(scores_BK[row]).tolist())


def test_the_blend_holds_the_counts_that_the_config_says_and_no_code(trained, blended):
    config, bundle = blended
    facts = json.loads((bundle / "item_to_item" / "manifest.json").read_text())["facts"]
    assert facts["fit"] == "train+validation"
    assert 0 <= facts["weight"] <= 1
    assert ItemToItemSettings(**facts["settings"]) == tuned_item_to_item(config, trained.store)
    kinds = {path.suffix for path in bundle.rglob("*") if path.is_file()}
    assert kinds == {".json", ".jsonl", ".safetensors"}


def test_new_items_go_through_a_blend_too(trained, blended):
    recommender = Recommender.load(blended[1])
    history = ids_of(recommender, [1, 2, 3])
    best = recommender.recommend([history], 1)[0][0].item
    recommender.add_items([{"item": "NEW1", "text": text_of(trained, best)}])
    assert "NEW1" in [r.item for r in recommender.recommend([history], 41)[0]]


def test_a_damaged_blend_is_refused(blended, tmp_path):
    copy = shutil.copytree(blended[1], tmp_path / "damaged")
    (copy / "item_to_item" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="item_to_item"):
        Recommender.load(copy)


def test_an_ensemble_recommends_by_the_mean_of_its_probabilities(trained, another_seed, recommender):
    history = ids_of(recommender, [1, 2, 3])
    singles = [Recommender.load(bundle).recommend([history], 40)[0] for bundle in (trained.bundle, another_seed)]
    shares = [{r.item: np.exp(r.score) for r in found} for found in singles]
    mean = {item: (shares[0][item] + shares[1][item]) / 2 for item in shares[0]}
    found = Recommender.load(trained.bundle, another_seed).recommend([history], 40)[0]
    assert [r.item for r in found] == sorted(mean, key=lambda item: -mean[item])
    assert [np.exp(r.score) for r in found] == pytest.approx(sorted(mean.values(), reverse=True))


def test_models_over_other_items_are_no_ensemble_and_new_items_have_no_place_in_one(trained, another_seed, tmp_path):
    other = shutil.copytree(another_seed, tmp_path / "other")
    rows = (other / "items.jsonl").read_text().splitlines()
    (other / "items.jsonl").write_text("\n".join(reversed(rows)) + "\n")
    with pytest.raises(InputError, match="ranks other items"):
        Recommender.load(trained.bundle, other)
    with pytest.raises(InputError, match="ensemble"):
        Recommender.load(trained.bundle, another_seed).add_items([{"item": "NEW", "text": "a text"}])
