"""The stages from items to semantic IDs: what they share, a tokenizer that was trained before, and bad vectors."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from genrec.artifacts import ArtifactStore
from genrec.checkpoint import CheckpointError
from genrec.cli import main
from genrec.config import RunConfig, validate_config, with_values
from genrec.errors import InputError
from genrec.models.tokenizers import load_tokenizer
from genrec.pipeline import open_embeddings, open_ids, open_tokenizer, run_pipeline, stage_keys

ITEMS, WIDTH = 12, 4


def random_vectors(seed: int = 0, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ITEMS, width)).astype(np.float32)


def write_data(folder: Path, vectors: np.ndarray | None = None) -> RunConfig:
    """A dataset of twelve items with vectors, and a run on it."""
    folder.mkdir(exist_ok=True)
    items = [{"item_id": n, "asin": f"A{n}", "title": f"thing {n}"} for n in range(1, ITEMS + 1)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    lines = [f"u{u} " + " ".join(str(1 + (u + step) % ITEMS) for step in range(4)) for u in range(8)]
    (folder / "sequential_data.txt").write_text("\n".join(lines) + "\n")
    np.save(folder / "vectors.npy", random_vectors() if vectors is None else vectors)
    rqvae = {"hidden_dims": [8], "latent_dim": 4, "epochs": 3}
    return validate_config(
        {
            "dataset": {"source": "sequential", "dataset_folder": str(folder)},
            "embeddings": {"encoder": "npy", "path": "vectors.npy"},
            "tokenizer": {"kind": "rkmeans", "num_item_embeddings": 3, "sem_id_dim": 2, "rqvae": rqvae},
        }
    )


def changed(config: RunConfig, **values: Any) -> RunConfig:
    return validate_config(with_values(config.to_dict(), {key.replace("__", "."): v for key, v in values.items()}))


def ids_of(config: RunConfig, store: ArtifactStore) -> list[list[int]]:
    keys = run_pipeline(config, store, until="semantic_ids").keys
    return open_ids(store, keys).codes_NC.tolist()


# ------------------------------------------------------------------ collisions


def test_runs_that_handle_collisions_in_different_ways_share_their_tokenizer(tmp_path):
    config, store = write_data(tmp_path / "data"), ArtifactStore(tmp_path / "store")
    config = changed(config, tokenizer__num_item_embeddings=4)
    assert {len(row) for row in ids_of(config, store)} == {3}
    moved = changed(config, tokenizer__collisions="reassign")
    result = run_pipeline(moved, store, until="semantic_ids")
    assert result.trained == ["semantic_ids"]
    rows = ids_of(moved, store)
    assert {len(row) for row in rows} == {2}
    assert len({tuple(row) for row in rows}) == ITEMS
    left = changed(config, tokenizer__collisions="none")
    tokenizer = open_tokenizer(left, store, stage_keys(left))
    assert tokenizer.config.collisions == "none"
    assert ids_of(left, store) == tokenizer.codes(open_embeddings(store, stage_keys(left))).tolist()


# --------------------------------------------------------- pretrained tokenizer


@pytest.fixture(params=["rqvae", "rkmeans"])
def first_run(request, tmp_path) -> tuple[RunConfig, ArtifactStore, Path]:
    """A run whose tokenizer has been trained, and the folder that it is in."""
    config, store = write_data(tmp_path / "data"), ArtifactStore(tmp_path / "first")
    config = changed(config, tokenizer__kind=request.param)
    keys = run_pipeline(config, store, until="semantic_ids").keys
    return config, store, store.path("tokenizer", keys["tokenizer"])


def test_a_pretrained_tokenizer_is_used_as_it_is(first_run, tmp_path):
    config, store, folder = first_run
    # Its own training settings no longer matter, and neither does another seed.
    second = changed(
        config, tokenizer__pretrained_rqvae_path=str(folder), tokenizer__seed=7, tokenizer__rqvae__epochs=99
    )
    assert ids_of(second, ArtifactStore(tmp_path / "second")) == ids_of(config, store)
    loaded = load_tokenizer(ArtifactStore(tmp_path / "second").path("tokenizer", stage_keys(second)["tokenizer"]))
    for name, tensor in load_tokenizer(folder).state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_pretrained_tokenizer_gives_ids_to_other_vectors(first_run, tmp_path):
    config, _, folder = first_run
    other = changed(write_data(tmp_path / "other", random_vectors(1)), tokenizer__kind=config.tokenizer.kind)
    other = changed(other, tokenizer__pretrained_rqvae_path=str(folder / "model"))
    keys = run_pipeline(other, ArtifactStore(tmp_path / "second"), until="semantic_ids").keys
    codes = open_ids(ArtifactStore(tmp_path / "second"), keys).codes_NC[:, :2]
    assert torch.equal(codes, load_tokenizer(folder).codes(torch.from_numpy(random_vectors(1))))


def test_the_key_follows_the_content_of_the_pretrained_tokenizer(first_run, tmp_path):
    config, store, folder = first_run
    pretrained = changed(config, tokenizer__pretrained_rqvae_path=str(folder))
    before = stage_keys(pretrained)
    assert before["embeddings"] == stage_keys(config)["embeddings"]
    assert before["tokenizer"] != stage_keys(config)["tokenizer"]
    assert stage_keys(changed(pretrained, tokenizer__seed=7, tokenizer__rqvae__epochs=99)) == before
    # The same tokenizer elsewhere is the same; another in the same place is another.
    copy = tmp_path / "copy"
    (folder / "model").rename(copy)
    assert stage_keys(changed(config, tokenizer__pretrained_rqvae_path=str(copy))) == before
    other = run_pipeline(changed(config, tokenizer__seed=3), store, until="tokenizer").keys
    (store.path("tokenizer", other["tokenizer"]) / "model").rename(folder / "model")
    assert stage_keys(pretrained)["tokenizer"] != before["tokenizer"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokenizer__sem_id_dim": 3}, r"the tokenizer has sem_id_dim 2, but tokenizer\.sem_id_dim is 3"),
        ({"tokenizer__num_item_embeddings": 5}, r"has num_item_embeddings 3, but tokenizer\.num_item_embeddings is 5"),
    ],
)
def test_a_pretrained_tokenizer_of_another_shape_is_refused_with_both_values(first_run, tmp_path, values, message):
    config, _, folder = first_run
    wrong = changed(config, tokenizer__pretrained_rqvae_path=str(folder), **values)
    store = ArtifactStore(tmp_path / "second")
    # Also where the tokenizer was used before with a config that it fits.
    run_pipeline(changed(config, tokenizer__pretrained_rqvae_path=str(folder)), store, until="tokenizer")
    with pytest.raises(CheckpointError, match=message):
        run_pipeline(wrong, store, until="tokenizer")


def test_a_pretrained_tokenizer_of_another_kind_is_refused_with_both_kinds(first_run, tmp_path):
    config, _, folder = first_run
    kinds = {"rqvae": "rkmeans", "rkmeans": "rqvae"}
    found, expected = config.tokenizer.kind, kinds[config.tokenizer.kind]
    wrong = changed(config, tokenizer__kind=expected, tokenizer__pretrained_rqvae_path=str(folder))
    with pytest.raises(CheckpointError, match=rf"has kind {found}, but tokenizer\.kind is {expected}"):
        run_pipeline(wrong, ArtifactStore(tmp_path / "second"), until="tokenizer")


def test_a_pretrained_tokenizer_for_other_vectors_is_refused_with_both_widths(first_run, tmp_path):
    config, _, folder = first_run
    wider = changed(write_data(tmp_path / "wider", random_vectors(0, 6)), tokenizer__kind=config.tokenizer.kind)
    wider = changed(wider, tokenizer__pretrained_rqvae_path=str(folder))
    with pytest.raises(CheckpointError, match="reads vectors of width 4, but the items' have 6"):
        run_pipeline(wider, ArtifactStore(tmp_path / "second"), until="tokenizer")


def test_a_pretrained_tokenizer_that_is_not_there_is_named_before_anything_runs(first_run, tmp_path):
    config, _, _ = first_run
    missing = changed(config, tokenizer__pretrained_rqvae_path=str(tmp_path / "nowhere" / "checkpoint.pt"))
    with pytest.raises(InputError, match=r"nowhere/checkpoint\.pt: no such file or folder"):
        stage_keys(missing)


# ----------------------------------------------------------------- bad vectors


def tokenize(config: RunConfig, folder: Path) -> Result:
    (folder / "run.yaml").write_text(yaml.safe_dump(config.to_dict() | {"save_dir_root": str(folder / "runs")}))
    return CliRunner().invoke(main, ["tokenize", str(folder / "run.yaml"), "--store", str(folder / "store")])


def spoiled(row: int, value: float, width: int = WIDTH) -> np.ndarray:
    vectors = random_vectors()
    vectors[row, :width] = value
    return vectors


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (spoiled(4, np.nan, 1), "row 4 (item 'A5'): every value must be finite"),
        (spoiled(0, np.inf, 1), "row 0 (item 'A1'): every value must be finite"),
        (spoiled(11, 0.0), "row 11 (item 'A12'): a row must not be all zero"),
        (random_vectors()[:, 0], "shape must be (12, E), one row an item, got (12,)"),
        (random_vectors()[:11], "shape must be (12, E), one row an item, got (11, 4)"),
        (random_vectors().astype(np.int32), "values must be float16, float32 or float64, got int32"),
        (random_vectors().astype(object), "cannot be read as an array of numbers"),
    ],
    ids=["NaN", "inf", "zero row", "one dimension", "too few rows", "integers", "objects"],
)
def test_bad_vectors_end_the_command_with_file_row_and_item(tmp_path, vectors, message):
    """B36."""
    result = tokenize(write_data(tmp_path / "data", vectors), tmp_path)
    assert result.exit_code == 2
    assert "error: " in result.stderr
    assert "vectors.npy" in result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
@pytest.mark.parametrize(
    ("vectors", "codes", "reason"),
    [
        (np.ones((ITEMS, WIDTH), np.float32), 3, "all 12 item vectors are equal"),
        (random_vectors(), 16, "there are 12 different item vectors for the 16 codes of a level"),
    ],
    ids=["equal", "fewer items than codes"],
)
def test_equal_vectors_and_few_items_are_warned_of_with_their_collision_rate(
    tmp_path, caplog, kind, vectors, codes, reason
):
    """B37."""
    config = changed(write_data(tmp_path / "data", vectors), tokenizer__kind=kind, tokenizer__num_item_embeddings=codes)
    with caplog.at_level(logging.WARNING):
        result = tokenize(config, tmp_path)
    assert result.exit_code == 0, result.output
    ids = open_ids(ArtifactStore(tmp_path / "store"), stage_keys(config))
    assert f"collision rate {100 * ids.health.collision_rate:.1f}%" in caplog.text
    assert reason in caplog.text
    assert len({tuple(row) for row in ids.codes_NC.tolist()}) == ITEMS
    tokenizer = load_tokenizer(ArtifactStore(tmp_path / "store").path("tokenizer", stage_keys(config)["tokenizer"]))
    assert all(tensor.isfinite().all() for tensor in tokenizer.state_dict().values())
