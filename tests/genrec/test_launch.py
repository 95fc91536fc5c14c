"""The trainers as programs, alone and with two workers under each launcher."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from genrec.checkpoint import generations, load_checkpoint
from genrec.config import RunConfig, validate_config, with_values
from genrec.trainers.launch import name_ranks

TRAINERS = Path(__file__).parents[2] / "genrec" / "trainers"
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=290
    )


def write_config(config: RunConfig, folder: Path, **values: Any) -> str:
    changed = validate_config(with_values(config.to_dict(), {k.replace("__", "."): v for k, v in values.items()}))
    (folder / "my.yaml").write_text(yaml.safe_dump(changed.to_dict()))
    return "my.yaml"


def checkpoint(folder: Path) -> dict[str, Any]:
    """Facts of the last checkpoint of the one TIGER below `folder`."""
    (found,) = (folder / "results" / ".artifacts").glob("tiger-*/checkpoints")
    return load_checkpoint(generations(found)[-1])[1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate launch"])
def test_two_workers_under_a_launcher_train_as_one_does(launcher, tiny, tmp_path):
    losses = {}
    for name, command in {"one": [], "two": ["-m", *launcher]}.items():
        (tmp_path / name).mkdir()
        file = write_config(tiny, tmp_path / name, train__epochs=1, save_dir_root="results")
        ended = run(tmp_path / name, *command, str(TRAINERS / "tiger_trainer.py"), file, "train.epochs=2")
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("best epoch") == 1
        facts = checkpoint(tmp_path / name)
        assert facts["world"] == len(losses) + 1
        losses[name] = [row["loss"] for row in facts["rows"]]
    assert len(losses["one"]) == 2
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-3)


@pytest.mark.slow
def test_the_tokenizers_trainer_is_a_program_too(tiny, tmp_path):
    file = write_config(tiny, tmp_path, tokenizer__kind="rqvae", save_dir_root="results")
    ended = run(tmp_path, str(TRAINERS / "rqvae_trainer.py"), file)
    assert ended.returncode == 0, ended.stderr
    assert list((tmp_path / "results" / "tokenizers").iterdir())


def test_a_trainer_without_a_config_says_how_it_is_called():
    ended = run(TRAINERS, "tiger_trainer.py")
    assert ended.returncode == 1
    assert ended.stderr == "usage: tiger_trainer.py CONFIG [KEY=VALUE ...]\n"


def test_a_bad_config_is_a_sentence_and_code_2(tmp_path):
    (tmp_path / "my.yaml").write_text("train: {epoch: 3}\n")
    ended = run(tmp_path, str(TRAINERS / "tiger_trainer.py"), "my.yaml")
    assert ended.returncode == 2
    assert "did you mean 'train.epochs'?" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("prefix", ["OMPI_COMM_WORLD_", "MV2_COMM_WORLD_"])
def test_ranks_of_mpirun_get_the_names_that_torch_reads(prefix):
    environment = {f"{prefix}RANK": "1", f"{prefix}SIZE": "2", f"{prefix}LOCAL_RANK": "1", "ACCELERATE_USE_CPU": "True"}
    name_ranks(environment)
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["LOCAL_RANK"]) == ("1", "2", "1")


def test_names_that_are_there_are_kept():
    environment = {"RANK": "0", "WORLD_SIZE": "4", "PMI_RANK": "3"}
    name_ranks(environment)
    assert (environment["RANK"], environment["WORLD_SIZE"]) == ("0", "4")


def test_one_process_where_several_were_asked_for_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        name_ranks({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"})
        name_ranks({"ACCELERATE_USE_CPU": "True"})  # one was asked for
        name_ranks({"MASTER_ADDR": "127.0.0.1"})
    assert len(caplog.messages) == 1
    assert "has started one" in caplog.messages[0]
