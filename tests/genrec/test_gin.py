"""The training guide's `.gin` files: every line is honoured and told, or an error with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from genrec.cli import main
from genrec.config import ConfigError, Model, RunConfig, load_config, recipe_files
from genrec.gin_syntax import Name, parse_gin

SEED = load_config("seed")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that a file names are looked for here."""
    monkeypatch.chdir(tmp_path)


def read(text: str, model: Model = "tiger", **overrides: Any) -> tuple[RunConfig, list[str]]:
    """The config of a gin file of this content, and what was told."""
    Path("my.gin").write_text(text, encoding="utf-8")
    told: list[str] = []
    values = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config("my.gin", values, model=model, tell=told.append), told


def faults_of(text: str, model: Model = "tiger") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, model)
    return caught.value.faults


GUIDES_OWN_CONFIG = """\
# my_tiger_config.gin
import genrec.data.p5_amazon

# 调整模型规模
train.embedding_dim=256
train.attn_dim=1024
train.n_layers=12
train.num_heads=16

# 调整训练参数
train.learning_rate=1e-4
train.batch_size=128
train.epochs=10000

# 自定义路径
train.dataset_folder="my_dataset"
train.pretrained_rqvae_path="my_rqvae/checkpoint.pt"
train.save_dir_root="my_tiger_output/"

# 实验跟踪
train.wandb_logging=True
train.wandb_project="my_tiger_experiment"
"""


def test_the_guides_own_config_sets_what_it_says_over_the_seed():
    config, told = read(GUIDES_OWN_CONFIG)
    assert config.tiger == SEED.tiger.model_copy(
        update={"embedding_dim": 256, "attn_dim": 1024, "n_layers": 12, "num_heads": 16}
    )
    assert config.train == SEED.train.model_copy(update={"learning_rate": 1e-4, "batch_size": 128, "epochs": 10000})
    assert (config.dataset.source, config.dataset.dataset_folder) == ("amazon", "my_dataset")
    assert config.tokenizer.pretrained_rqvae_path == "my_rqvae/checkpoint.pt"
    assert config.save_dir_root == "my_tiger_output/"
    assert config.tracking.wandb_logging
    assert config.tracking.wandb_project == "my_tiger_experiment"
    for line, text in enumerate(GUIDES_OWN_CONFIG.splitlines(), 1):
        said = [note for note in told if note.startswith(f"my.gin:{line}: ")]
        assert len(said) == bool(text and not text.startswith("#")), text
    assert "my.gin:11: train.learning_rate = 0.0001 -> train.learning_rate: 0.0001" in told
    assert "my.gin:21: train.wandb_logging = True -> tracking.wandb_logging: true" in told
    assert told[-1] == "my.gin: 13 lines read; all other settings as in recipe 'seed'"


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("train.epochs=5000", "train.epochs", 5000),
        ("train.learning_rate=3e-4", "train.learning_rate", 3e-4),
        ("train.batch_size=256", "train.batch_size", 256),
        ("train.weight_decay=0.035", "train.weight_decay", 0.035),
        ("train.embedding_dim=128", "tiger.embedding_dim", 128),
        ("train.attn_dim=512", "tiger.attn_dim", 512),
        ("train.dropout=0.3", "tiger.dropout", 0.3),
        ("train.num_heads=8", "tiger.num_heads", 8),
        ("train.n_layers=8", "tiger.n_layers", 8),
        ("train.max_seq_len=256", "tiger.max_seq_len", 256),
        ("train.num_item_embeddings=512", "tokenizer.num_item_embeddings", 512),
        ("train.num_user_embeddings=2000", "tiger.num_user_embeddings", 2000),
        ("train.sem_id_dim=4", "tokenizer.sem_id_dim", 4),
        ("train.pretrained_rqvae_path='x'", "tokenizer.pretrained_rqvae_path", "x"),
        ("train.dataset_folder='x'", "dataset.dataset_folder", "x"),
        ("train.save_dir_root='x'", "save_dir_root", "x"),
        ("train.wandb_logging=True", "tracking.wandb_logging", True),
        ("train.wandb_project='x'", "tracking.wandb_project", "x"),
        ("train.wandb_log_interval=100", "tracking.wandb_log_interval", 100),
        ("train.subsample=True", "train.subsample", True),
        ("train.augmentation=True", "train.augmentation", True),
        ("train.gradient_accumulate_every=4", "train.gradient_accumulate_every", 4),
        ('train.mixed_precision_type="fp16"', "train.mixed_precision_type", "fp16"),
    ],
)
def test_every_key_of_the_guide_is_a_setting(line, key, value):
    config, told = read(f"{line}  # 注释\n")
    for part in key.split("."):
        config = getattr(config, part)
    assert config == value
    assert f"-> {key}: " in told[0]


@pytest.mark.parametrize(
    ("lines", "key", "value"),
    [
        ("train.num_warmup_steps=7", "train.warmup_steps", 7),
        ("train.eval_valid_every_epoch=2", "train.eval_every", 2),
        ("train.eval_every=2", "train.eval_every", 2),
        ("train.split='sports'", "dataset.amazon.category", "Sports_and_Outdoors"),
        ("train.split='Office_Products'", "dataset.amazon.category", "Office_Products"),
        ("AmazonSeqDataset.split='toys'", "dataset.amazon.category", "Toys_and_Games"),
        ("train.dataset=@AmazonSeqDataset", "dataset.source", "amazon"),
        ("train.dataset=@P5AmazonReviewsSeqDataset()", "dataset.source", "amazon"),
        ("import genrec.data.movielens", "dataset.source", "movielens"),
        ("train.encoder_model_name='sentence-t5-xl'", "embeddings.model", "sentence-t5-xl"),
        ("train.encoder_model_name='sentence-t5-xl'", "embeddings.encoder", "sentence_transformer"),
        ("train.amp=True", "train.mixed_precision_type", "fp16"),
        ("train.amp=True\ntrain.mixed_precision_type='bf16'", "train.mixed_precision_type", "bf16"),
        ("train.amp=False", "train.mixed_precision_type", "no"),
        ("train.amp=False\ntrain.mixed_precision_type='no'", "train.mixed_precision_type", "no"),
        ("AmazonSeqDataset.add_disambiguation=False", "tokenizer.collisions", "none"),
        ("AmazonSeqDataset.rqvae_hidden_dims=[512, 64]", "tokenizer.rqvae.hidden_dims", [512, 64]),
        ("train.vae_hidden_dims=(512, 64)", "tokenizer.rqvae.hidden_dims", [512, 64]),
        (
            "train.vae_codebook_mode=%genrec.models.rqvae.QuantizeForwardMode.STE",
            "tokenizer.rqvae.gradient",
            "straight_through",
        ),
        ("train.vae_codebook_mode=%QuantizeForwardMode.ROTATION_TRICK", "tokenizer.rqvae.gradient", "rotation"),
        ("train.vae_codebook_last_layer_mode=%QuantizeForwardMode.SINKHORN", "tokenizer.rqvae.sinkhorn_levels", [3]),
        (
            "train.vae_codebook_last_layer_mode=%QuantizeForwardMode.SINKHORN\ntrain.sem_id_dim=4",
            "tokenizer.rqvae.sinkhorn_levels",
            [4],
        ),
    ],
)
def test_keys_of_older_files_are_translated(lines, key, value):
    config, told = read(lines)
    for part in key.split("."):
        config = getattr(config, part)
    assert config == value
    assert any(f"-> {key}: " in note for note in told)


def test_of_amp_and_type_the_type_decides_and_is_told():
    _, told = read("train.amp=True\ntrain.mixed_precision_type='bf16'\n")
    assert "my.gin:1: train.amp = True -> as train.mixed_precision_type says" in told
    (fault,) = faults_of("train.amp=False\ntrain.mixed_precision_type='bf16'\n")
    assert fault.startswith(
        "my.gin:1: train.amp = False: train.mixed_precision_type would be 'no', but my.gin:2 has set"
    )


@pytest.mark.parametrize("line", ["train.do_eval=True", "train.vae_sim_vq=False", "train.vae_n_cat_feats=0"])
def test_what_is_always_so_is_told_and_its_contrary_refused(line):
    config, told = read(line)
    assert config == SEED
    assert f"my.gin:1: {line.replace('=', ' = ')} -> always so: " in told[0]
    contrary = line.split("=")[0] + "=" + {"True": "False", "False": "True", "0": "1"}[line.split("=")[1]]
    assert faults_of(contrary)[0].endswith("or leave it out")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train.learning_rte=1e-4", "unknown setting; did you mean 'learning_rate'?"),
        ("train.encoder='codes'", "stands for embeddings.encoder and tiger.encoder; write the one that is meant"),
        ("trian.epochs=3", "only train.* is read; did you mean 'train'?; fix: train.epochs"),
        ("Tiger.epochs=3", "only train.* is read"),
        ("a/train.epochs=3", "only train.* is read"),
        ("train.iterations=400000", "training is counted in epochs; write train.epochs"),
        ("train.save_model_every=1000", "write train.checkpoint_interval (seconds)"),
        ("train.eval_test_every_epoch=10", "the test split is read by `genrec evaluate` alone"),
        ("train.vae_input_dim=768", "the encoder of the item texts decides"),
        ("train.eval_every=10000", "epochs are counted here, and there are 5000"),
        ("train.split='beuaty'", "did you mean 'beauty'?"),
        ("train.split=3", "expected one of beauty, "),
        ("train.dataset=@AmazonSqeDataset", "did you mean 'AmazonSeqDataset'?"),
        ("train.dataset='amazon'", "expected @ and a dataset's class"),
        ("train.optimizer=@AdamW", "no class has a place here; write a value"),
        ("train.epochs=%EPOCHS", "no macro of that name above"),
        ("train.vae_codebook_mode='STE'", "expected %QuantizeForwardMode. and one of STE, ROTATION_TRICK"),
        ("train.amp=1", "expected True or False"),
        ("train.save_dir_root=out/tiger", 'fix: "out/tiger"'),
        ("train.wandb_logging=true", "fix: True"),
        ("train.pretrained_rqvae_path=null", "fix: None"),
        ("train.epochs=1+1", "expected a number"),
        ("train.epochs=__import__('os').getpid()", "expected a number"),
        ("train.epochs=", "expected `train.key=value`"),
        ("train.epochs 3", "expected `train.key=value`"),
        ("epochs: 3", "expected `train.key=value`"),
        ("import genrec.data.p6_amazon", "no module of this package; did you mean 'genrec.data.p5_amazon'?"),
        ("import os", "no module of this package"),
        ("include 'base.gin'", "no such file"),
        ("train.epochs=0", "train.epochs: got 0; input should be greater than 0"),
        ("train.epochs='3'", "train.epochs: got '3'; input should be a valid integer"),
        ("train.num_heads=7", "attn_dim (512) must be a multiple of num_heads (7)"),
        ("train.n_layers=7", "must be even"),
    ],
)
def test_a_line_that_cannot_be_honoured_is_an_error_with_its_place(line, words):
    (fault,) = faults_of(f"# comment\n\n{line}\n")
    assert fault.startswith("my.gin:3: ")
    assert words in fault


def test_all_faults_are_told_at_once_and_nothing_else():
    told: list[str] = []
    Path("my.gin").write_text("train.epochs=0\ntrain.lr=x\ntrian.n=3\ntrain.batch_size=8\n")
    with pytest.raises(ConfigError) as caught:
        load_config("my.gin", tell=told.append)
    assert sorted(fault.split(": ")[0] for fault in caught.value.faults) == ["my.gin:1", "my.gin:2", "my.gin:3"]
    assert told == []


def test_a_key_that_stands_twice_is_refused_with_both_lines():
    assert faults_of("train.n_layers=8\n\ntrain.n_layers=12\n") == [
        "my.gin:3: 'train.n_layers' stands already on line 1"
    ]


def test_two_keys_of_one_setting_must_agree():
    read("train.num_item_embeddings=128\nAmazonSeqDataset.rqvae_codebook_size=128\n")
    (fault,) = faults_of("train.num_item_embeddings=128\nAmazonSeqDataset.rqvae_codebook_size=256\n")
    assert fault.startswith(
        "my.gin:2: AmazonSeqDataset.rqvae_codebook_size = 256: tokenizer.num_item_embeddings would be"
    )
    assert "my.gin:1 has set it to 128" in fault


def test_bare_names_are_about_the_tokenizer_when_that_is_trained():
    text = "train.epochs=7\ntrain.learning_rate=1e-3\ntrain.batch_size=64\ntrain.weight_decay=0.1\n"
    config, _ = read(text + "train.vae_embed_dim=16\ntrain.commitment_weight=0.5\n", model="rqvae")
    rqvae = config.tokenizer.rqvae
    assert (rqvae.epochs, rqvae.learning_rate, rqvae.batch_size, rqvae.weight_decay) == (7, 1e-3, 64, 0.1)
    assert (rqvae.latent_dim, rqvae.commitment_weight) == (16, 0.5)
    assert config.train == SEED.train


# ------------------------------------------------------------------- the data


def sequential_files(folder: str) -> None:
    Path(folder).mkdir(parents=True)
    for name in ("sequential_data.txt", "items.jsonl"):
        Path(folder, name).touch()


@pytest.mark.parametrize("place", ["my_dataset", "my_dataset/beauty", "my_dataset/Beauty"])
def test_a_folder_with_sequences_is_read_as_such_and_this_is_told(place):
    sequential_files(place)
    config, told = read('import genrec.data.p5_amazon\ntrain.dataset_folder="my_dataset"\n')
    assert (config.dataset.source, config.dataset.dataset_folder) == ("sequential", place)
    assert f"{place}: holds sequential_data.txt and items.jsonl -> dataset.source: sequential" in told


def test_the_folder_of_another_category_is_not_taken_for_this_one():
    sequential_files("my_dataset/beauty")
    text = 'train.split="toys"\ntrain.dataset_folder="my_dataset"\n'
    config, told = read(text)
    assert (config.dataset.source, config.dataset.dataset_folder) == ("amazon", "my_dataset")
    assert "my_dataset: no sequential_data.txt there -> dataset.source: amazon, the raw files" in told


def test_overrides_of_the_command_line_win_and_are_looked_into():
    sequential_files("other/beauty")
    config, _ = read('train.dataset_folder="my_dataset"\n', dataset__dataset_folder="other", train__epochs=3)
    assert (config.dataset.source, config.dataset.dataset_folder) == ("sequential", "other/beauty")
    assert config.train.epochs == 3
    config, _ = read("", dataset__source="amazon", dataset__dataset_folder="other/beauty")
    assert config.dataset.source == "amazon"


# -------------------------------------------------------------------- syntax


def test_values_may_be_written_over_several_lines_and_comments_may_follow():
    config, _ = read('train.vae_hidden_dims = [512,  # wide\n  256,\n]\ntrain.wandb_project = "a # b"  # c\n')
    assert config.tokenizer.rqvae.hidden_dims == [512, 256]
    assert config.tracking.wandb_project == "a # b"


def test_macros_and_included_files_are_read_and_told():
    Path("config").mkdir()
    Path("config/base.gin").write_text('MODEL = "sentence-t5-xl"\ntrain.epochs=3\ntrain.batch_size=8\n')
    config, told = read('include "config/base.gin"\ntrain.encoder_model_name=%MODEL\ntrain.epochs=4\n')
    assert config.embeddings.model == "sentence-t5-xl"
    assert (config.train.epochs, config.train.batch_size) == (4, 8)
    assert "config/base.gin:3: train.batch_size = 8 -> train.batch_size: 8" in told
    assert "config/base.gin:1: MODEL = 'sentence-t5-xl' -> read where %MODEL stands" in told
    Path("config/base.gin").write_text("train.epochs=0\n")
    assert faults_of('include "config/base.gin"\n')[0].startswith("config/base.gin:1: train.epochs: got 0")


def test_files_that_include_each_other_are_refused():
    Path("other.gin").write_text('include "my.gin"\n')
    (fault,) = faults_of('include "other.gin"\n')
    assert fault == "other.gin:1: include 'my.gin': the file includes itself"


def test_names_are_kept_as_names(tmp_path):
    (tmp_path / "a.gin").write_text("train.x=%a.b.C\ntrain.y=@D()\n")
    values = [statement.value for statement in parse_gin(tmp_path / "a.gin").statements]
    assert values == [Name("%a.b.C"), Name("@D")]
    assert [value.last for value in values] == ["C", "D"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"train.x='\xff'", "not UTF-8 at byte 9"), (b"#" * 1_000_001, "at most 1000000"), (None, "no such file")],
)
def test_files_that_cannot_be_read_are_refused(content, words):
    if content is not None:
        Path("my.gin").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_config("my.gin")


def test_a_byte_order_mark_and_windows_line_ends_are_accepted():
    Path("my.gin").write_bytes(b"\xef\xbb\xbftrain.epochs=3\r\ntrain.batch_size=8\r\n")
    assert load_config("my.gin").train.epochs == 3


# ------------------------------------------------------------------ the command


def test_the_command_tells_what_it_did_with_every_line_before_it_starts():
    Path("my.gin").write_text(GUIDES_OWN_CONFIG, encoding="utf-8")
    result = CliRunner().invoke(main, ["train", "tiger", "my.gin"])
    assert result.exit_code == 2
    assert "my.gin:12: train.batch_size = 128 -> train.batch_size: 128" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: my_dataset/")


def test_the_guides_default_file_is_a_recipe():
    shown = CliRunner().invoke(main, ["recipes", "--show", "p5_amazon"])
    assert shown.stdout == recipe_files()["p5_amazon"].read_text(encoding="utf-8")
    assert load_config("p5_amazon").tiger == SEED.tiger
    assert load_config("p5_amazon").train == SEED.train
