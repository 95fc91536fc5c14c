"""RQ-VAE and residual k-means: item vectors -> codes, and how they are kept."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from genrec.checkpoint import CheckpointError, save_checkpoint
from genrec.errors import InputError
from genrec.models.rkmeans import RkMeans
from genrec.models.rqvae import RqVae
from genrec.models.tokenizers import load_tokenizer, save_tokenizer
from genrec.modules.quantizer import residual_codes
from genrec.semantic_ids import assign_ids, measure_health
from genrec.settings import TokenizerConfig
from genrec.trainers.fit import FitSettings
from genrec.trainers.rqvae_trainer import train_tokenizer

WIDTH = 10


def vectors(rows: int = 120, seed: int = 0) -> torch.Tensor:
    """Items in 8 groups, far from the origin and of unequal scales."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, WIDTH, generator=generator) * 3
    x = centres[torch.arange(rows) % 8] + torch.randn(rows, WIDTH, generator=generator) * 0.3
    return x * torch.logspace(-2, 2, WIDTH) + 50


def config(**settings) -> TokenizerConfig:
    rqvae = {"hidden_dims": [16], "latent_dim": 6, "epochs": 30, "learning_rate": 3e-3, "batch_size": 40}
    rqvae |= {"commitment_weight": 0.25, "schedule": "constant", "dead_code_epochs": 0}
    base = {"num_item_embeddings": 8, "sem_id_dim": 3, "rqvae": rqvae | settings.pop("rqvae", {})}
    return TokenizerConfig.model_validate(base | settings)


def started(seed: int = 0, **settings) -> RqVae:
    torch.manual_seed(seed)
    model = RqVae(config(**settings), WIDTH)
    model.start_from(vectors(), torch.Generator().manual_seed(seed))
    return model


@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
def test_codes_have_one_column_a_level_and_stay_in_range(kind):
    codes = train_tokenizer(config(kind=kind, rqvae={"epochs": 2}), vectors()).codes(vectors())
    assert codes.shape == (120, 3)
    assert codes.dtype == torch.int64
    assert 0 <= int(codes.min()) <= int(codes.max()) < 8


@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
def test_equal_seeds_give_equal_bits(kind):
    def weights(seed: int) -> list[torch.Tensor]:
        torch.rand(1)  # the state of the global generator must not matter
        model = train_tokenizer(config(kind=kind, seed=seed, rqvae={"epochs": 3}), vectors())
        return list(model.state_dict().values())

    first = weights(0)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, weights(1), strict=True))


@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
def test_codes_do_not_depend_on_the_scale_of_the_features(kind):
    scaled = vectors() * torch.logspace(1, -1, WIDTH) - 7
    settings = config(kind=kind, rqvae={"epochs": 1})
    same = train_tokenizer(settings, vectors()).codes(vectors()) == train_tokenizer(settings, scaled).codes(scaled)
    assert same.float().mean() > 0.95  # rounding aside


def test_the_input_is_standardised_with_the_catalogue():
    model, x = started(), vectors()
    seen = (x - model.mean_E) / model.scale_E
    torch.testing.assert_close(seen.mean(0), torch.zeros(WIDTH), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(WIDTH), atol=1e-3, rtol=0)


def test_a_feature_that_never_varies_does_no_harm():
    x = vectors()
    x[:, 3] = 4.0
    for kind in ("rqvae", "rkmeans"):
        model = train_tokenizer(config(kind=kind, rqvae={"epochs": 1}), x)
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_the_loss_is_that_of_a_loop_over_items_and_levels():
    model = started(rqvae={"commitment_weight": 0.3})
    x = vectors()[:7]
    expected = 0.0
    with torch.no_grad():
        for row in ((x - model.mean_E) / model.scale_E).unbind():
            residual, quantised = model.encoder(row), torch.zeros(6)
            for codebook in model.codebooks:
                code = codebook[int((codebook - residual).square().sum(1).argmin())]
                expected += 1.3 * float((residual - code).square().sum())
                residual, quantised = residual - code, quantised + code
            expected += float((model.decoder(quantised) - row).square().sum())
    assert model(x).item() == pytest.approx(expected, rel=1e-4)


def test_the_reconstruction_reaches_the_encoder_straight_through_the_codes():
    """Without commitment only the reconstruction can move the encoder, and only the codebook term the codes."""
    model = started(rqvae={"commitment_weight": 0.0})
    model(vectors()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters())
    x = (vectors() - model.mean_E) / model.scale_E
    latent = model.encoder(x).detach()
    codes = residual_codes(latent, list(model.codebooks))
    quantised = sum(book[codes[:, level]] for level, book in enumerate(model.codebooks)).detach().requires_grad_()
    (model.decoder(quantised) - x).square().sum().backward()
    last = model.encoder[-1]
    expected = quantised.grad.sum(0)  # d loss / d latent is d loss / d quantised: the bias gets their sum
    torch.testing.assert_close(last.bias.grad, expected, rtol=1e-3, atol=1e-3)


def test_every_codebook_gets_a_gradient():
    model = started()
    model(vectors()).backward()
    assert all(book.grad is not None and book.grad.abs().sum() > 0 for book in model.codebooks)


def test_the_loss_falls_while_it_trains():
    rows: list[dict] = []
    train_tokenizer(config(rqvae={"epochs": 40}), vectors(), report=rows.append)
    losses = [row["loss"] for row in rows]
    assert len(losses) == 40
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
def test_items_of_one_group_share_their_first_code(kind):
    codes = train_tokenizer(config(kind=kind), vectors()).codes(vectors())[:, 0].view(-1, 8)
    assert (codes == codes.mode(dim=0).values).float().mean() > 0.9
    if kind == "rkmeans":
        assert len(codes.mode(dim=0).values.unique()) >= 6


def test_rkmeans_rebuilds_the_items_better_with_more_levels():
    errors = []
    for levels in (1, 2, 3, 4):
        model = train_tokenizer(config(kind="rkmeans", sem_id_dim=levels), vectors())
        assert isinstance(model, RkMeans)
        codes = model.codes(vectors())
        rebuilt = sum(model.codebooks_LKP[level][codes[:, level]] for level in range(levels))
        errors.append(float(((vectors() - model.mean_E) / model.scale_E - rebuilt).square().mean()))
    assert errors == sorted(errors, reverse=True)


FEW_OR_EQUAL = {
    "equal vectors": torch.ones(20, WIDTH),
    "equal vectors far from zero": torch.full((20, WIDTH), 1e4 / 3),
    "all zero": torch.zeros(9, WIDTH),
    "one item": torch.full((1, WIDTH), 0.1),
    "fewer items than codes": torch.arange(3.0).unsqueeze(1).expand(3, WIDTH),
    "few different rows": vectors(3).repeat(30, 1),
}


@pytest.mark.parametrize("rows", list(FEW_OR_EQUAL.values()), ids=list(FEW_OR_EQUAL))
@pytest.mark.parametrize("gradient", ["rkmeans", "straight_through", "rotation", "gumbel"])
def test_equal_vectors_or_fewer_items_than_codes_are_no_fault(gradient, rows):
    rqvae = {"epochs": 25, "dead_code_epochs": 3, "sinkhorn_levels": [3], "learning_rate": 1e-2}
    kind = "rkmeans" if gradient == "rkmeans" else "rqvae"
    if kind == "rqvae":
        rqvae |= {"gradient": gradient}
    model = train_tokenizer(config(kind=kind, rqvae=rqvae), rows.contiguous())
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    codes = model.codes(rows)
    assert codes.shape == (len(rows), 3)
    _, group = torch.unique(rows, dim=0, return_inverse=True)
    assert len(torch.unique(torch.cat([codes, group.unsqueeze(1)], dim=1), dim=0)) == len(group.unique())


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.ones(20, WIDTH), "all 20 item vectors are equal"),
        (vectors(3), "3 different item vectors for the 8 codes"),
    ],
)
@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
def test_such_catalogues_get_ids_and_a_warning_with_the_collision_rate(caplog, kind, x, reason):
    ids = assign_ids(train_tokenizer(config(kind=kind, rqvae={"epochs": 2}), x), x)
    assert len({tuple(row) for row in ids.codes_NC.tolist()}) == len(x)
    assert f"collision rate {100 * ids.health.collision_rate:.1f}%" in caplog.text
    assert reason in caplog.text


# --------------------------------------------------- what passes the quantiser


def loss_and_gradients(gradient: str, seed: int = 3) -> tuple[float, dict[str, torch.Tensor]]:
    model = started(rqvae={"gradient": gradient})
    torch.manual_seed(seed)
    loss = model.train()(vectors())
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_rotation_has_the_loss_of_straight_through_and_another_gradient_of_the_encoder():
    straight, rotation = loss_and_gradients("straight_through"), loss_and_gradients("rotation")
    assert rotation[0] == pytest.approx(straight[0], rel=1e-5)
    for name, gradient in straight[1].items():
        same = torch.allclose(rotation[1][name], gradient, rtol=1e-4, atol=1e-3)
        assert same != name.startswith("encoder."), name


def test_gumbel_mixes_codes_at_random_while_it_trains_and_takes_the_nearest_afterwards():
    (first, gradients), (second, _) = loss_and_gradients("gumbel", seed=3), loss_and_gradients("gumbel", seed=4)
    assert first != second
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients.values())
    model = started(rqvae={"gradient": "gumbel"}).eval()
    assert torch.equal(model.codes(vectors()), residual_codes(model.latents(vectors()), model.level_codebooks()))


def test_a_cold_mixture_is_the_code_that_the_noise_chose():
    model = started(rqvae={"gradient": "gumbel", "gumbel_temperature": 1e-4}).train()
    mixture = model._mixture(model.latents(vectors()).clone(), model.codebooks[0])
    distance = torch.cdist(mixture, model.codebooks[0]).min(dim=1).values
    assert (distance < 0.01).float().mean() > 0.95


@pytest.mark.parametrize("gradient", ["straight_through", "rotation", "gumbel"])
def test_the_loss_falls_with_every_way_through_the_quantiser(gradient):
    rows: list[dict] = []
    train_tokenizer(config(rqvae={"gradient": gradient, "epochs": 40}), vectors(), report=rows.append)
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


# ------------------------------------------------------------- balance, revival


def test_sinkhorn_balances_the_chosen_level_and_only_in_training():
    model = started(rqvae={"sinkhorn_levels": [1]})
    with torch.no_grad():
        model.codebooks[0][1:] += 8.0  # the nearest code is the first for all items
    model.eval()(vectors())
    assert not model.new_hits_LK.any()
    model.train()(vectors())
    assert model.new_hits_LK[0].max() < 40
    assert set(model.eval().codes(vectors())[:, 0].tolist()) == {0}


def spoil(model: RqVae) -> None:
    """Half of the codes of every level are far from all items."""
    with torch.no_grad():
        for book in model.codebooks:
            book[4:] += 1000.0


def test_dead_codes_come_back_to_life():
    model = started()
    spoil(model)
    model.train()(vectors())
    model.gather_hits()
    assert not model.hits_LK[:, 4:].any()
    before = [book.detach().clone() for book in model.codebooks]
    assert model.revive(vectors(), torch.Generator().manual_seed(0)) == 12
    assert not model.hits_LK.any()
    assert all(torch.equal(book[:4], old[:4]) for book, old in zip(model.codebooks, before, strict=True))
    codes = model.codes(vectors())
    assert all(len(codes[:, level].unique()) > 5 for level in range(3))


def test_codes_are_revived_every_so_many_epochs(monkeypatch):
    calls: list[int] = []
    monkeypatch.setattr(RqVae, "revive", lambda model, rows, generator: calls.append(int(model.hits_LK.sum())))
    train_tokenizer(config(rqvae={"epochs": 11, "dead_code_epochs": 3}), vectors())
    assert calls == [3 * 3 * 120, 6 * 3 * 120, 9 * 3 * 120]  # before epochs 4, 7 and 10; the stub does not set back
    calls.clear()
    train_tokenizer(config(rqvae={"epochs": 5, "dead_code_epochs": 0}), vectors())
    assert calls == []


def test_dead_code_reset_fills_the_codebooks():
    def used(dead_code_epochs: int) -> int:
        settings = config(num_item_embeddings=32, rqvae={"epochs": 40, "dead_code_epochs": dead_code_epochs})
        codes = train_tokenizer(settings, vectors(400)).codes(vectors(400))
        return sum(len(codes[:, level].unique()) for level in range(3))

    assert used(5) > used(0)


class Killed(Exception):
    """What ends a run in the middle."""


def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path, monkeypatch):
    """Hits of codes are counted over epochs, also over those before the kill."""
    every_epoch = functools.partial(FitSettings, checkpoint_interval=0.0)
    monkeypatch.setattr("genrec.trainers.rqvae_trainer.FitSettings", every_epoch)
    settings = config(num_item_embeddings=32, rqvae={"epochs": 12, "dead_code_epochs": 5, "gradient": "gumbel"})
    whole = train_tokenizer(settings, vectors())

    def kill(row: dict) -> None:
        if row["epoch"] == 8:
            raise Killed

    with pytest.raises(Killed):
        train_tokenizer(settings, vectors(), report=kill, folder=tmp_path)
    epochs: list[int] = []
    resumed = train_tokenizer(settings, vectors(), report=lambda row: epochs.append(row["epoch"]), folder=tmp_path)
    assert epochs == list(range(1, 13))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


# ------------------------------------------------------------ semantic IDs of items


@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
def test_semantic_ids_of_one_item_are_a_list_and_of_a_batch_a_tensor(kind):
    model, x = train_tokenizer(config(kind=kind, rqvae={"epochs": 2}), vectors()), vectors()[:4]
    batch = model.get_semantic_ids(x)
    assert isinstance(batch, torch.Tensor)
    assert batch.shape == (4, 3)
    assert torch.equal(batch, model.codes(x))
    for form in (x[2], x[2].numpy(), x[2].tolist(), x[2].double()):
        one = model.get_semantic_ids(form)
        assert one == batch[2].tolist()
        assert all(type(code) is int for code in one)
    assert torch.equal(model.get_semantic_ids(x.numpy()), batch)
    assert torch.equal(model.get_semantic_ids(x.tolist()), batch)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.zeros(WIDTH + 1), r"shape \(10,\) for one item or \(B, 10\) for a batch, got \(11,\)"),
        (torch.zeros(2, 2, WIDTH), r"got \(2, 2, 10\)"),
        (torch.full((WIDTH,), float("nan")), "must be finite"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(item, message):
    with pytest.raises(InputError, match=message):
        started().get_semantic_ids(item)


# ---------------------------------------------------------------- standardising


@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
def test_without_standardising_the_large_features_decide(kind):
    def first_codes(standardise: bool, x: torch.Tensor) -> torch.Tensor:
        settings = config(kind=kind, standardise=standardise, rqvae={"epochs": 1})
        return train_tokenizer(settings, x).codes(x)[:, 0]

    x = vectors()
    x[:, -1] = (torch.arange(120) % 7) * 1e6  # dwarfs all others
    last_feature = (torch.arange(120) % 7).unsqueeze(1) == (torch.arange(120) % 7)
    codes = first_codes(False, x)
    assert not (codes.unsqueeze(1) == codes)[~last_feature].any()
    codes = first_codes(True, x)
    assert (codes.unsqueeze(1) == codes)[~last_feature].any()


def test_without_standardising_a_tokenizer_sees_the_same_whatever_unit_the_vectors_have():
    settings = config(standardise=False, rqvae={"epochs": 3})
    same = train_tokenizer(settings, vectors()).codes(vectors())
    scaled = vectors() / 256  # a power of two: exact
    assert torch.equal(train_tokenizer(settings, scaled).codes(scaled), same)


# ------------------------------------------------------------------------ files


@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
@pytest.mark.parametrize("place", ["", "model", "tokenizer"])
def test_a_saved_tokenizer_is_found_in_its_folder_in_a_stage_and_in_a_bundle(tmp_path, kind, place):
    settings = config(kind=kind, collisions="reassign", rqvae={"epochs": 2})
    model = train_tokenizer(settings, vectors())
    save_tokenizer(tmp_path / "saved" / place, model)
    for loaded in (load_tokenizer(tmp_path / "saved"), type(model).load_from_checkpoint(str(tmp_path / "saved"))):
        assert type(loaded) is type(model)
        assert loaded.config == settings
        assert not loaded.training
        assert torch.equal(loaded.codes(vectors()), model.codes(vectors()))


def test_a_bundle_gives_its_tokenizer_not_its_model(trained):
    loaded = load_tokenizer(trained.bundle)
    assert isinstance(loaded, RkMeans)


def test_what_is_no_tokenizer_is_refused_by_what_it_is(tmp_path, trained):
    with pytest.raises(CheckpointError, match=r"expected a tokenizer \(rqvae or rkmeans\), found a TIGER model"):
        load_tokenizer(trained.bundle / "model")
    save_checkpoint(tmp_path / "other", {}, {"weights": 1})
    with pytest.raises(CheckpointError, match=r"found something else \(weights\)"):
        load_tokenizer(tmp_path / "other")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_tokenizer(tmp_path / "missing.pt")
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"model\.pt: no tokenizer in it .*expected a checkpoint"):
        load_tokenizer(tmp_path / "model.pt")
    save_tokenizer(tmp_path / "clusters", train_tokenizer(config(kind="rkmeans"), vectors()))
    with pytest.raises(CheckpointError, match=r"clusters: holds a tokenizer of kind 'rkmeans', expected 'rqvae'"):
        RqVae.load_from_checkpoint(tmp_path / "clusters")


def test_settings_that_are_not_of_this_version_are_named(tmp_path):
    model = train_tokenizer(config(kind="rkmeans"), vectors())
    facts = {"tokenizer": model.config.model_dump(mode="json") | {"magic": 1}, "input_dim": WIDTH}
    save_checkpoint(tmp_path / "saved", model.state_dict(), facts)
    with pytest.raises(CheckpointError, match="magic"):
        load_tokenizer(tmp_path / "saved")
    save_checkpoint(tmp_path / "saved", model.state_dict(), facts | {"tokenizer": {"kind": "rkmeans"}})
    with pytest.raises(CheckpointError, match="do not fit the settings beside them"):
        load_tokenizer(tmp_path / "saved")


# -------------------------------------------------------------------- real items


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
def test_the_tokenizers_spread_amazon_beauty_over_their_codes(kind):
    """RQ-VAE with its defaults but fewer epochs, to end sooner."""
    root = Path(os.environ.get("GENREC_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    path = root / "beauty" / "item_emb_minilm.f16.npy"
    if not path.is_file():
        pytest.skip(f"no real data at {path}; set GENREC_DATA to the folder that holds beauty/")
    x = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
    settings = {"kind": kind, "pca_dim": 64 if kind == "rkmeans" else None, "rqvae": {"epochs": 30}}
    codes = train_tokenizer(TokenizerConfig.model_validate(settings), x).codes(x)
    health = measure_health(codes, 256)
    assert min(health.usage) > 0.8
    assert health.collision_rate < (0.2 if kind == "rkmeans" else 0.1)
