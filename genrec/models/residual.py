"""What both tokenizers are: item vectors, standardised, then quantised level by level.

A subclass says how a standardised vector becomes the latent that the codebooks quantise, and how it learns. A
tokenizer's checkpoint holds its settings, so that it opens without a config.

Letters: B and N items, E input width, D latent width, K codes, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, overload

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from genrec.checkpoint import MANIFEST, CheckpointError, load_checkpoint, save_checkpoint
from genrec.errors import InputError
from genrec.modules.quantizer import residual_codes
from genrec.settings import TokenizerConfig

CHUNK = 65_536
"items that are encoded at once"
PLACES = ("", "tokenizer", "model")
"where below a given folder a tokenizer's checkpoint is: the folder itself, a bundle's part, a stage's"


class ResidualTokenizer(nn.Module):
    """`config` and the width E of the item vectors."""

    kind: ClassVar[str]
    mean_E: Tensor
    scale_E: Tensor
    components_EP: Tensor

    def __init__(self, config: TokenizerConfig, input_dim: int):
        super().__init__()
        self.config = config
        self.input_dim = input_dim
        self.register_buffer("mean_E", torch.zeros(input_dim))
        self.register_buffer("scale_E", torch.ones(input_dim))
        self.width = min(config.pca_dim or input_dim, input_dim)
        if config.pca_dim:
            self.register_buffer("components_EP", torch.zeros(input_dim, self.width))

    def start_from(self, vectors_NE: Tensor, generator: torch.Generator) -> None:
        """Take from the catalogue what is not trained by gradient."""
        raise NotImplementedError

    def level_codebooks(self) -> list[Tensor]:
        """The codebook (K, D) of every level."""
        raise NotImplementedError

    def encode(self, x_BE: Tensor) -> Tensor:
        """Latents (B, D) of standardised vectors."""
        raise NotImplementedError

    @torch.inference_mode()
    def latents(self, vectors_BE: Tensor) -> Tensor:
        """What the codebooks quantise, (B, D)."""
        return torch.cat([self.encode(self.standardise(chunk)) for chunk in vectors_BE.split(CHUNK)])

    @torch.inference_mode()
    def codes(self, vectors_BE: Tensor) -> Tensor:
        """Codes (B, L) of item vectors (B, E)."""
        return residual_codes(self.latents(vectors_BE), self.level_codebooks())

    @overload
    def get_semantic_ids(self, item: Sequence[float]) -> list[int]: ...
    @overload
    def get_semantic_ids(self, item: Tensor | np.ndarray | Sequence[Sequence[float]]) -> list[int] | Tensor: ...
    def get_semantic_ids(self, item: Any) -> list[int] | Tensor:
        """The codes of one item's vector (E,) as a list, or of a batch (B, E) as a tensor (B, L).

        These are the tokenizer's own codes: what makes items of one tuple distinct is a matter of the catalogue
        (`genrec.semantic_ids`).
        """
        vectors = torch.as_tensor(item, dtype=torch.float32, device=self.mean_E.device)
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != self.input_dim:
            expected = f"({self.input_dim},) for one item or (B, {self.input_dim}) for a batch"
            raise InputError(f"item vectors must have the shape {expected}, got {tuple(vectors.shape)}")
        if not bool(vectors.isfinite().all()):
            raise InputError("item vectors must be finite, but there is NaN or inf among them")
        codes_BL = self.codes(vectors.reshape(-1, self.input_dim))
        return codes_BL[0].tolist() if vectors.ndim == 1 else codes_BL.clone()

    @classmethod
    def load_from_checkpoint(cls, path: Path | str) -> Self:
        """The tokenizer in a checkpoint folder, a tokenizer stage's folder or a bundle."""
        tensors, facts = read_tokenizer(path)
        config = facts["config"]
        if config.kind != cls.kind:
            raise CheckpointError(f"{path}: holds a tokenizer of kind {config.kind!r}, expected {cls.kind!r}")
        tokenizer = cls(config, facts["input_dim"])
        try:
            tokenizer.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: tensors do not fit the settings beside them ({error})") from None
        return tokenizer.eval()

    def standardise(self, vectors_BE: Tensor) -> Tensor:
        """The features that are learnt from, (B, P): centred, scaled, and with `pca_dim` their principal components."""
        x_BE = (vectors_BE - self.mean_E) / self.scale_E
        return x_BE @ self.components_EP if self.config.pca_dim else x_BE

    def _standardise_by(self, vectors_NE: Tensor) -> None:
        """Mean 0 and deviation 1 of every feature; without `standardise` of all features taken together.

        The second changes no order of distances, it only brings vectors of any length to the size that training is
        made for.
        """
        deviation_E = deviation(vectors_NE)
        if not self.config.standardise:
            varying_E = (vectors_NE - vectors_NE.mean(0)).square().mean().sqrt()
            deviation_E = torch.where(varying_E > 1e-6 * vectors_NE.abs().max(), varying_E, 1.0)
        self.mean_E.copy_(vectors_NE.mean(0))
        self.scale_E.copy_(deviation_E.expand(self.input_dim))
        if self.config.pca_dim:
            x_NE = (vectors_NE - self.mean_E) / self.scale_E
            self.components_EP.copy_(principal_components(x_NE, self.width, self.config.pca_whitening))


def principal_components(x_NE: Tensor, count: int, whitening: float) -> Tensor:
    """(E, P) directions of the largest variance of centred rows; the components have a mean variance of 1.

    Residual k-means on many correlated features spends its later levels on outliers. Fewer, evener directions use the
    codes evenly and leave fewer items with one tuple.
    """
    variance_E, direction_EE = torch.linalg.eigh((x_NE.T @ x_NE).double() / len(x_NE))
    variance_P, direction_EP = variance_E.flip(0)[:count].clamp(min=0), direction_EE.flip(1)[:, :count]
    # An eigenvector's sign is arbitrary; the largest entry is made positive.
    largest_1P = direction_EP.gather(0, direction_EP.abs().argmax(0, keepdim=True))
    direction_EP = direction_EP * torch.where(largest_1P < 0, -1.0, 1.0)
    real_P = variance_P > 1e-8 * variance_P[0]
    factor_P = torch.where(real_P, variance_P.clamp(min=1e-12) ** (-whitening / 2), 0.0)
    spread = (variance_P * factor_P.square()).mean().sqrt()
    return (direction_EP * factor_P / spread.clamp(min=1e-12)).float()


def deviation(x_NE: Tensor) -> Tensor:
    """Standard deviation (E,) of each feature; 1 where it does not vary by more than rounding."""
    deviation_E = x_NE.std(0, correction=0)
    return deviation_E.where(deviation_E > 1e-6 * x_NE.abs().amax(0), 1.0)


def save_tokenizer(folder: Path, tokenizer: ResidualTokenizer) -> None:
    """Write `folder` atomically: weights, settings, width of the input."""
    facts = {"tokenizer": tokenizer.config.model_dump(mode="json"), "input_dim": tokenizer.input_dim}
    save_checkpoint(folder, tokenizer.state_dict(), facts)


def tokenizer_folder(path: Path | str) -> Path:
    """The checkpoint folder that `path` is or holds. Raises `CheckpointError` where there is none."""
    path = Path(path)
    for place in PLACES:
        if (path / place / MANIFEST).is_file():
            return path / place
    state = "no such file or folder"
    if path.exists():
        state = f"no tokenizer in it (no {MANIFEST} here, below tokenizer/ or below model/)"
    raise CheckpointError(f"{path}: {state}; expected a checkpoint, a tokenizer stage's folder or a bundle of genrec")


def read_tokenizer(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and `config` and `input_dim`, of the tokenizer at `path`. Raises `CheckpointError` for anything else."""
    folder = tokenizer_folder(path)
    tensors, facts = load_checkpoint(folder)
    if "tokenizer" not in facts or "input_dim" not in facts:
        found = "a TIGER model" if "level_sizes" in facts else f"something else ({', '.join(sorted(facts))})"
        raise CheckpointError(f"{folder}: expected a tokenizer (rqvae or rkmeans), found {found}")
    try:
        return tensors, {"config": TokenizerConfig.model_validate(facts["tokenizer"]), "input_dim": facts["input_dim"]}
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise CheckpointError(f"{folder}: its settings are not of this version ({key}: {fault['msg']})") from None
