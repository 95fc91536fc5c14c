"""Small models, catalogues and runs that several test modules share. One thread, so that results are exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genrec.artifacts import ArtifactStore
from genrec.config import RunConfig, TigerConfig, validate_config
from genrec.models.tiger import Tiger
from genrec.pipeline import run_pipeline
from genrec.recommender import export_bundle


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The bits of a result depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_codes() -> Callable[..., Tensor]:
    """`make_codes(num_items, level_sizes, seed)`: distinct random codes (N, C)."""

    def make(num_items: int, level_sizes: tuple[int, ...], seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        flat = torch.randperm(math.prod(level_sizes), generator=generator)[:num_items]
        return torch.stack(torch.unravel_index(flat, level_sizes), dim=1)

    return make


@pytest.fixture(scope="session")
def make_tiger() -> Callable[..., Tiger]:
    """`make_tiger(codes, level_sizes, seed, **settings)`: a small float64 model without an idle part.

    A fresh model's blocks add nothing; here every weight is random, so that a wrong mask or bias shows.
    """

    def make(codes_NC: Tensor, level_sizes: tuple[int, ...], seed: int = 0, **settings: Any) -> Tiger:
        sizes = {"embedding_dim": 12, "attn_dim": 20, "num_heads": 4, "feedforward_dim": 16, "n_layers": 4}
        config = TigerConfig(**(sizes | {"dropout": 0.0, "max_seq_len": 6} | settings))
        model = Tiger(config, codes_NC, level_sizes).double().eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                std = 1.0 if name.endswith("bias") or parameter.ndim == 1 else parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * std)
        return model

    return make


TINY: dict[str, Any] = {
    "dataset": {
        "synthetic": {
            "num_users": 400,
            "num_items": 40,
            "num_categories": 4,
            "mean_length": 8.0,
            "category_fanout": 1,
            "successors": 1,
            "successor_share": 0.9,
            "stay": 0.9,
        }
    },
    "embeddings": {"dim": 8},
    "tokenizer": {
        "kind": "rkmeans",
        "num_item_embeddings": 6,
        "sem_id_dim": 2,
        "rqvae": {"hidden_dims": [16], "latent_dim": 8, "epochs": 3},
    },
    "tiger": {
        "embedding_dim": 32,
        "attn_dim": 32,
        "num_heads": 2,
        "feedforward_dim": 64,
        "n_layers": 2,
        "dropout": 0.0,
        "max_seq_len": 8,
    },
    "train": {"epochs": 8, "batch_size": 128, "learning_rate": 5e-3, "warmup_steps": 5, "label_smoothing": 0.0},
    "evaluation": {"ks": [5], "beam_size": 10, "monitor": "ndcg@5"},
}


@pytest.fixture(scope="session")
def tiny() -> RunConfig:
    """A run that takes seconds: 400 users, 40 items."""
    return validate_config(TINY)


@dataclass(frozen=True)
class Trained:
    """A finished tiny run: its config, the store with all stages, the exported bundle, the rows it reported."""

    config: RunConfig
    store: ArtifactStore
    bundle: Path
    rows: list[dict[str, Any]]


@pytest.fixture(scope="session")
def trained(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The tiny run, trained once for all tests."""
    root = tmp_path_factory.mktemp("trained")
    store, rows = ArtifactStore(root / "store"), []
    run_pipeline(tiny, store, report=rows.append)
    return Trained(tiny, store, export_bundle(tiny, store, root / "bundle"), rows)


@pytest.fixture(scope="session")
def another_seed(trained: Trained) -> Path:
    """The bundle of the tiny run with another seed, half as long."""
    train = trained.config.train.model_dump() | {"epochs": 4}
    config = validate_config(trained.config.to_dict() | {"seed": 1, "train": train})
    run_pipeline(config, trained.store)
    return export_bundle(config, trained.store, trained.bundle.parent / "bundle-1")
