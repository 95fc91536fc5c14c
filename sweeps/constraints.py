"""Expressions over the values of one config: conditions (`tiger.attn_dim % tiger.num_heads == 0`) and formulas
(`tiger.num_heads * 16`).

The text is parsed into a syntax tree, checked against a list of what is allowed, and walked; it is never run as Python.
Names are config paths, or what a config costs (`cost.parameters`), so a misspelt one is refused when the file is read.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from genrec.config import config_keys, nearest, nearest_setting
from sweeps.costs import QUANTITIES, quantity

MAX_LENGTH = 1000
MAX_EXPONENT = 8


def _power(base: int | float, exponent: int | float) -> Any:
    """What is too large for a float is an OverflowError, before powers of powers fill the memory."""
    float(base) ** exponent
    return base**exponent


_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "round": round}
_ARGUMENTS = {"min": range(2, MAX_LENGTH), "max": range(2, MAX_LENGTH), "round": range(1, 3)}
_CONSTANT_NAMES = {"true": True, "false": False, "null": None}


class ConstraintError(ValueError):
    """An expression that cannot be used; the message says what is wrong with it."""


class Unusable(ArithmeticError):
    """An expression has no value for a config; the message names both."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression; `paths` are the config paths (and costs) that it reads."""

    text: str
    paths: frozenset[str]
    _root: ast.expr = field(repr=False, compare=False)

    def value(self, config: Mapping[str, Any]) -> Any:
        """For the nested `config` (all settings). Raises `Unusable` where the values do not fit."""
        try:
            return _value(self._root, config)
        except (TypeError, ArithmeticError) as error:
            raise Unusable(f"{self.text!r} cannot be evaluated ({error}) for {self._values(config)}") from None

    def _values(self, config: Mapping[str, Any]) -> str:
        return ", ".join(f"{path}={_lookup(config, path)!r}" for path in sorted(self.paths))


class Violation(str):
    """Why a config breaks a condition, with the values involved."""

    rule: str
    "the condition alone: equal for all configs that break it"

    @classmethod
    def of(cls, rule: str, text: str) -> Violation:
        violation = cls(text)
        violation.rule = rule
        return violation


@dataclass(frozen=True)
class Constraint(Expression):
    """One condition."""

    def violation(self, config: Mapping[str, Any]) -> Violation | None:
        """Why `config` breaks the condition, with the values involved; None if it holds."""
        try:
            holds = self.value(config)
        except Unusable as error:
            return Violation.of(f"constraint {error}", f"constraint {error}")
        rule = f"constraint {self.text!r}"
        return None if holds else Violation.of(rule, f"{rule} is false for {self._values(config)}")


def parse_constraint(text: str) -> Constraint:
    """Parse a condition. Raises `ConstraintError` for bad syntax, a forbidden construct or an unknown path."""
    root, paths = _parsed(text)
    if not _is_condition(root):
        raise ConstraintError("not a condition: expected a comparison such as train.batch_size <= 512")
    return Constraint(text.strip(), paths, root)


def parse_formula(text: str) -> Expression:
    """Parse what computes a value. Raises as `parse_constraint`."""
    root, paths = _parsed(text)
    return Expression(text.strip(), paths, root)


def _parsed(text: str) -> tuple[ast.expr, frozenset[str]]:
    if len(text) > MAX_LENGTH:
        raise ConstraintError(f"{len(text)} characters; at most {MAX_LENGTH} are allowed")
    try:
        root = ast.parse(text.strip(), mode="eval").body
        paths: set[str] = set()
        _check(root, paths)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, ConstraintError):
            raise
        raise ConstraintError(f"cannot be read: {getattr(error, 'msg', error)}") from None
    if not paths:
        raise ConstraintError("names no setting: expected a config path such as train.batch_size")
    return root, frozenset(paths)


def _is_condition(node: ast.expr) -> bool:
    if isinstance(node, ast.BoolOp):
        return all(_is_condition(value) for value in node.values)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not) and _is_condition(node.operand)
    return isinstance(node, ast.Compare)


def _check(node: ast.expr, paths: set[str]) -> None:
    """Refuse whatever is not on the list and collect the config paths."""
    match node:
        case ast.Name() | ast.Attribute():
            path = _path(node)
            if path in _CONSTANT_NAMES:
                return
            if path not in config_keys() and path not in QUANTITIES:
                hint = nearest(path, QUANTITIES) if path.startswith("cost") else nearest_setting(path)
                raise ConstraintError(f"unknown setting {path!r}{hint}")
            paths.add(path)
        case ast.Constant(value=bool() | int() | float() | str() | None):
            pass
        case ast.BoolOp(values=values):
            _check_all(values, paths)
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=operand):
            _check(operand, paths)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            if isinstance(op, ast.Pow):
                _check_exponent(right)
            _check_all([left, right], paths)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            _check_all(arguments, paths)
            if len(arguments) not in _ARGUMENTS[name]:
                wanted = "one number, or a number and its digits" if name == "round" else "two numbers or more"
                raise ConstraintError(f"{ast.unparse(node)!r}: {name} takes {wanted}")
        case ast.Compare(left=left, ops=ops, comparators=comparators) if all(type(op) in _COMPARISONS for op in ops):
            _check(left, paths)
            for comparison, right in zip(ops, comparators, strict=True):
                _check_right_side(comparison, right, paths)
        case _:
            raise ConstraintError(
                f"{ast.unparse(node)!r} is not allowed: use settings, numbers, text, arithmetic, comparisons, "
                f"and, or, not, in, {', '.join(_FUNCTIONS)}"
            )


def _check_all(nodes: list[ast.expr], paths: set[str]) -> None:
    for node in nodes:
        _check(node, paths)


def _check_right_side(op: ast.cmpop, node: ast.expr, paths: set[str]) -> None:
    is_list = isinstance(node, (ast.Tuple, ast.List))
    if isinstance(op, (ast.In, ast.NotIn)) and not is_list:
        raise ConstraintError(f"the right side of 'in' must be a list such as (64, 128), got {ast.unparse(node)!r}")
    _check_all(node.elts if isinstance(node, (ast.Tuple, ast.List)) else [node], paths)


def _check_exponent(node: ast.expr) -> None:
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_EXPONENT:
        raise ConstraintError(f"an exponent must be a number from 0 to {MAX_EXPONENT}, got {ast.unparse(node)!r}")


def _path(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_path(node.value)}.{node.attr}"
    raise ConstraintError(f"{ast.unparse(node)!r} is not allowed: a setting is written as section.name")


def _lookup(config: Mapping[str, Any], path: str) -> Any:
    if path in QUANTITIES:
        return quantity(path, config)
    value: Any = config
    for part in path.split("."):
        value = value[part]
    return value


def _value(node: ast.expr, config: Mapping[str, Any]) -> Any:
    """The value of a checked node. Raises TypeError or ArithmeticError where values do not fit."""
    match node:
        case ast.Name() | ast.Attribute():
            path = _path(node)
            return _CONSTANT_NAMES[path] if path in _CONSTANT_NAMES else _lookup(config, path)
        case ast.Constant(value=value):
            return value
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return [_value(element, config) for element in elements]
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(value, config) for value in values)
        case ast.BoolOp(values=values):
            return any(_value(value, config) for value in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, config)
        case ast.UnaryOp(op=op, operand=operand):
            number = _number(_value(operand, config))
            return -number if isinstance(op, ast.USub) else number
        case ast.BinOp(left=left, op=op, right=right):
            return _number(_ARITHMETIC[type(op)](_number(_value(left, config)), _number(_value(right, config))))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name](*(_number(_value(argument, config)) for argument in arguments))
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            values = [_value(operand, config) for operand in (left, *comparators)]
            pairs = zip(values, ops, values[1:], strict=False)
            return all(_COMPARISONS[type(op)](before, after) for before, op, after in pairs)
    raise AssertionError(f"unchecked node {node!r}")


def _number(value: Any) -> int | float:
    """Text times a number would be legal Python and could fill the memory; a root of -1 would be complex."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is not a number")
    return value
