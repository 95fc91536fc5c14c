"""RunConfig: every setting of one run, typed and strict, each defined once.

The sections are in `genrec.settings`; their names and keys are the paths that `--set` and a search space use
(`train.learning_rate`). Importing this module loads neither torch nor numpy, so a bad config is refused at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from genrec.errors import InputError, nearest
from genrec.settings import (
    DatasetConfig,
    EmbeddingsConfig,
    EvaluationConfig,
    Section,
    TigerConfig,
    TokenizerConfig,
    TrackingConfig,
    TrainConfig,
)
from genrec.strict_yaml import YamlDocument, YamlError, load_yaml, parse_scalar


class ConfigError(InputError):
    """Faults in a config, one line each: where, key, value, rule, nearest right thing."""

    def __init__(self, faults: Sequence[str]):
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))


class RunConfig(Section):
    """One run: data, tokenizer, model, training, evaluation."""

    dataset: DatasetConfig = DatasetConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    tiger: TigerConfig = TigerConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    save_dir_root: str = "runs"
    "folder of models and of the stages' artifacts"
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
