"""YAML as people mean it, and refusals that name the line."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest
import yaml

from genrec.strict_yaml import MAX_BYTES, YamlError, load_yaml, parse_scalar, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("-2.5e+2", -250.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("3.10", 3.1),
        ("-.inf", -math.inf),
        ("012", 12),
        ("+5", 5),
        ("0", 0),
        ("-3", -3),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-01-31", "2026-01-31"),
        ("1e", "1e"),
        ("'12'", "12"),
        ('"true"', "true"),
    ],
)
def test_scalars_are_read_by_the_rules_of_yaml_1_2(text, value):
    found = parse_yaml(f"key: {text}").data["key"]
    assert found == value
    assert type(found) is type(value)
    assert parse_scalar(text) == value


def test_lists_and_nested_mappings_are_plain_values():
    document = parse_yaml("a:\n  b: [1, 2.5, x]\n  c: {d: 1e-3}\n")
    assert document.data == {"a": {"b": [1, 2.5, "x"], "c": {"d": 1e-3}}}


def test_every_key_knows_its_line():
    document = parse_yaml("# head\na:\n  b: 1\n\n  c:\n    - x: 1\n    - x: 2\n", "run.yaml")
    assert document.where("a", "b") == "run.yaml:3"
    assert document.where("a", "c", "1", "x") == "run.yaml:7"
    assert document.where("a", "b", "unknown") == "run.yaml:3"
    assert document.where("unknown") == "run.yaml"


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "x:\n  a: 1\nb: {a: 1, a: 2}\n"])
def test_a_repeated_key_is_refused_with_both_lines(text):
    with pytest.raises(YamlError, match=r"run.yaml:3: key 'a' stands already on line [13]"):
        parse_yaml(text, "run.yaml")


def test_equal_keys_of_different_mappings_are_no_repetition():
    assert parse_yaml("x: {a: 1}\ny: {a: 2}\n").data == {"x": {"a": 1}, "y": {"a": 2}}


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir [CANARY]",
        "!!python/name:os.system",
        "!!python/tuple [1]",
        "!env HOME",
        "!!set {a}",
        "!!bool x",
        "!!float x",
        "!!timestamp x",
    ],
)
def test_tags_are_refused_and_run_nothing(tag, tmp_path):
    canary = tmp_path / "canary"
    with pytest.raises(YamlError, match=r"x.yaml:2: tag .* without tags"):
        parse_yaml("a: 1\nb: " + tag.replace("CANARY", str(canary)), "x.yaml")
    assert not canary.exists()


@pytest.mark.parametrize("text", ["1: a", "true: a", "null: a", "[a, b]: 1", "? {a: 1}\n: 2", "1.5: a"])
def test_keys_must_be_text(text):
    with pytest.raises(YamlError, match=r"x.yaml:1: keys must be text"):
        parse_yaml(text, "x.yaml")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n"])
def test_an_empty_file_is_refused(text):
    with pytest.raises(YamlError, match=r"empty|expected a mapping"):
        parse_yaml(text, "x.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "42"])
def test_the_top_must_be_a_mapping(text):
    with pytest.raises(YamlError, match=r"x.yaml:1: expected a mapping of keys to values"):
        parse_yaml(text, "x.yaml")


def bomb(width: int, levels: int) -> str:
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (bomb(9, 9), "values"),
        (bomb(2, 30), "values"),
        (bomb(20, 20), "aliases"),
        (
            "\n".join(f"a{n}: &a{n} {'[' * 15}{f'*a{n - 1}' if n else 'x'}{']' * 15}" for n in range(99)),
            "by aliases",
        ),
        ("a: &a [*a]", "contains itself"),
        ("a: &a {b: {c: *a}}", "contains itself"),
        ("a: " + "[" * 3000, "nested more than"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested more than"),
        ("a: " + "{b: " * 3000 + "1" + "}" * 3000, "nested more than"),
        ("\n".join(" " * n + "a:" for n in range(300)), "nested more than"),
    ],
)
def test_bombs_cycles_and_depth_are_refused_at_once(text, rule):
    started = time.process_time()
    with pytest.raises(YamlError, match=rule):
        parse_yaml(text, "x.yaml")
    assert time.process_time() - started < 1.0


def test_ordinary_anchors_are_accepted():
    assert parse_yaml("a: &a {x: 1}\nb: *a\n").data == {"a": {"x": 1}, "b": {"x": 1}}


@pytest.mark.parametrize(
    ("text", "place"),
    [("a: 1\n\tb: 2", "x.yaml:2:1"), ("a: [1, 2", "x.yaml:1"), ("a: 'b", "x.yaml:1"), ("a: b: c", "x.yaml:1:5")],
)
def test_faults_of_syntax_name_line_and_column(text, place):
    with pytest.raises(YamlError, match=place):
        parse_yaml(text, "x.yaml")


@pytest.mark.parametrize("text", ["a: \0", "a: \x1b[2J", "a: " + "9" * 5000])
def test_unreadable_characters_and_numbers_are_yaml_errors(text):
    with pytest.raises(YamlError, match=r"x\.yaml"):
        parse_yaml(text, "x.yaml")


@pytest.mark.parametrize("text", ["[1,2", "\0", "!!python/name:os.system", "[" * 5000, "9" * 5000, "*a"])
def test_unreadable_values_of_set_are_yaml_errors(text):
    with pytest.raises(YamlError, match="cannot read the value"):
        parse_scalar(text)


def test_files_with_bom_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert load_yaml(path).data == {"a": 1, "b": 2}


def test_files_that_are_not_text_too_large_or_missing_are_refused(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\n")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, rule in (
        ("latin.yaml", "not UTF-8 at byte 3"),
        ("large.yaml", f"at most {MAX_BYTES}"),
        ("pipe.yaml", "no such file"),
        ("missing.yaml", "no such file"),
        (".", "is a folder"),
    ):
        with pytest.raises(YamlError, match=rule):
            load_yaml(Path(tmp_path / name))


def test_the_safe_loader_of_others_is_left_alone():
    assert yaml.safe_load("a: yes") == {"a": True}
