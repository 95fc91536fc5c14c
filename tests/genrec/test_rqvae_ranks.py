"""Two workers train the RQ-VAE that one would: they share gradients, hits of codes and what is moved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from genrec.settings import TokenizerConfig
from genrec.trainers.rqvae_trainer import train_tokenizer

SETTINGS = TokenizerConfig.model_validate(
    {
        "num_item_embeddings": 32,
        "sem_id_dim": 2,
        "rqvae": {"hidden_dims": [16], "latent_dim": 6, "epochs": 6, "batch_size": 40, "dead_code_epochs": 2},
    }
)


def train_on(vectors_seed: int = 0) -> dict[str, torch.Tensor]:
    vectors = torch.randn(120, 10, generator=torch.Generator().manual_seed(vectors_seed))
    return train_tokenizer(SETTINGS, vectors).state_dict()


@pytest.mark.slow
def test_two_workers_end_with_the_tokenizer_of_one(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    for worker in workers:
        _, errors = worker.communicate(timeout=200)
        assert worker.returncode == 0, errors
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    one = train_on()
    assert one["hits_LK"].sum() > 0
    for name, tensor in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    save_file(train_on(), folder / f"{rank}.safetensors")
    dist.destroy_process_group()
