"""The training guide's `.gin` files keep working: `train.key=value` lines over the recipe `seed`.

A line is honoured or an error; what became of each is told. Bare names mean our settings by the rule of
`setting_path`. Names of the repositories that such files come from have a table here: where one has an honest meaning
it is translated, else the error says why and what to write instead.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genrec.config import ConfigError, Model, RunConfig, load_config, setting_path, with_overrides, with_values
from genrec.errors import nearest
from genrec.gin_syntax import Name, Statement, parse_gin
from genrec.strict_yaml import YamlDocument

RENAMED = {
    "num_warmup_steps": "train.warmup_steps",
    "eval_valid_every_epoch": "train.eval_every",
    "encoder_model_name": "embeddings.model",
    "vae_hidden_dims": "tokenizer.rqvae.hidden_dims",
    "vae_embed_dim": "tokenizer.rqvae.latent_dim",
    "vae_codebook_size": "tokenizer.num_item_embeddings",
    "vae_n_layers": "tokenizer.sem_id_dim",
    "rqvae_hidden_dims": "tokenizer.rqvae.hidden_dims",
    "rqvae_embed_dim": "tokenizer.rqvae.latent_dim",
    "rqvae_codebook_size": "tokenizer.num_item_embeddings",
    "rqvae_n_layers": "tokenizer.sem_id_dim",
}
ALWAYS: dict[str, tuple[Any, str]] = {
    "do_eval": (True, "every run is validated, its best epoch is kept by that; how often is train.eval_every"),
    "force_dataset_process": (False, "data is read again when its files or settings change, and only then"),
    "vae_codebook_normalize": (False, "codebooks are not normalised"),
    "vae_sim_vq": (False, "codebooks are free tables"),
    "vae_n_cat_feats": (0, "item vectors have no categorical part"),
}
_BY_TIME = "checkpoints are written by time; write train.checkpoint_interval (seconds) or leave it out"
_BY_ENCODER = "the encoder of the item texts decides how wide their vectors are; leave it out"
REFUSED = {
    "iterations": "training is counted in epochs; write train.epochs",
    "save_model_every": _BY_TIME,
    "save_every_epoch": _BY_TIME,
    "eval_test_every_epoch": "the test split is read by `genrec evaluate` alone; leave it out",
    "warmup_epochs": "warm-up is counted in steps; write train.warmup_steps or leave it out",
    "vae_input_dim": _BY_ENCODER,
    "rqvae_input_dim": _BY_ENCODER,
}
SPLITS = {
    "beauty": "Beauty",
    "sports": "Sports_and_Outdoors",
    "toys": "Toys_and_Games",
    "clothing": "Clothing_Shoes_and_Jewelry",
}
SOURCES = {"p5_amazon": "amazon", "amazon": "amazon", "movielens": "movielens", "synthetic": "synthetic"}
DATASETS = tuple(f"{name}{kind}Dataset" for name in ("P5AmazonReviews", "Amazon") for kind in ("Seq", "Item"))
GRADIENTS = {"STE": "straight_through", "ROTATION_TRICK": "rotation", "GUMBEL_SOFTMAX": "gumbel"}
SEQUENTIAL_FILES = ("sequential_data.txt", "items.jsonl")


@dataclass
class _Reading:
    """A gin file on its way to a config: settings by path, where each came from, what is told, what is wrong."""

    model: Model
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    later: dict[str, Statement] = field(default_factory=dict)
    "statements whose meaning hangs on others, wherever those stand"

    def put(self, line: Statement, path: str, value: Any) -> None:
        """Set `path`, unless another line has set it to something else."""
        if self.values.get(path, value) != value:
            rule = f"{self.places[path]} has set it to {self.values[path]!r}; leave one out"
            self.fault(line, f"{path} would be {value!r}, but {rule}")
            return
        self.values[path], self.places[path] = value, line.place
        self.note(line, f"{path}: {_plain(value)}")

    def note(self, line: Statement, text: str) -> None:
        self.notes.append(f"{line.place}: {line.shown} -> {text}")

    def fault(self, line: Statement, text: str) -> None:
        self.faults.append(f"{line.place}: {line.shown}: {text}")


class _Places(YamlDocument):
    """Where each setting of a gin file stands, for the faults of its values."""

    def where(self, *path: str) -> str:
        places: dict[str, str] = self.data["places"]
        for end in range(len(path), 0, -1):
            key = ".".join(path[:end])
            if found := [place for name, place in places.items() if name == key or name.startswith(f"{key}.")]:
                return found[-1]
        return self.source


def read_gin(path: Path, overrides: Mapping[str, Any], model: Model, tell: Callable[[str], None]) -> RunConfig:
    """The config of a gin file under `overrides`; `tell` hears what became of its lines. Raises `ConfigError`."""
    file = parse_gin(path)
    reading = _Reading(model, faults=file.faults)
    for line in file.statements:
        _MEANINGS[line.kind](line, reading)
    _settle(reading)
    base = load_config("seed").to_dict()
    overrides = _look_for_data(reading, overrides, base["dataset"]["dataset_folder"])
    try:
        places = _Places(str(path), {"places": reading.places})
        config = with_overrides(with_values(base, reading.values), overrides, places)
    except ConfigError as error:
        raise ConfigError(reading.faults + error.faults) from None
    _check_epochs(reading, config)
    if reading.faults:
        raise ConfigError(reading.faults)
    for note in reading.notes:
        tell(note)
    tell(f"{path}: {len(file.statements)} lines read; all other settings as in recipe 'seed'")
    return config


def _plain(value: Any) -> str:
    """A value as our YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


# ---------------------------------------------------------- what a line means


def _import(line: Statement, reading: _Reading) -> None:
    source = SOURCES.get(line.key.removeprefix("genrec.data.")) if line.key.startswith("genrec.data.") else None
    if source:
        reading.put(line, "dataset.source", source)
    elif line.key.split(".")[0] == "genrec" and _exists(line.key):
        reading.note(line, "nothing to do: modules are loaded when they are needed")
    else:
        known = [f"genrec.data.{module}" for module in SOURCES] + ["genrec.models.rqvae", "genrec.models.tiger"]
        reading.fault(line, f"no module of this package{nearest(line.key, known)}")


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _include(line: Statement, reading: _Reading) -> None:
    reading.note(line, "its lines are read")


def _macro(line: Statement, reading: _Reading) -> None:
    reading.note(line, f"read where %{line.key} stands")


def _binding(line: Statement, reading: _Reading) -> None:
    scope, _, name = line.key.rpartition(".")
    if scope == "train" or scope in DATASETS:
        _SPECIAL.get(name, _setting)(line, reading)
    else:
        reading.fault(line, f"only train.* is read{nearest(scope, ['train', *DATASETS])}; fix: train.{name}")


_MEANINGS: dict[str, Callable[[Statement, _Reading], None]] = {
    "import": _import,
    "include": _include,
    "macro": _macro,
    "binding": _binding,
}


def _setting(line: Statement, reading: _Reading) -> None:
    """`train.name=value`: our setting, always so, or an error."""
    name = line.key.rpartition(".")[2]
    if isinstance(line.value, Name):
        macro = line.value.text.startswith("%")
        reading.fault(line, f"{'no macro of that name above' if macro else 'no class has a place here'}; write a value")
    elif name in ALWAYS:
        always, why = ALWAYS[name]
        if type(line.value) is type(always) and line.value == always:
            reading.note(line, f"always so: {why}")
        else:
            reading.fault(line, f"{why}; write {always!r} or leave it out")
    elif name in REFUSED:
        reading.fault(line, REFUSED[name])
    else:
        try:
            path = RENAMED.get(name) or setting_path(name, reading.model)
        except ConfigError as error:
            reading.fault(line, error.faults[0].removeprefix(f"{name}: "))
            return
        reading.put(line, path, line.value)
        if path == "embeddings.model":
            reading.put(line, "embeddings.encoder", "sentence_transformer")


def _dataset(line: Statement, reading: _Reading) -> None:
    if isinstance(line.value, Name) and line.value.last in DATASETS:
        reading.put(line, "dataset.source", "amazon")
    else:
        hint = nearest(line.value.last, DATASETS) if isinstance(line.value, Name) else ""
        reading.fault(line, f"expected @ and a dataset's class, such as @P5AmazonReviewsSeqDataset{hint}")


def _split(line: Statement, reading: _Reading) -> None:
    word = line.value if isinstance(line.value, str) else ""
    if word in SPLITS or word[:1].isupper():
        reading.put(line, "dataset.amazon.category", SPLITS.get(word, word))
    else:
        rule = f"one of {', '.join(SPLITS)} or a category's full name, such as Office_Products"
        reading.fault(line, f"expected {rule}{nearest(word, SPLITS)}")


def _codebook_mode(line: Statement, reading: _Reading) -> None:
    if isinstance(line.value, Name) and line.value.last in GRADIENTS:
        reading.put(line, "tokenizer.rqvae.gradient", GRADIENTS[line.value.last])
    else:
        reading.fault(line, f"expected %QuantizeForwardMode. and one of {', '.join(GRADIENTS)}")


def _last_layer_mode(line: Statement, reading: _Reading) -> None:
    if isinstance(line.value, Name) and line.value.last in (*GRADIENTS, "SINKHORN"):
        reading.later["last_layer"] = line
    else:
        reading.fault(line, f"expected %QuantizeForwardMode. and one of {', '.join(GRADIENTS)}, SINKHORN")


def _flag(line: Statement, reading: _Reading) -> bool:
    if not isinstance(line.value, bool):
        reading.fault(line, "expected True or False")
    return isinstance(line.value, bool)


def _amp(line: Statement, reading: _Reading) -> None:
    if _flag(line, reading):
        reading.later["amp"] = line


def _disambiguation(line: Statement, reading: _Reading) -> None:
    if _flag(line, reading):
        reading.put(line, "tokenizer.collisions", "append" if line.value else "none")


_SPECIAL: dict[str, Callable[[Statement, _Reading], None]] = {
    "dataset": _dataset,
    "split": _split,
    "amp": _amp,
    "vae_codebook_mode": _codebook_mode,
    "vae_codebook_last_layer_mode": _last_layer_mode,
    "add_disambiguation": _disambiguation,
}


# --------------------------------------------------- what several lines decide


def _settle(reading: _Reading) -> None:
    """Read the statements whose meaning hangs on others."""
    if line := reading.later.get("amp"):
        kind = reading.values.get("train.mixed_precision_type")
        if line.value and kind is not None:
            reading.note(line, "as train.mixed_precision_type says")
        else:
            reading.put(line, "train.mixed_precision_type", "fp16" if line.value else "no")
    if line := reading.later.get("last_layer"):
        mode = line.value.last
        if mode == "SINKHORN":
            levels = reading.values.get("tokenizer.sem_id_dim", load_config("seed").tokenizer.sem_id_dim)
            reading.put(line, "tokenizer.rqvae.sinkhorn_levels", [levels])
        elif GRADIENTS[mode] == reading.values.get("tokenizer.rqvae.gradient", "straight_through"):
            reading.note(line, "as in all levels")
        else:
            reading.fault(line, "gradients pass all levels in one way; write what vae_codebook_mode says")


def _look_for_data(reading: _Reading, overrides: Mapping[str, Any], default: str) -> dict[str, Any]:
    """An Amazon folder may hold raw files or those of `SEQUENTIAL_FILES`: look, take what is there, and tell.

    Returns `overrides`, with the folder in which the files were found if they name the one above it.
    """
    result = dict(overrides)
    if "dataset.source" in overrides or reading.values.get("dataset.source", "amazon") != "amazon":
        return result
    folder = Path(str(result.get("dataset.dataset_folder") or reading.values.get("dataset.dataset_folder") or default))
    category = reading.values.get("dataset.amazon.category", "Beauty")
    names = ["", category, *(name for name, full in SPLITS.items() if full == category)]
    found = next((folder / n for n in names if all((folder / n / f).is_file() for f in SEQUENTIAL_FILES)), None)
    if found is None:
        reading.notes.append(f"{folder}: no {SEQUENTIAL_FILES[0]} there -> dataset.source: amazon, the raw files")
        return result
    target = result if "dataset.dataset_folder" in result else reading.values
    target["dataset.dataset_folder"] = str(found)
    reading.values["dataset.source"] = "sequential"
    reading.notes.append(f"{found}: holds {' and '.join(SEQUENTIAL_FILES)} -> dataset.source: sequential")
    return result


def _check_epochs(reading: _Reading, config: RunConfig) -> None:
    """`eval_every` counted steps in older files: a number beyond the last epoch is taken for one of those."""
    place = reading.places.get("train.eval_every")
    if place and config.train.eval_every > config.train.epochs:
        rule = f"epochs are counted here, and there are {config.train.epochs}; older files counted steps"
        reading.faults.append(f"{place}: train.eval_every: got {config.train.eval_every}; {rule}")
