"""Metrics against one user at a time in plain Python, alone and over two processes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from genrec.config import EvaluationConfig, TigerConfig
from genrec.data.interactions import Interactions, Items, build_interactions
from genrec.evaluation import evaluate, history_batches, sample_users
from genrec.models.tiger import Tiger, Window
from genrec.semantic_ids import assign_ids
from genrec.trie import Trie

NUM_ITEMS, LONGEST, KS = 30, 4, [1, 3, 10]


def make_data(num_users: int = 25) -> Interactions:
    """Users with 3 to 8 items; every tenth wants an item again that it has had."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, num_users)
    items = rng.integers(0, NUM_ITEMS, lengths.sum())
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items[offsets[1::3] - 1] = items[offsets[:-1:3]]
    names = [f"i{n}" for n in range(NUM_ITEMS)]
    return build_interactions([f"u{n}" for n in range(num_users)], offsets, items, Items(names, names, names))


def make_model() -> tuple[Tiger, int]:
    """A float64 model with random weights over IDs with collisions, and the tokenizer's number of levels."""
    generator = torch.Generator().manual_seed(0)
    ids = assign_ids(torch.randint(4, (NUM_ITEMS, 2), generator=generator), 4)
    assert len(ids.level_sizes) == 3
    config = TigerConfig(embedding_dim=8, attn_dim=8, num_heads=2, feedforward_dim=8, n_layers=2, max_seq_len=LONGEST)
    model = Tiger(config, ids.codes_NC, ids.level_sizes).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model, ids.tuple_levels


def config(**settings) -> EvaluationConfig:
    return EvaluationConfig(**({"ks": KS, "beam_size": NUM_ITEMS, "monitor": "ndcg@3", "batch_size": 4} | settings))


def run(data: Interactions, split: str = "test", users: np.ndarray | None = None, **settings) -> dict[str, float]:
    model, tuple_levels = make_model()
    return evaluate(model, Trie(model.codes_NC), data, split, config(**settings), tuple_levels, users)


def plain_metrics(data: Interactions, split: str, users: list[int], seen: str) -> dict[str, float]:
    """Every user alone: score all items by teacher forcing, sort, look where the target stands."""
    model, tuple_levels = make_model()
    model.eval()
    sums = {f"{p}{n}@{k}": 0.0 for p in ("", "tuple_") for n in ("recall", "ndcg") for k in KS}
    for user in users:
        whole = data.history(user).tolist()
        *history, target = whole[: len(whole) - (1 if split == "validation" else 0)]
        recent = torch.tensor(history[-LONGEST:])
        rows = torch.cat([recent.expand(NUM_ITEMS, -1), torch.arange(NUM_ITEMS).unsqueeze(1)], dim=1)
        with torch.no_grad():
            logits = model.target_logits(Window(rows, len(recent)))
        scores = sum(
            level.log_softmax(-1).gather(1, model.codes_NC[:, [n]]).squeeze(1) for n, level in enumerate(logits)
        ).tolist()
        candidates = [i for i in range(NUM_ITEMS) if seen == "keep" or i not in history]
        listed = sorted(candidates, key=lambda i, scores=scores: (-scores[i], i))
        codes = [tuple(row) for row in model.codes_NC[:, :tuple_levels].tolist()]
        tuples = list(dict.fromkeys(codes[i] for i in listed))
        for prefix, ranking, wanted in (("", listed, target), ("tuple_", tuples, codes[target])):
            if wanted in ranking:
                place = ranking.index(wanted)
                for k in KS:
                    if place < k:
                        sums[f"{prefix}recall@{k}"] += 1
                        sums[f"{prefix}ndcg@{k}"] += 1 / math.log2(place + 2)
    return {name: total / len(users) for name, total in sums.items()} | {"users": len(users)}


@pytest.mark.parametrize("seen", ["keep", "exclude"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_metrics_equal_ranking_all_items_for_one_user_at_a_time(split, seen):
    data = make_data()
    found = run(data, split, seen=seen)
    expected = plain_metrics(data, split, list(range(25)), seen)
    assert found == pytest.approx(expected)
    assert 0 < found["recall@10"] < found["tuple_recall@10"] < 1  # the numbers tell something


def test_what_was_seen_makes_a_difference():
    assert run(make_data(), seen="keep") != run(make_data(), seen="exclude")


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_users_count_once_whatever_the_batches(batch_size):
    found = run(make_data(), batch_size=batch_size)
    assert found["users"] == 25
    assert found == pytest.approx(run(make_data(), batch_size=4))


def test_a_sample_of_users_is_measured_alone():
    data, users = make_data(), np.array([2, 5, 6, 21])
    assert run(data, users=users) == pytest.approx(plain_metrics(data, "test", users.tolist(), "keep"))


def test_the_model_stays_in_the_mode_it_was_in():
    model, levels = make_model()
    for training in (True, False):
        model.train(training)
        evaluate(model, Trie(model.codes_NC), make_data(), "test", config(), levels)
        assert model.training is training


def test_measuring_draws_no_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    run(make_data())
    make_state = torch.get_rng_state
    torch.manual_seed(0)
    make_model()
    after_model = make_state()
    torch.manual_seed(0)
    run(make_data())
    assert torch.equal(make_state(), after_model)
    assert not torch.equal(before, after_model)


def test_a_sample_is_sorted_and_always_the_same():
    assert sample_users(100, None).tolist() == list(range(100))
    assert sample_users(100, 200).tolist() == list(range(100))
    some = sample_users(100, 10).tolist()
    assert some == sorted(set(some)) == sample_users(100, 10).tolist()
    assert len(some) == 10
    assert set(some) < set(sample_users(100, 20).tolist())


@pytest.mark.parametrize("split", ["validation", "test"])
def test_batches_hold_every_user_with_its_own_recent_history(split):
    data = make_data()
    found: dict[int, list[int]] = {}
    for batch in history_batches(data, split, np.arange(25), LONGEST, batch_size=3):
        assert len(batch.users) <= 3
        seen_BX = batch.seen(data, split)
        for row, user in enumerate(batch.users.tolist()):
            assert user not in found
            found[user] = batch.history_BI[row].tolist()
            whole = data.history(user)[: -1 if split == "test" else -2].tolist()
            assert [item for item in seen_BX[row].tolist() if item >= 0] == whole
            assert found[user] == whole[-LONGEST:]
    assert sorted(found) == list(range(25))


def test_a_cut_off_beyond_the_beam_is_refused():
    with pytest.raises(ValueError, match="beam_size"):
        EvaluationConfig(ks=[5, 30], beam_size=20)


@pytest.mark.parametrize("num_users", [25, 1])
def test_two_processes_measure_what_one_does(num_users, tmp_path):
    """With one user the second process has none."""
    workers = [
        subprocess.Popen([sys.executable, __file__, str(rank), "2", str(tmp_path), str(num_users)]) for rank in range(2)
    ]
    try:
        assert [worker.wait(timeout=250) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    alone = run(make_data(num_users), seen="exclude")
    assert results[0] == results[1]
    assert results[0] == pytest.approx(alone)
    assert results[0]["users"] == num_users


def worker(rank: int, world: int, folder: Path, num_users: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    found = run(make_data(num_users), seen="exclude")
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
