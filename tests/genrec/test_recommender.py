"""A bundle recommends what the model in it would."""

from __future__ import annotations

import shutil

import pytest
import torch

from genrec.checkpoint import CheckpointError
from genrec.decoding import beam_search
from genrec.errors import InputError
from genrec.pipeline import open_interactions, open_tiger, stage_keys
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
    with pytest.raises(CheckpointError, match="no such folder"):
        Recommender.load(tmp_path / "none")
    copy = shutil.copytree(trained.bundle, tmp_path / "damaged")
    (copy / "model" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="an incomplete save"):
        Recommender.load(copy)
