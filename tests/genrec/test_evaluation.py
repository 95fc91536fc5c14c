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
from torch import Tensor

from genrec.config import EvaluationConfig, TigerConfig
from genrec.data.filtering import split_in_time
from genrec.data.interactions import Interactions, Items, build_interactions
from genrec.decoding import beam_search, score_catalogue, unconstrained_beams
from genrec.errors import InputError
from genrec.evaluation import (
    BeamRanker,
    agreement,
    equal_length_batches,
    evaluate,
    invalid_id_rate,
    sample_users,
    seen_items,
)
from genrec.models.tiger import Tiger, Window
from genrec.modules.embeddings import user_buckets
from genrec.ranking import KnownLists, best_items, measure_rankers
from genrec.trie import Trie

NUM_ITEMS, LONGEST, KS = 30, 4, [1, 3, 10]


def make_data(num_users: int = 25, temporal: bool = False) -> Interactions:
    """Users with 3 to 8 items; every tenth wants an item again that it has had."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, num_users)
    items = rng.integers(0, NUM_ITEMS, lengths.sum())
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items[offsets[1::3] - 1] = items[offsets[:-1:3]]
    names = [f"i{n}" for n in range(NUM_ITEMS)]
    times = np.concatenate([np.sort(rng.integers(0, 10_000, length)) for length in lengths])
    data = build_interactions([f"u{n}" for n in range(num_users)], offsets, items, Items(names, names, names), times)
    return split_in_time(data, 0.2, 0.2) if temporal else data


TUPLE_LEVELS = 2


def make_model(**settings) -> Tiger:
    """A float64 model with random weights over IDs of two levels, with collisions, and the collision code."""
    generator = torch.Generator().manual_seed(0)
    tuples = torch.randint(4, (NUM_ITEMS, TUPLE_LEVELS), generator=generator)
    earlier = (tuples.unsqueeze(1) == tuples.unsqueeze(0)).all(-1).tril(-1)
    codes = torch.cat([tuples, earlier.sum(1, keepdim=True)], dim=1)
    level_sizes = (4, 4, int(codes[:, 2].max()) + 1)
    assert level_sizes[2] > 1
    sizes = {"embedding_dim": 8, "attn_dim": 8, "num_heads": 2, "feedforward_dim": 8, "n_layers": 2}
    model = Tiger(TigerConfig(**sizes, max_seq_len=LONGEST, **settings), codes, level_sizes).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def config(**settings) -> EvaluationConfig:
    return EvaluationConfig(**({"ks": KS, "beam_size": NUM_ITEMS, "monitor": "ndcg@3", "batch_size": 4} | settings))


def run(
    data: Interactions, split: str = "test", users: np.ndarray | None = None, model: Tiger | None = None, **settings
) -> dict[str, float]:
    model = model or make_model()
    return evaluate(model, Trie(model.codes_NC), data, split, config(**settings), TUPLE_LEVELS, users)


def history_and_target(data: Interactions, user: int, split: str) -> tuple[list[int], int]:
    whole, end = data.history(user).tolist(), data.history_ends(split)[user] - data.offsets[user]
    return whole[:end], whole[end]


def plain_scores(model: Tiger, user: str, history: list[int]) -> tuple[list[float], Tensor]:
    """Log-probability of every item after one history by teacher forcing, and the mean over the codes (N,)."""
    recent = torch.tensor(history[-LONGEST:])
    rows = torch.cat([recent.expand(NUM_ITEMS, -1), torch.arange(NUM_ITEMS).unsqueeze(1)], dim=1)
    buckets = model.config.num_user_embeddings
    user_B = user_buckets([user] * NUM_ITEMS, buckets) if buckets else None
    with torch.no_grad():
        logits = model.target_logits(Window(rows, len(recent), user_B))
    codes = torch.stack(
        [level.log_softmax(-1).gather(1, model.codes_NC[:, [n]]).squeeze(1) for n, level in enumerate(logits)]
    )
    return codes.sum(0).tolist(), codes.mean(0)


def plain_metrics(
    data: Interactions, split: str, users: list[int], seen: str, model: Tiger | None = None
) -> dict[str, float]:
    """Every user alone: score all items by teacher forcing, sort, look where the target stands."""
    model = (model or make_model()).eval()
    sums = {f"{p}{n}@{k}": 0.0 for p in ("", "tuple_") for n in ("recall", "ndcg", "mrr") for k in KS}
    shown: dict[int, set[int]] = {k: set() for k in KS}
    loss = 0.0
    for user in users:
        history, target = history_and_target(data, user, split)
        scores, by_code = plain_scores(model, data.users[user], history)
        loss -= float(by_code[target])
        candidates = [i for i in range(NUM_ITEMS) if seen == "keep" or i not in history]
        listed = sorted(candidates, key=lambda i, scores=scores: (-scores[i], i))
        codes = [tuple(row) for row in model.codes_NC[:, :TUPLE_LEVELS].tolist()]
        tuples = list(dict.fromkeys(codes[i] for i in listed))
        for k in KS:
            shown[k] |= set(listed[:k])
        for prefix, ranking, wanted in (("", listed, target), ("tuple_", tuples, codes[target])):
            if wanted in ranking:
                place = ranking.index(wanted)
                for k in KS:
                    if place < k:
                        sums[f"{prefix}recall@{k}"] += 1
                        sums[f"{prefix}ndcg@{k}"] += 1 / math.log2(place + 2)
                        sums[f"{prefix}mrr@{k}"] += 1 / (place + 1)
    result = {name: total / len(users) for name, total in sums.items()} | {"users": len(users)}
    result |= {f"coverage@{k}": len(items) / NUM_ITEMS for k, items in shown.items()}
    return result | ({"validation_loss": loss / len(users)} if split == "validation" else {})


@pytest.mark.parametrize("seen", ["keep", "exclude"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_metrics_equal_ranking_all_items_for_one_user_at_a_time(split, seen):
    data = make_data()
    found = run(data, split, seen=seen)
    expected = plain_metrics(data, split, list(range(25)), seen)
    assert found == pytest.approx(expected)
    assert 0 < found["recall@10"] < found["tuple_recall@10"] < 1  # the numbers tell something


@pytest.mark.parametrize("split", ["validation", "test"])
def test_under_a_temporal_split_only_users_with_a_target_count(split):
    data = make_data(temporal=True)
    users = data.users_of(split).tolist()
    assert 0 < len(users) < len(data)
    assert run(data, split) == pytest.approx(plain_metrics(data, split, users, "keep"))


def test_a_model_with_user_tokens_is_told_who_the_users_are():
    model = make_model(num_user_embeddings=7)
    found = run(make_data(), model=model)
    assert found == pytest.approx(plain_metrics(make_data(), "test", list(range(25)), "keep", model))


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
    model = make_model()
    trie = Trie(model.codes_NC)
    for training in (True, False):
        model.train(training)
        run(make_data(), model=model)
        invalid_id_rate(model, make_data(), "test", config())
        agreement(model, trie, make_data(), "test", config())
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
    users = np.arange(50, 150)
    assert sample_users(users, None).tolist() == sample_users(users, 200).tolist() == users.tolist()
    some = sample_users(users, 10).tolist()
    assert some == sorted(set(some)) == sample_users(users, 10).tolist()
    assert len(some) == 10
    assert set(some) < set(sample_users(users, 20).tolist()) < set(users.tolist())


@pytest.mark.parametrize("split", ["validation", "test"])
def test_batches_hold_every_user_with_its_own_recent_history(split):
    data = make_data()
    histories, found = data.histories(split), {}
    for row_B, history_BI in equal_length_batches(histories, LONGEST, batch_size=3):
        assert len(row_B) <= 3
        seen_BX = seen_items(histories.take(row_B))
        for place, user in enumerate(row_B.tolist()):
            assert user not in found
            found[user] = history_BI[place].tolist()
            whole = history_and_target(data, user, split)[0]
            assert [item for item in seen_BX[place].tolist() if item >= 0] == whole
            assert found[user] == whole[-LONGEST:]
    assert sorted(found) == list(range(25))


# ------------------------------------------------------------ looking into decoding


def test_the_rate_of_invalid_ids_is_counted_over_the_first_beams_of_every_user():
    data, model = make_data(), make_model().eval()
    known = {tuple(row) for row in model.codes_NC.tolist()}
    invalid = dict.fromkeys(KS, 0.0)
    for user in range(len(data)):
        history, _ = history_and_target(data, user, "test")
        codes_BWC, _ = unconstrained_beams(model, torch.tensor([history[-LONGEST:]]), 10)
        wrong = [tuple(row) not in known for row in codes_BWC[0].tolist()]
        for k in KS:
            invalid[k] += sum(wrong[:k]) / k
    found = invalid_id_rate(model, data, "test", config(beam_size=10))
    assert found == pytest.approx({f"invalid_id_rate@{k}": total / len(data) for k, total in invalid.items()})
    assert 0 < found["invalid_id_rate@10"] < 1


def test_a_model_whose_every_id_is_an_item_has_no_invalid_ones():
    codes = torch.cartesian_prod(torch.arange(3), torch.arange(2))
    names = [f"i{n}" for n in range(6)]
    data = build_interactions(["u"], np.array([0, 4]), np.array([0, 5, 2, 3]), Items(names, names, names))
    model = Tiger(TigerConfig(n_layers=2, max_seq_len=4), codes, (3, 2))
    settings = config(ks=[1, 6], beam_size=6, monitor="ndcg@1")
    assert set(invalid_id_rate(model, data, "test", settings).values()) == {0.0}


@pytest.mark.parametrize("beam_size", [10, NUM_ITEMS])
def test_agreement_is_the_overlap_of_the_beam_with_the_best_of_all_items(beam_size):
    data, model = make_data(), make_model().eval()
    trie, overlap = Trie(model.codes_NC), dict.fromkeys(KS, 0.0)
    for user in range(len(data)):
        history_BI = torch.tensor([history_and_target(data, user, "test")[0][-LONGEST:]])
        beam = beam_search(model, trie, history_BI, beam_size).item_BW[0].tolist()
        scores = score_catalogue(model, trie, history_BI)[0].tolist()
        best = sorted(range(NUM_ITEMS), key=lambda i, scores=scores: (-scores[i], i))
        for k in KS:
            overlap[k] += len(set(beam[:k]) & set(best[:k])) / k
    found = agreement(model, trie, data, "test", config(beam_size=beam_size))
    assert found == pytest.approx({f"beam_agreement@{k}": total / len(data) for k, total in overlap.items()})
    assert (found["beam_agreement@10"] == 1) == (beam_size == NUM_ITEMS)


# ---------------------------------------------------------------- as a ranker


@pytest.mark.parametrize("seen", ["keep", "exclude"])
def test_as_a_ranker_the_model_has_the_numbers_that_evaluate_gives(seen):
    data, model = make_data(), make_model(num_user_embeddings=7)
    trie = Trie(model.codes_NC)
    known = KnownLists(data.users, NUM_ITEMS, seen)
    found = evaluate(model, trie, data, "test", config(beam_size=12, seen=seen), TUPLE_LEVELS, known=known)
    rankers = {"asked": BeamRanker(model, trie, 12, batch_size=4), "known": known}
    for metrics in measure_rankers(rankers, data, "test", KS, seen).values():
        assert metrics == pytest.approx({name: found[name] for name in metrics})


def test_room_for_seen_items_keeps_the_list_as_long_as_the_beam():
    data, model = make_data(), make_model()
    histories = data.histories("test")
    for room, shortest in ((False, 0), (True, 6)):
        ranker = BeamRanker(model, Trie(model.codes_NC), 6, batch_size=4, room_for_seen=room)
        scores_BN = ranker.scores(histories, 6, "exclude")
        for row, items in enumerate(best_items(scores_BN, 6)[0]):
            history = set(data.history(row)[:-1].tolist())
            assert not history & set(items[items >= 0].tolist())
            assert (items >= 0).sum() >= shortest
        alone = ranker.scores(histories.take(slice(3, 4)), 6, "exclude").toarray()
        np.testing.assert_allclose(scores_BN.toarray()[3:4], alone)


def test_a_list_longer_than_the_beam_is_refused():
    model = make_model()
    with pytest.raises(InputError, match="a list of 6 items needs a beam at least as wide, got beam_size 5"):
        BeamRanker(model, Trie(model.codes_NC), 5).scores(make_data().histories("test"), 6)


def test_a_cut_off_beyond_the_beam_is_refused():
    with pytest.raises(ValueError, match="beam_size"):
        EvaluationConfig(ks=[5, 30], beam_size=20)


@pytest.mark.slow
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
    alone = run(make_data(num_users), "validation", seen="exclude")
    assert results[0] == results[1]
    assert results[0] == pytest.approx(alone)
    assert results[0]["users"] == num_users


def worker(rank: int, world: int, folder: Path, num_users: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    found = run(make_data(num_users), "validation", seen="exclude")
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
