"""Lines of a `.gin` file -> statements. Knows no setting, runs nothing.

What such files hold: comments, `import a.b`, `include "file"`, `scope.name=value`, and macros, `NAME=value`, which
`%NAME` reads. Values are Python literals, or names: `%NAME`, `@Name`. A file may bind again what a file it includes has
bound; within one file that is refused.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from genrec.strict_yaml import MAX_BYTES, YamlError

_IMPORT = re.compile(r"import\s+([\w.]+)\s*(?:#.*)?")
_INCLUDE = re.compile(r"""include\s+['"]([^'"]+)['"]\s*(?:#.*)?""")
_BINDING = re.compile(r"([\w/.]+)\s*=\s*(\S.*)", re.DOTALL)
_NAME = re.compile(r"([%@][\w./]+)(?:\(\))?\s*(?:#.*)?")
_OTHER_WORDS = {"true": "True", "false": "False", "null": "None", "none": "None"}


@dataclass(frozen=True)
class Name:
    """A value that is no literal: `%NAME` or `@Name`."""

    text: str

    @property
    def last(self) -> str:
        """Its last part: `%genrec.models.rqvae.QuantizeForwardMode.STE` -> `STE`."""
        return self.text.rsplit(".", 1)[-1].lstrip("@%")

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Statement:
    """One line that says something: where it stands, how it reads, and its parts."""

    place: str
    kind: Literal["import", "include", "macro", "binding"]
    key: str
    value: Any = None

    @property
    def shown(self) -> str:
        return f"{self.kind} {self.key}" if self.kind in ("import", "include") else f"{self.key} = {self.value!r}"


@dataclass(frozen=True)
class Include:
    """A file that another one includes: which one does, how it names it, and what was found."""

    by: Path
    name: str
    found: Path


@dataclass
class GinFile:
    """All statements of a file and of those it includes, in order, and the faults of the lines that are none."""

    statements: list[Statement] = field(default_factory=list)
    includes: list[Include] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    macros: dict[str, Any] = field(default_factory=dict)


def parse_gin(path: Path) -> GinFile:
    """Read a gin file and the files that it includes."""
    file = GinFile()
    _read(path, file, ())
    return file


def _read(path: Path, file: GinFile, outer: tuple[Path, ...]) -> None:
    """Append the statements of `path`; `outer` are the files that include it."""
    lines = _lines_of(path)
    bound: dict[str, int] = {}
    number = 0
    while number < len(lines):
        text, place = lines[number].strip(), f"{path}:{number + 1}"
        number += 1
        if not text or text.startswith("#"):
            continue
        while _is_open(text) and number < len(lines):
            text += "\n" + lines[number]
            number += 1
        if match := _IMPORT.fullmatch(text):
            file.statements.append(Statement(place, "import", match[1]))
        elif match := _INCLUDE.fullmatch(text):
            file.statements.append(Statement(place, "include", match[1]))
            _include(path, match[1], place, file, (path.resolve(), *outer))
        elif match := _BINDING.fullmatch(text):
            if match[1] in bound:
                file.faults.append(f"{place}: {match[1]!r} stands already on line {bound[match[1]]}")
            else:
                bound[match[1]] = int(place.rsplit(":", 1)[1])
                _bind(place, match[1], match[2], file)
        else:
            rule = 'expected `train.key=value`, `import module`, `include "file"` or a comment after #'
            file.faults.append(f"{place}: got {text[:80]!r}; {rule}")


def _lines_of(path: Path) -> list[str]:
    if not path.is_file():
        raise YamlError(f"{path}: is a folder; expected a file" if path.is_dir() else f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise YamlError(f"{path}: {path.stat().st_size} bytes; a config may have at most {MAX_BYTES}")
    try:
        return path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise YamlError(f"{path}: not UTF-8 at byte {error.start}") from None


def _is_open(text: str) -> bool:
    """Whether brackets of a value are still open at the end of the line. Strings and comments are looked past."""
    bare = re.sub(r"""'[^'\n]*'|"[^"\n]*"|#.*""", "", text)
    return sum(bare.count(c) for c in "([{") > sum(bare.count(c) for c in ")]}")


def _include(path: Path, name: str, place: str, file: GinFile, outer: tuple[Path, ...]) -> None:
    """Read another gin file, named from here or from beside this one."""
    found = next((other for other in (Path(name), path.parent / name) if other.is_file()), None)
    if found is None:
        file.faults.append(f"{place}: include {name!r}: no such file, neither here nor in {path.parent}")
    elif found.resolve() in outer:
        file.faults.append(f"{place}: include {name!r}: the file includes itself")
    else:
        file.includes.append(Include(path, name, found))
        _read(found, file, outer)


def _bind(place: str, key: str, text: str, file: GinFile) -> None:
    try:
        value = _value(text, file.macros)
    except ValueError as error:
        file.faults.append(f"{place}: {key}: got {' '.join(text.split())[:80]}; {error}")
        return
    if "." in key:
        # A later file's line replaces that of a file it includes.
        file.statements = [s for s in file.statements if (s.kind, s.key) != ("binding", key)]
        file.statements.append(Statement(place, "binding", key, value))
    else:
        file.macros[key] = value
        file.statements.append(Statement(place, "macro", key, value))


def _value(text: str, macros: Mapping[str, Any]) -> Any:
    """A Python literal with lists for tuples, or a name; never anything that could run."""
    if match := _NAME.fullmatch(text):
        name = Name(match[1])
        return macros.get(name.text[1:], name) if name.text.startswith("%") else name
    try:
        return _lists(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        bare = re.sub(r"\s*#.*", "", text)
        if bare.lower() in _OTHER_WORDS:
            raise ValueError(f"no such value; fix: {_OTHER_WORDS[bare.lower()]}") from None
        fix = f'; fix: "{bare}"' if re.fullmatch(r"[\w./\\:-]+", bare) else ""
        raise ValueError(f"expected a number, True, False, None, a list or text in quotes{fix}") from None


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
