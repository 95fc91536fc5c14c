"""The training guides in English and Chinese: every block is executed, in order, in one folder.

The blocks run as they are printed, on a folder that holds a small catalogue in the form of the real one. Only what
would take hours is made small: training commands get the settings of `SMALL`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from genrec.config import load_config, validate_config
from genrec.data.synthetic import make_synthetic
from genrec.settings import SyntheticConfig
from genrec.strict_yaml import parse_yaml

ROOT = Path(__file__).parents[1]
GUIDES = {language: ROOT / "docs" / language / "training" / "tiger.md" for language in ("en", "zh")}
SMALL = {
    "train.epochs": 1,
    "train.max_users": 60,
    "evaluation.max_users": 60,
    "tiger.embedding_dim": 16,
    "tiger.attn_dim": 16,
    "tiger.num_heads": 2,
    "tiger.feedforward_dim": 16,
    "tiger.n_layers": 2,
    "tiger.max_seq_len": 8,
    "tokenizer.num_item_embeddings": 16,
    "tokenizer.rqvae.epochs": 2,
}
PROGRAMS = {"genrec": ["-m", "genrec.cli"], "sweeps": ["-m", "sweeps.cli"], "python": []}


def blocks(language: str) -> list[tuple[str, str]]:
    """(kind, text) of the fenced blocks of a guide."""
    return re.findall(r"```(\w+)\n(.*?)```", GUIDES[language].read_text(encoding="utf-8"), re.S)


def without_comments(text: str) -> str:
    return "\n".join(re.sub(r"\s*#.*", "", line) for line in text.splitlines() if not line.startswith("#"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: the data's folder, the search spaces, the checkout."""
    folder = tmp_path_factory.mktemp("guide")
    data = make_synthetic(SyntheticConfig(num_users=300, num_items=200))
    beauty = folder / "dataset" / "beauty"
    beauty.mkdir(parents=True)
    lines = [" ".join(map(str, [u + 1, *(data.history(u) + 1)])) for u in range(len(data))]
    (beauty / "sequential_data.txt").write_text("\n".join(lines) + "\n")
    with open(beauty / "items.jsonl", "w") as file:
        for number, (title, text) in enumerate(zip(data.catalogue.titles, data.catalogue.texts, strict=True)):
            record = {"item_id": number + 1, "asin": f"B{number}", "title": title, "categories": [[text]]}
            file.write(json.dumps(record) + "\n")
    for name in ("search_spaces", "genrec"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(line: str, folder: Path) -> str:
    """A command line of the guide in `folder`."""
    program, *words = shlex.split(line, comments=True)
    if program == "torchrun":
        words = ["-m", "torch.distributed.run", *words]
    elif program == "accelerate":
        words = ["-m", "accelerate.commands.accelerate_cli", *words]
    else:
        words = [*PROGRAMS[program], *words]
    if program == "genrec" and words[2] in ("train", "inspect"):
        words += [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def small_gin(text: str) -> str:
    """A gin file of the guide with the sizes of `SMALL`."""
    sizes = {key.rsplit(".", 1)[-1]: value for key, value in SMALL.items()}
    given = set(re.findall(r"^train\.(\w+)=", text, re.M))
    text = re.sub(
        r"^train\.(\w+)=.*$", lambda m: f"train.{m[1]}={sizes[m[1]]}" if m[1] in sizes else m[0], text, flags=re.M
    )
    more = {"n_layers", "num_heads", "max_seq_len", "num_item_embeddings", "feedforward_dim"} - given
    return text + "".join(f"train.{key}={sizes[key]}\n" for key in sorted(more)) + "train.vae_hidden_dims=[16]\n"


def test_both_languages_show_the_same_blocks() -> None:
    english, chinese = blocks("en"), blocks("zh")
    assert len(english) == len(chinese)
    for (kind, text), (other_kind, other_text) in zip(english, chinese, strict=True):
        assert kind == other_kind
        assert without_comments(text) == without_comments(other_text)


@pytest.mark.parametrize("language", GUIDES)
def test_every_gin_and_yaml_block_is_a_valid_configuration(language: str, folder: Path, tmp_path: Path) -> None:
    for number, (kind, text) in enumerate(blocks(language)):
        if kind == "gin":
            (tmp_path / f"{number}.gin").write_text(text.replace('"dataset/beauty"', f'"{folder}/dataset/beauty"'))
            load_config(tmp_path / f"{number}.gin")
        elif kind == "yaml":
            validate_config(parse_yaml(text).data)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_and_every_line_of_python_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    namespace: dict[str, object] = {}
    for kind, text in blocks("en"):
        if kind == "bash":
            for line in text.splitlines():
                run(line, folder)
        elif kind == "gin" and (name := re.match(r"# (\w+\.gin)\n", text)):
            (folder / name[1]).write_text(small_gin(text))
        elif kind == "python":
            exec(compile(text, "guide", "exec"), namespace)
    assert (folder / "ids.png").stat().st_size > 1000
    assert list((folder / "my_tiger_output").rglob("manifest.json"))
