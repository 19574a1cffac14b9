"""JSON schemas as grammars of answers, for llguidance.

    json_grammar(schema: dict[str, Any] | None) -> str    one JSON value that keeps to the schema; any object without one
    part(schema: dict[str, Any]) -> str                   the schema as a part of a larger grammar (`app.forms.tools`)

Which schemas cannot be enforced, `app.forms.validation` says. Knows no model, no tokenizer and no request.
"""

import json
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
Place = tuple[str, Schema]  # JSON pointer and what it points at

# As json.dumps writes: no blank but behind a comma and a colon. A weak model writes blanks for ever where it may.
OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ANY = {"type": "object"}

KEYWORDS = frozenset(
    "type enum const properties required additionalProperties patternProperties minProperties maxProperties items prefixItems "
    "additionalItems minItems maxItems minLength maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf "
    "anyOf oneOf allOf $ref $defs definitions".split()
)
NAMED, LISTED = ("properties", "patternProperties", "$defs", "definitions"), ("prefixItems", "anyOf", "oneOf", "allOf", "items")
SINGLE = ("items", "additionalItems", "additionalProperties")
JOINED = ("allOf", "$ref", "anyOf", "oneOf")  # with anything else beside them, schemas are intersected


def json_grammar(schema: Schema | None) -> str:
    return f"start: {part(ANY if schema is None else schema)}"


def part(schema: Schema) -> str:
    return "%json " + json.dumps({**closed(schema), "x-guidance": OPTIONS})


def closed(schema: Schema) -> Schema:
    """The schema with no properties but those it names, where it says nothing of others: a model that may add some seldom ends. What
    keeps to it keeps to the schema as well. As it is where schemas are intersected: each would forbid what the other names.
    """
    return schema if any(_open(one) for _, one in walk(schema)) else _closed(schema)


def _open(schema: Schema) -> bool:
    """What it names is not all that it needs."""
    named, required = schema.get("properties"), schema.get("required")
    beyond = isinstance(named, dict) and isinstance(required, list) and any(name not in named for name in required if isinstance(name, str))
    return beyond or "allOf" in schema or ("properties" in schema and joins(schema))


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed_value(key, value) for key, value in schema.items()}
    if "properties" in made and "patternProperties" not in made:
        made.setdefault("additionalProperties", False)
    return made


def _closed_value(key: str, value: Any) -> Any:
    if key in NAMED and isinstance(value, dict):
        return {name: _closed(one) for name, one in value.items()}
    if key in LISTED and isinstance(value, list):
        return [_closed(one) for one in value]
    return _closed(value) if key in SINGLE else value


def joins(schema: Schema) -> bool:
    """Whether it is intersected with another one."""
    beside = [key for key in schema if key in KEYWORDS and key not in ("$defs", "definitions")]
    return "allOf" in schema or (len(beside) > 1 and any(key in schema for key in JOINED))


def walk(schema: Schema) -> Iterator[Place]:
    """The schema and every schema in it. What is no schema where one is due is left to llguidance."""
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        pointer, inner = waiting.pop()
        if isinstance(inner, dict):
            yield pointer, inner
            waiting += [(f"{pointer}/{step}", value) for step, value in reversed(list(inside(inner)))]


def inside(schema: Schema) -> Iterator[tuple[str, Any]]:
    for key, value in schema.items():
        if key in NAMED and isinstance(value, dict):
            yield from ((f"{key}/{escaped(name)}", one) for name, one in value.items())
        elif key in LISTED and isinstance(value, list):
            yield from ((f"{key}/{index}", one) for index, one in enumerate(value))
        elif key in SINGLE:
            yield key, value


def escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
