"""RunConfig: every setting of one run, typed and strict, each defined once.

The sections are in `genrec.settings`; their names and keys are the paths that `--set` and a search space use
(`train.learning_rate`). Importing this module loads neither torch nor numpy, so a bad config is refused at once.
`config.schema.json` is written from here (`genrec schema`), so that editors complete and check YAML files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

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

Model = Literal["tiger", "rqvae"]
"what a bare setting name is about: TIGER's training or the tokenizer's"
SECTIONS: dict[Model, tuple[str, ...]] = {"tiger": ("train",), "rqvae": ("tokenizer.rqvae", "tokenizer")}
SHORT_NAMES = {"lr": "learning_rate", "bs": "batch_size", "model_dim": "embedding_dim"}


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


def validate_config(
    data: Mapping[str, Any], document: YamlDocument | None = None, overridden: Collection[str] = ()
) -> RunConfig:
    """Build a RunConfig from nested plain values. Raises `ConfigError` with every fault at once.

    Faults are placed in the file `document`, those of the dotted paths `overridden` on the command line.
    """
    try:
        return RunConfig.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError([_fault(item, document, overridden) for item in error.errors()]) from None


_FIXES = {"string_type": "quote it", "bool_type": "write true or false"}


def _fault(item: Any, document: YamlDocument | None, overridden: Collection[str]) -> str:
    path = tuple(str(part) for part in item["loc"])
    key = ".".join(path)
    where = f"{document.where(*path)}: " if document else ""
    if any(".".join(path[:end]) in overridden for end in range(1, len(path) + 1)):
        where = "--set "
    if item["type"] == "extra_forbidden":
        return f"{where}{key}: unknown key{nearest(key, _known_keys())}"
    message = item["msg"].removeprefix("Value error, ")
    scalar = isinstance(item["input"], (str, int, float))
    shown = "" if isinstance(item["input"], (dict, BaseModel)) else f" got {item['input']!r};"
    fix = f"; fix: {_FIXES[item['type']]}" if item["type"] in _FIXES and scalar else ""
    return f"{where}{key or 'config'}:{shown} {message[:1].lower() + message[1:]}{fix}"


def _known_keys() -> list[str]:
    keys = list(config_keys())
    return keys + sorted({".".join(k.split(".")[:n]) for k in keys for n in range(1, k.count(".") + 1)})


def with_values(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the nested dict `base` with `values` set at their dotted paths. Unknown paths raise `ConfigError`."""
    known = config_keys()
    faults = [f"{key}: unknown key{nearest_setting(key)}" for key in values if key not in known]
    if faults:
        raise ConfigError(faults)
    result: dict[str, Any] = json.loads(json.dumps(base))
    for key, value in values.items():
        *parents, last = key.split(".")
        section = result
        for depth, parent in enumerate(parents, 1):
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(
                    [f"{'.'.join(parents[:depth])}: got {section!r}; expected a mapping of keys to values"]
                )
        section[last] = value
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


def setting_path(name: str, model: Model = "tiger") -> str:
    """The dotted path that a bare name means: `lr` -> `train.learning_rate`. Raises `ConfigError`.

    A name that several sections have means the training of `model`; one that only other sections share is refused.
    """
    known = config_keys()
    last = SHORT_NAMES.get(name, name)
    for path in (*(f"{section}.{last}" for section in SECTIONS[model]), last):
        if path in known:
            return path
    found = [path for path in known if path.endswith(f".{last}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError([f"{name}: stands for {' and '.join(found)}; write the one that is meant"])
    names = {path.rsplit(".", 1)[-1] for path in known} | set(SHORT_NAMES)
    raise ConfigError([f"{name}: unknown setting{nearest(name, [*sorted(names), *known])}"])


def nearest_setting(key: str) -> str:
    """`; did you mean 'train.learning_rate'?` for `lr`, `train.lr` or a misspelt path; nothing where none is near."""
    known = config_keys()
    section, dot, last = key.rpartition(".")
    path = f"{section}{dot}{SHORT_NAMES.get(last, last)}"
    if not section:
        with contextlib.suppress(ConfigError):
            path = setting_path(key)
    return f"; did you mean {path!r}?" if path in known else nearest(key, known)


def create_config(base: str | Path = "seed", **settings: Any) -> RunConfig:
    """The recipe or file `base` with `settings`: `create_config(lr=1e-4, batch_size=128)`.

    A setting's name is the last part of its path, a short name (lr, bs, model_dim) or, by `**{...}`, a whole path.
    """
    values: dict[str, Any] = {}
    faults: list[str] = []
    for name, value in settings.items():
        try:
            path = setting_path(name)
        except ConfigError as error:
            faults += error.faults
            continue
        if path in values:
            faults.append(f"{name}: {path} is given twice")
        values[path] = value
    if faults:
        raise ConfigError(faults)
    return load_config(base, values)


def schema_text() -> str:
    """The JSON schema of a run's YAML file, as `config.schema.json` holds it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | RunConfig.model_json_schema()
    return json.dumps(schema, indent=1) + "\n"


def recipe_files() -> dict[str, Path]:
    """The recipes shipped with the package, by name."""
    files = resources.files("genrec").joinpath("recipes").iterdir()
    paths = [Path(str(f)) for f in files if f.name.endswith((".yaml", ".gin"))]
    return {path.stem: path for path in sorted(paths)}


def load_config(
    source: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    model: Model = "tiger",
    tell: Callable[[str], None] | None = None,
) -> RunConfig:
    """A RunConfig from a recipe's name, a YAML file or a gin file, then `overrides` by dotted path.

    `tell` hears what became of every line of a gin file, whose bare names are about the training of `model`.
    """
    overrides = overrides or {}
    if source is None:
        return with_overrides({}, overrides)
    path = _config_path(str(source))
    if path.suffix == ".gin":
        from genrec.gin import read_gin  # it builds on this module

        return read_gin(path, overrides, model, tell or (lambda line: None))
    document = load_yaml(path)
    return with_overrides(document.data, overrides, document)


def with_overrides(
    data: Mapping[str, Any], overrides: Mapping[str, Any], document: YamlDocument | None = None
) -> RunConfig:
    """The config of `data`, from `document`, under `overrides` by dotted path. All faults of both at once."""
    known = config_keys()
    faults = [f"--set {key}: unknown key{nearest_setting(key)}" for key in overrides if key not in known]
    try:
        config = validate_config(
            with_values(data, {key: value for key, value in overrides.items() if key in known}), document, overrides
        )
    except ConfigError as error:
        raise ConfigError(faults + error.faults) from None
    if faults:
        raise ConfigError(faults)
    return config


def _config_path(source: str) -> Path:
    recipes = recipe_files()
    if source in recipes:
        return recipes[source]
    path = Path(source)
    if not path.is_file() and path.suffix not in (".yaml", ".yml", ".gin"):
        raise ConfigError([f"{source}: neither a recipe nor a file{nearest(source, recipes)}"])
    return path
