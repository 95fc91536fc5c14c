"""YAML as people mean it: the one loader for configs and search spaces.

PyYAML follows YAML 1.1, in which `1e-4` is a string, `no` a boolean, `012` the number ten and a repeated key
silently wins. This loader reads YAML 1.2 scalars, refuses repeated keys, never builds Python objects, and keeps the
line of every key so that an error can name it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from genrec.errors import InputError

MAX_BYTES = 1_000_000
MAX_DEPTH = 100
MAX_ALIASES = 100
MAX_VALUES = 100_000


class YamlError(InputError):
    """A YAML file that cannot be read; the message names file, line and rule."""


@dataclass(frozen=True)
class YamlDocument:
    """A parsed file: `data` and the line (1-based) of every key, by its path of keys."""

    source: str
    data: dict[str, Any]
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)

    def where(self, *path: str) -> str:
        """`FILE:LINE` of the nearest known ancestor of `path`."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.source}:{self.lines[path[:end]]}"
        return self.source


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalar rules of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {}
_SCALARS: list[tuple[str, str, str]] = [
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:int", r"^[-+]?[0-9]+$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$",
        "-+.0123456789",
    ),
]
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), [c if c != "\0" else "" for c in _first])


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    try:
        return int(loader.construct_scalar(node))
    except ValueError:
        raise yaml.constructor.ConstructorError(None, None, "a number of too many digits", node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def load_yaml(path: str | Path) -> YamlDocument:
    """Read a YAML file whose top level is a mapping."""
    path = Path(path)
    if not path.is_file():
        raise YamlError(f"{path}: is a folder; expected a file" if path.is_dir() else f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise YamlError(f"{path}: {path.stat().st_size} bytes; a config may have at most {MAX_BYTES}")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlError(f"{path}: not UTF-8 at byte {error.start}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str = "<text>") -> YamlDocument:
    """Parse YAML text whose top level is a mapping. Raises `YamlError` naming source and line."""
    try:
        _check_events(text, source)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise YamlError(f"{source}: the file is empty; expected a mapping of keys to values")
        if not isinstance(node, yaml.MappingNode):
            raise YamlError(f"{source}:{node.start_mark.line + 1}: expected a mapping of keys to values at the top")
        _checked(node, source)
        lines: dict[tuple[str, ...], int] = {}
        _collect_lines(node, (), lines, source)
        return YamlDocument(source, loader.construct_document(node), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise YamlError(f"{at}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise YamlError(f"{source}: {str(error).splitlines()[0]}") from None


def parse_scalar(text: str) -> Any:
    """The value of `text` in `--set key=text`: any one-line YAML value."""
    try:
        _check_events(text, "value")
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(_checked(node, "value"))
    except (yaml.YAMLError, YamlError) as error:
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise YamlError(f"cannot read the value {text[:80]!r}: {reason}") from None


def _check_events(text: str, source: str) -> None:
    """Refuse tags, floods of aliases and deep nesting before anything is built from them."""
    depth = aliases = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
        at = f"{source}:{event.start_mark.line + 1}" if event.start_mark else source
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise YamlError(f"{at}: tag {tag!r}; values are written without tags")
        if depth > MAX_DEPTH:
            raise YamlError(f"{at}: nested more than {MAX_DEPTH} levels deep")
        if aliases > MAX_ALIASES:
            raise YamlError(f"{at}: more than {MAX_ALIASES} aliases")


def _checked(node: yaml.Node, source: str) -> yaml.Node:
    """The node, unless it is too much once its aliases are written out."""
    if _size(node, {}, source).values > MAX_VALUES:
        raise YamlError(f"{source}: more than {MAX_VALUES} values once its aliases are written out")
    return node


class _Size(NamedTuple):
    """Of a node with its aliases written out."""

    values: int
    depth: int


def _size(node: yaml.Node, known: dict[int, _Size | None], source: str) -> _Size:
    """Values at and below `node`, and how deeply they are nested. Each node is visited once, so a bomb is counted, not
    built."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise YamlError(f"{source}:{node.start_mark.line + 1}: an anchor that contains itself")
        return found
    known[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    below = [_size(child, known, source) for child in children]
    size = _Size(1 + sum(part.values for part in below), 1 + max((part.depth for part in below), default=-1))
    if size.depth > MAX_DEPTH:
        raise YamlError(f"{source}:{node.start_mark.line + 1}: nested more than {MAX_DEPTH} levels deep by aliases")
    known[id(node)] = size
    return size


def _collect_lines(node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int], source: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise YamlError(f"{source}:{line}: keys must be text, got {getattr(key, 'value', key.tag)!r}")
            if key.value in seen:
                raise YamlError(f"{source}:{line}: key {key.value!r} stands already on line {seen[key.value]}")
            seen[key.value] = line
            lines[(*path, key.value)] = line
            _collect_lines(value, (*path, key.value), lines, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _collect_lines(value, (*path, str(index)), lines, source)
