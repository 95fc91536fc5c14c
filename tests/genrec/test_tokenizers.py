"""RQ-VAE and residual k-means: item vectors -> codes."""

from __future__ import annotations

import pytest
import torch

from genrec.config import TokenizerConfig
from genrec.models.rkmeans import RkMeans
from genrec.models.rqvae import RqVae
from genrec.modules.quantizer import residual_codes
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
        rebuilt = sum(model.codebooks_CKE[level][codes[:, level]] for level in range(levels))
        errors.append(float(((vectors() - model.mean_E) / model.scale_E - rebuilt).square().mean()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("kind", ["rqvae", "rkmeans"])
@pytest.mark.parametrize("rows", [torch.ones(20, WIDTH), torch.arange(3.0).unsqueeze(1).expand(3, WIDTH)])
def test_equal_vectors_or_fewer_items_than_codes_are_no_fault(kind, rows):
    codes = train_tokenizer(config(kind=kind, rqvae={"epochs": 2}), rows.contiguous()).codes(rows)
    assert codes.shape == (len(rows), 3)
