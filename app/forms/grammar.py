"""JSON schemas as grammars of answers, for llguidance.

    json_grammar(schema: dict[str, Any] | None) -> str    one JSON value that conforms to the schema; any object without a schema
    schema_term(schema: dict[str, Any]) -> str            the schema as a term in a larger grammar (`app.forms.tools`)

`app.forms.validation` decides which schemas can be enforced. Knows no model, no tokenizer and no request.
"""

import json
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
LocatedSchema = tuple[str, Schema]  # JSON pointer, and the schema it points at

# White space exactly as json.dumps writes it. Where a grammar allows more, a weak model may write spaces forever.
JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ANY_OBJECT = {"type": "object"}

KEYWORDS = frozenset(
    "type enum const properties required additionalProperties patternProperties minProperties maxProperties items prefixItems "
    "additionalItems minItems maxItems minLength maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf "
    "anyOf oneOf allOf $ref $defs definitions".split()
)
SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")  # keywords whose value is an object of schemas
SCHEMA_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf", "items")  # keywords whose value is (or may be) a list of schemas
SCHEMA_VALUES = ("items", "additionalItems", "additionalProperties")  # keywords whose value is (or may be) one schema
COMBINING = ("allOf", "$ref", "anyOf", "oneOf")  # llguidance intersects these with the keywords beside them


def json_grammar(schema: Schema | None) -> str:
    return f"start: {schema_term(ANY_OBJECT if schema is None else schema)}"


def schema_term(schema: Schema) -> str:
    return "%json " + json.dumps({**with_closed_objects(schema), "x-guidance": JSON_OPTIONS})


def with_closed_objects(schema: Schema) -> Schema:
    """The schema with `additionalProperties: false` wherever it names properties and does not mention others: a model that may add
    properties rarely stops. Every answer to the result conforms to the original schema as well.

    Unchanged if any part is intersected with another, because each part would forbid the properties that the other one names.
    """
    return schema if any(_must_stay_open(inner) for _, inner in subschemas(schema)) else _close(schema)


def _must_stay_open(schema: Schema) -> bool:
    """Whether the object may need properties that it does not name itself."""
    properties, required = schema.get("properties"), schema.get("required")
    needs_unnamed = (
        isinstance(properties, dict)
        and isinstance(required, list)
        and any(name not in properties for name in required if isinstance(name, str))
    )
    return needs_unnamed or "allOf" in schema or ("properties" in schema and is_intersected(schema))


def _close(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    result = {key: _close_value(key, value) for key, value in schema.items()}
    if "properties" in result and "patternProperties" not in result:
        result.setdefault("additionalProperties", False)
    return result


def _close_value(key: str, value: Any) -> Any:
    if key in SCHEMA_MAPS and isinstance(value, dict):
        return {name: _close(inner) for name, inner in value.items()}
    if key in SCHEMA_LISTS and isinstance(value, list):
        return [_close(inner) for inner in value]
    return _close(value) if key in SCHEMA_VALUES else value


def is_intersected(schema: Schema) -> bool:
    """Whether llguidance computes the intersection of several schemas here: for `allOf`, and for `$ref`, `anyOf` or `oneOf` beside other
    keywords.
    """
    keywords = [key for key in schema if key in KEYWORDS and key not in ("$defs", "definitions")]
    return "allOf" in schema or (len(keywords) > 1 and any(key in schema for key in COMBINING))


def subschemas(schema: Schema) -> Iterator[LocatedSchema]:
    """The schema itself and every schema inside it. Skips a value that is no schema where one should be: llguidance reports it."""
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        pointer, inner = waiting.pop()
        if isinstance(inner, dict):
            yield pointer, inner
            waiting += [(f"{pointer}/{step}", value) for step, value in reversed(list(child_schemas(inner)))]


def child_schemas(schema: Schema) -> Iterator[tuple[str, Any]]:
    """The schemas directly inside this one, each with its relative JSON pointer."""
    for key, value in schema.items():
        if key in SCHEMA_MAPS and isinstance(value, dict):
            yield from ((f"{key}/{pointer_token(name)}", inner) for name, inner in value.items())
        elif key in SCHEMA_LISTS and isinstance(value, list):
            yield from ((f"{key}/{index}", inner) for index, inner in enumerate(value))
        elif key in SCHEMA_VALUES:
            yield key, value


def pointer_token(name: str) -> str:
    """The name as one step of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
