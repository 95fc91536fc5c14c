"""The JSON schema of a sweep's YAML file, for editors: `search_spaces/schema.json` is written from here."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import TypeAdapter

from genrec.config import config_keys
from sweeps.spec import SweepSpec

NUMBER, TEXT = {"type": "number"}, {"type": "string"}
RANGE = {"low": NUMBER, "high": NUMBER, "step": NUMBER, "log": {"type": "boolean"}}
WHEN = {
    "type": "object",
    "minProperties": 1,
    "description": "parameter above -> the value, or values, of it under which this one lives",
}


def sweep_schema() -> dict[str, Any]:
    """What `sweeps validate` checks, as far as a JSON schema can say it."""
    schema = SweepSpec.model_json_schema()
    properties = schema["properties"]
    del properties["base_values"]
    schema["required"] = ["space"]
    schema["$defs"] |= {f"setting {key}": _setting(key) for key in config_keys()}
    schema["$defs"] |= _kinds()
    schema["$defs"]["when"] = WHEN
    settings = {key: {"$ref": f"#/$defs/setting {key}"} for key in config_keys()}
    schema["$defs"]["settings"] = {"properties": settings, "additionalProperties": False}
    schema["$defs"]["zip"] = {
        "type": "object",
        "properties": {key: {"type": "array", "minItems": 1, "items": setting} for key, setting in settings.items()},
        "additionalProperties": False,
        "minProperties": 1,
    }
    properties["set"] |= {"$ref": "#/$defs/settings"}
    properties["derive"] |= {"propertyNames": {"enum": list(settings)}}
    properties["space"] = {
        "description": "what varies, by config path; paired values (`zip`) under a name of their own",
        "type": "object",
        "minProperties": 1,
        "properties": {key: _entry(key) for key in settings},
        "additionalProperties": {"$ref": "#/$defs/search of pairs"},
    }
    finalists = schema["$defs"]["FinalistsSpec"]["properties"]["set"]
    finalists |= {"$ref": "#/$defs/settings"}
    duration = {"type": "string", "pattern": r"^(\d+(\.\d+)?[smhd])+$"}
    time = schema["$defs"]["BudgetSpec"]["properties"]["time"]
    time["anyOf"] = [duration, *time["anyOf"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "A sweep"}


def schema_text() -> str:
    """As `search_spaces/schema.json` holds it."""
    return json.dumps(sweep_schema(), indent=1) + "\n"


def _setting(key: str) -> dict[str, Any]:
    info = config_keys()[key]
    annotation: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    described = {"description": info.description} if info.description else {}
    return TypeAdapter(annotation).json_schema() | described


def _entry(key: str) -> dict[str, Any]:
    """What one setting's parameter may be: its kinds, and its own values in a list."""
    setting = _setting(key)
    types = {part.get("type") for part in [setting, *setting.get("anyOf", [])]}
    name = "a number" if "number" in types else "an integer" if "integer" in types else "a value"
    values = {"properties": {"values": {"items": {"$ref": f"#/$defs/setting {key}"}}}}
    return {"$ref": f"#/$defs/search of {name}", **values}


def _kinds() -> dict[str, Any]:
    """The kinds of parameter, by what they search."""
    values = {"values": {"type": "array", "minItems": 1}}
    paired = {"zip": {"$ref": "#/$defs/zip"}, "names": {"type": "array", "items": TEXT, "minItems": 1}}
    ordered = {"ordered": {"type": "boolean"}}
    lists = [_kind("choice", values, ["values"]), _kind("grid", values | ordered, ["values"])]
    pairs = [_kind("choice", paired, ["zip"]), _kind("grid", paired | ordered, ["zip"])]
    floats, ints = (_kind(name, RANGE, ["low", "high"]) for name in ("float", "int"))
    return {
        "search of a value": {"oneOf": lists},
        "search of an integer": {"oneOf": [*lists, ints]},
        "search of a number": {"oneOf": [*lists, ints, floats]},
        "search of pairs": {"oneOf": pairs},
    }


def _kind(name: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"type": {"const": name}, **properties, "when": {"$ref": "#/$defs/when"}},
        "required": ["type", *required],
        "additionalProperties": False,
    }
