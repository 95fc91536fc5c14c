"""RunConfig: every setting of one run, typed and strict, each defined once.

Sections belong to the module they configure; their names and keys are the paths that `--set` and a search space use
(`train.learning_rate`). Importing this module loads neither torch nor numpy, so a bad config is refused at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from genrec.errors import InputError
from genrec.strict_yaml import YamlDocument, YamlError, load_yaml, parse_scalar

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class ConfigError(InputError):
    """Faults in a config, one line each: where, key, value, rule, nearest right thing."""

    def __init__(self, faults: Sequence[str]):
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SyntheticConfig(Section):
    """Size of the made-up catalogue with a known truth (`genrec.data.synthetic`)."""

    num_users: PositiveInt = 1500
    num_items: Annotated[int, Field(ge=10, le=1_000_000)] = 300
    num_categories: Annotated[int, Field(ge=2)] = 20
    "leaves of the taxonomy; items are spread over them by a Zipf law"
    mean_length: Annotated[float, Field(ge=5)] = 9.0
    "mean number of interactions of a user; the shortest has 5"
    zipf: Annotated[float, Field(ge=0)] = 0.8
    "exponent of item popularity inside a category"
    stay: Annotated[float, Field(ge=0, le=1)] = 0.5
    "probability that the next item is of the same category as the last"
    category_fanout: PositiveInt = 4
    "other categories that may follow a category"
    successors: PositiveInt = 4
    "items that follow an item in particular, in each category that may come next"
    successor_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    "probability that the next item is such a successor; else it is drawn by popularity in its category"
    seed: int = 0

    @model_validator(mode="after")
    def _enough_items(self) -> SyntheticConfig:
        if self.num_categories > self.num_items:
            raise ValueError(f"num_categories ({self.num_categories}) must be at most num_items ({self.num_items})")
        return self


class DatasetConfig(Section):
    """Where interactions and item texts come from."""

    source: Literal["synthetic", "sequential"] = "synthetic"
    "`sequential` reads `sequential_data.txt` and `items.jsonl` from `path`"
    path: str | None = None
    synthetic: SyntheticConfig = SyntheticConfig()

    @model_validator(mode="after")
    def _path_when_needed(self) -> DatasetConfig:
        if self.source == "sequential" and not self.path:
            raise ValueError("source 'sequential' needs a path: the folder with sequential_data.txt and items.jsonl")
        return self


class EmbeddingsConfig(Section):
    """Item text -> vector (`genrec.data.text`)."""

    encoder: Literal["lsa", "npy"] = "lsa"
    "`lsa`: TF-IDF and truncated SVD, no download; `npy`: a precomputed (num_items, dim) array"
    dim: PositiveInt = 64
    "width of the vectors (`lsa` only)"
    path: str | None = None
    "the array's file (`npy` only); relative to `dataset.path`"

    @model_validator(mode="after")
    def _path_when_needed(self) -> EmbeddingsConfig:
        if self.encoder == "npy" and not self.path:
            raise ValueError("encoder 'npy' needs a path: the .npy file with one row an item")
        return self


class RqVaeConfig(Section):
    """The residual-quantised autoencoder (`genrec.models.rqvae`); read when `tokenizer.kind` is `rqvae`."""

    hidden_dims: list[PositiveInt] = [256, 128]
    latent_dim: PositiveInt = 32
    commitment_weight: Annotated[float, Field(ge=0)] = 0.25
    epochs: PositiveInt = 200
    learning_rate: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    batch_size: PositiveInt = 1024


class TokenizerConfig(Section):
    """Item vector -> semantic ID."""

    kind: Literal["rqvae", "rkmeans"] = "rqvae"
    num_item_embeddings: Annotated[int, Field(ge=2)] = 256
    "codebook size K of every level"
    sem_id_dim: Annotated[int, Field(ge=1, le=8)] = 3
    "number of levels before the collision code"
    seed: int = 0
    rqvae: RqVaeConfig = RqVaeConfig()


class TigerConfig(Section):
    """The encoder-decoder over semantic IDs (`genrec.models.tiger`)."""

    embedding_dim: PositiveInt = 128
    attn_dim: PositiveInt = 128
    "width of all heads together; need not equal `embedding_dim`"
    num_heads: PositiveInt = 4
    feedforward_dim: PositiveInt = 512
    n_layers: Annotated[int, Field(ge=2)] = 4
    "encoder and decoder layers together; half each"
    dropout: Fraction = 0.1
    max_seq_len: Annotated[int, Field(ge=1, le=1024)] = 20
    "most recent items of a history that the encoder reads"
    encoder: Literal["bidirectional", "item_causal"] = "item_causal"
    "`item_causal` trains every position of a user in one pass"
    encoder_tokens: Literal["codes", "item"] = "item"
    "`codes`: one encoder token a code, as in the paper; `item`: their sum, one token an item"

    @model_validator(mode="after")
    def _divisible(self) -> TigerConfig:
        if self.attn_dim % self.num_heads:
            raise ValueError(f"attn_dim ({self.attn_dim}) must be a multiple of num_heads ({self.num_heads})")
        if self.n_layers % 2:
            raise ValueError(f"n_layers ({self.n_layers}) is split between encoder and decoder and must be even")
        return self


class TrainConfig(Section):
    """How TIGER is trained (`genrec.trainers`)."""

    epochs: PositiveInt = 10
    learning_rate: PositiveFloat = 1e-3
    batch_size: Annotated[int, Field(gt=0, le=1_000_000)] = 256
    "targets (history, next item) an optimizer step, over all workers"
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    optimizer: Literal["adamw", "muon"] = "adamw"
    "`muon`: torch.optim.Muon for the blocks' matrices, AdamW for the rest"
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    label_smoothing: Fraction = 0.1
    clip_norm: PositiveFloat = 1.0
    max_users: PositiveInt | None = None
    "train on this many users, drawn by seed 0; all when null"
    eval_every: PositiveInt = 1
    "epochs between two validations; the last epoch is always validated"
    checkpoint_interval: Annotated[float, Field(ge=0)] = 20.0
    "seconds that must pass before the next checkpoint is written at the end of an epoch"


class EvaluationConfig(Section):
    """How a model is measured (`genrec.evaluation`)."""

    ks: list[PositiveInt] = [5, 10]
    beam_size: PositiveInt = 20
    monitor: str = "ndcg@10"
    "the validation metric that decides: which epoch is kept, which trial is best"
    seen: Literal["keep", "exclude"] = "keep"
    "whether items of the history may be recommended"
    max_users: PositiveInt | None = None
    "validate on this many users, drawn by seed 0; the test split always uses all"
    batch_size: PositiveInt = 256

    @model_validator(mode="after")
    def _beam_covers_k(self) -> EvaluationConfig:
        if not self.ks or max(self.ks) > self.beam_size:
            raise ValueError(f"beam_size ({self.beam_size}) must be at least the largest of ks ({self.ks})")
        known = [f"{name}@{k}" for name in ("recall", "ndcg") for k in self.ks] + ["loss"]
        if self.monitor not in known:
            raise ValueError(f"monitor {self.monitor!r} is not measured{nearest(self.monitor, known)}")
        return self


class RunConfig(Section):
    """One run: data, tokenizer, model, training, evaluation."""

    dataset: DatasetConfig = DatasetConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    tiger: TigerConfig = TigerConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = 0
    "of TIGER's training; the tokenizer has its own"

    def to_dict(self) -> dict[str, Any]:
        """All settings, defaults included, as plain JSON types."""
        return self.model_dump(mode="json")

    @property
    def hash(self) -> str:
        """A hash of the settings' values: the order of keys and writing a default out do not change it."""
        return content_hash(self.to_dict())


def content_hash(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` in canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def config_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Every dotted path of a single setting -> its pydantic field."""
    keys: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys |= config_keys(info.annotation, f"{prefix}{name}.")
        else:
            keys[f"{prefix}{name}"] = info
    return keys


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?` or nothing. A dotted key is also compared by its last part."""
    words = list(words)
    found = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if not found:
        tail = word.rsplit(".", 1)[-1]
        tails = {w.rsplit(".", 1)[-1]: w for w in words}
        found = [tails[t] for t in difflib.get_close_matches(tail, list(tails), n=1, cutoff=0.6)]
    return f"; did you mean {found[0]!r}?" if found else ""


def validate_config(data: Mapping[str, Any], document: YamlDocument | None = None) -> RunConfig:
    """Build a RunConfig from nested plain values. Raises `ConfigError` with every fault at once."""
    try:
        return RunConfig.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError([_fault(item, document) for item in error.errors()]) from None


def _fault(item: Any, document: YamlDocument | None) -> str:
    path = tuple(str(part) for part in item["loc"])
    key = ".".join(path)
    where = f"{document.where(*path)}: " if document else ""
    if item["type"] == "extra_forbidden":
        return f"{where}{key}: unknown key{nearest(key, _known_keys())}"
    message = item["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(item["input"], (dict, BaseModel)) else f" got {item['input']!r};"
    return f"{where}{key or 'config'}:{shown} {message[:1].lower() + message[1:]}"


def _known_keys() -> list[str]:
    keys = list(config_keys())
    return keys + sorted({".".join(k.split(".")[:n]) for k in keys for n in range(1, k.count(".") + 1)})


def with_values(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the nested dict `base` with `values` set at their dotted paths. Unknown paths raise `ConfigError`."""
    known = config_keys()
    faults = [f"{key}: unknown key{nearest(key, known)}" for key in values if key not in known]
    if faults:
        raise ConfigError(faults)
    result: dict[str, Any] = json.loads(json.dumps(base))
    for key, value in values.items():
        *parents, name = key.split(".")
        section = result
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    return result


def get_value(config: RunConfig, key: str) -> Any:
    """The value at a dotted path."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """`["train.learning_rate=1e-4"]` -> `{"train.learning_rate": 0.0001}`."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not text.strip():
            raise ConfigError([f"--set {assignment}: expected KEY=VALUE, for example train.learning_rate=1e-4"])
        try:
            values[key.strip()] = parse_scalar(text)
        except YamlError as error:
            raise ConfigError([f"--set {assignment}: {error}"]) from None
    return values


def recipe_names() -> list[str]:
    """Names of the recipes shipped with the package."""
    files = resources.files("genrec").joinpath("recipes").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def load_config(source: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """A RunConfig from a recipe's name or a YAML file, then `overrides` by dotted path."""
    document = None
    if source is not None:
        document = load_yaml(_config_path(str(source)))
    data = document.data if document else {}
    if overrides:
        validate_config(data, document)
        return validate_config(with_values(data, overrides))
    return validate_config(data, document)


def _config_path(source: str) -> Path:
    if source in recipe_names():
        return Path(str(resources.files("genrec").joinpath("recipes", f"{source}.yaml")))
    path = Path(source)
    if not path.is_file() and path.suffix not in (".yaml", ".yml"):
        raise ConfigError([f"{source}: neither a recipe nor a file{nearest(source, recipe_names())}"])
    return path


def choices_of(key: str) -> tuple[Any, ...]:
    """The values that a `Literal` setting allows; empty for other types."""
    info = config_keys().get(key)
    return get_args(info.annotation) if info is not None else ()
