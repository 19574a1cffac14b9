"""JSON schemas as grammars of answers, for llguidance.

    json_grammar(schema: dict[str, Any] | None) -> str    one JSON value that conforms to the schema; any object without a schema
    schema_term(schema: dict[str, Any]) -> str            the schema as a term in a larger grammar (`app.forms.tools`)

`app.forms.validation` decides which schemas can be enforced. Knows no model, no tokenizer and no request.
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

from app.forms.alternatives import Schema, are_disjoint

LocatedSchema = tuple[str, Schema]  # JSON pointer, and the schema it points at

# White space exactly as json.dumps writes it. Where a grammar allows more, a weak model may write spaces forever.
JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ANY_OBJECT = {"type": "object"}

KEYWORDS = frozenset(
    "type enum const properties required additionalProperties patternProperties minProperties maxProperties items prefixItems "
    "additionalItems minItems maxItems minLength maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf "
    "anyOf oneOf allOf $ref $defs definitions".split()
)
DEFINITIONS = frozenset({"$defs", "definitions"})
NO_BY_DEFAULT = ("uniqueItems", "nullable")  # keywords that are refused, but for the value that says what is so anyway: false
# Annotations of OpenAPI, editors and older drafts. llguidance takes them for keywords, which must not stand beside a circular reference.
LEFT_OUT = frozenset("discriminator xml externalDocs markdownDescription errorMessage $vocabulary id".split())
OPEN_FORMATS = ("binary", "password", "path", "file-path", "directory-path")  # that any text has, as pydantic and OpenAPI write them
ANY_NAME: tuple[Schema, ...] = ({}, {"type": "string"})  # values of propertyNames that every name conforms to; zod writes the second
SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")  # keywords whose value is an object of schemas
SCHEMA_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf", "items")  # keywords whose value is (or may be) a list of schemas
SCHEMA_VALUES = ("items", "additionalItems", "additionalProperties")  # keywords whose value is (or may be) one schema
URI_CHARACTERS = "/?:@!$&'()*+,;=-._~"  # that stand in a URI's fragment as they are (RFC 3986, section 3.5)
DAYS, TIME = "[0-9]{1,6}D", "T([0-9]{1,6}H([0-9]{1,6}M([0-9]{1,8}S)?)?|[0-9]{1,6}M([0-9]{1,8}S)?|[0-9]{1,8}S)"
MONTHS = f"[0-9]{{1,6}}M({DAYS})?"
# RFC 3339's form, with digits that pydantic's timedelta can hold: its days are below 10^9, the seconds of its time below 2^32.
DURATION = f"^P(([0-9]{{1,6}}Y({MONTHS})?|{MONTHS}|{DAYS})({TIME})?|{TIME}|[0-9]{{1,6}}W)$"
UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-%s[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
PATTERNS = {  # of formats that llguidance does not know, or leaves endless
    "duration": DURATION,
    "byte": BASE64,
    "base64": BASE64,
    **{f"uuid{version}": UUID % version for version in range(1, 9)},
}
COMBINING = ("allOf", "$ref", "anyOf", "oneOf")  # llguidance intersects these with the keywords beside them


def json_grammar(schema: Schema | None) -> str:
    return f"start: {schema_term(ANY_OBJECT if schema is None else schema)}"


def schema_term(schema: Schema) -> str:
    bounded = mapped(with_closed_objects(with_any_of(simplified(schema))), lambda _, inner: _bounded(_with_uri(inner)))
    return "%json " + json.dumps({**bounded, "x-guidance": JSON_OPTIONS})


def _with_uri(schema: Schema) -> Schema:
    """llguidance reads a reference as a URI, in which some characters of a pointer must be encoded."""
    target = schema.get("$ref")
    return (
        {**schema, "$ref": "#" + quote(target[1:], safe=URI_CHARACTERS)} if isinstance(target, str) and target.startswith("#") else schema
    )


def _bounded(schema: Schema) -> Schema:
    """With patterns for some formats. A weak model may write the digits of a duration for ever, as those of a number."""
    name = schema.get("format")
    if not isinstance(name, str) or name not in PATTERNS or not {"pattern", "enum", "const"}.isdisjoint(schema):
        return schema
    return {**{key: value for key, value in schema.items() if key != "format"}, "pattern": PATTERNS[name]}


def simplified(schema: Schema) -> Schema:
    """The same schema without what generators write and nothing needs: keywords that say what is so anyway, and an `allOf` of one part, of
    which pydantic 1 and FastAPI make each field with a description.
    """
    schema = with_plain_references(schema)
    has_references_into = any("/allOf/" in str(inner.get("$ref")) for _, inner in subschemas(schema))
    return mapped(schema, lambda _, inner: _simple(inner, has_references_into))


def with_any_of(schema: Schema) -> Schema:
    """With `anyOf` for each `oneOf` where both say the same: llguidance does not look behind the references of the second."""
    parts = dict(subschemas(schema))
    if any("/oneOf/" in str(inner.get("$ref")) for inner in parts.values()):
        return schema
    return mapped(schema, lambda _, inner: _as_any_of(inner, parts))


def with_plain_references(schema: Schema) -> Schema:
    """With the pointers that `$ref` has as fragments of a URI (RFC 6901, section 6) decoded."""
    if not any("%" in str(inner.get("$ref")) for _, inner in subschemas(schema)):
        return schema
    places = {f"#{pointer}" for pointer, _ in subschemas(schema)}

    def plain(_: str, inner: Schema) -> Schema:
        target = inner.get("$ref")
        is_encoded = isinstance(target, str) and target not in places and unquote(target) in places
        return {**inner, "$ref": unquote(str(target))} if is_encoded else inner

    return mapped(schema, plain)


def _as_any_of(schema: Schema, parts: Mapping[str, Schema]) -> Schema:
    ways = schema.get("oneOf")
    if not isinstance(ways, list) or "anyOf" in schema or not are_disjoint(ways, parts):
        return schema
    return {"anyOf" if key == "oneOf" else key: value for key, value in schema.items()}


def _simple(schema: Schema, keeps_parts: bool) -> Schema:
    schema = {key: value for key, value in schema.items() if not _says_nothing(key, value)}
    parts = schema.get("allOf")
    if keeps_parts or not isinstance(parts, list) or len(parts) != 1 or not isinstance(parts[0], dict):
        return schema
    others = {key: value for key, value in schema.items() if key != "allOf"}
    return schema if any(key in KEYWORDS - DEFINITIONS for key in others) else {**others, **parts[0]}


def _says_nothing(key: str, value: Any) -> bool:
    if key in LEFT_OUT or (key == "format" and value in OPEN_FORMATS):
        return True
    return (key in NO_BY_DEFAULT and value is False) or (key == "propertyNames" and value in ANY_NAME)


def with_closed_objects(schema: Schema) -> Schema:
    """The schema with `additionalProperties: false` wherever it names properties and does not mention others: a model that may add
    properties rarely stops. Every answer to the result conforms to the original schema as well.

    Not where parts are intersected, and in all that they refer to, because each part would forbid the properties that the other one names.
    """
    parts = dict(subschemas(schema))
    order = sorted(parts)
    waiting = [pointer for pointer, inner in parts.items() if "allOf" in inner or ("properties" in inner and is_intersected(inner))]
    are_open = set[str]()
    while waiting:
        top = waiting.pop()
        inside = order[bisect_left(order, f"{top}/") : bisect_left(order, f"{top}0")]  # "0" is the character after "/"
        within = {top, *inside} & parts.keys() - are_open
        are_open |= within
        waiting += [str(parts[pointer].get("$ref")).removeprefix("#") for pointer in within if "$ref" in parts[pointer]]
    return mapped(schema, lambda pointer, inner: inner if pointer in are_open else _closed(inner))


def _closed(schema: Schema) -> Schema:
    is_open = "properties" not in schema or "patternProperties" in schema or _needs_unnamed(schema)
    return schema if is_open else {"additionalProperties": False, **schema}


def mapped(schema: Any, change: Callable[[str, Schema], Schema], pointer: str = "") -> Any:
    """The schema with `change(pointer, inner)` for each schema in it, inner ones first."""
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        at = f"{pointer}/{key}"
        if key in SCHEMA_MAPS and isinstance(value, dict):
            value = {name: mapped(inner, change, f"{at}/{pointer_token(name)}") for name, inner in value.items()}
        elif key in SCHEMA_LISTS and isinstance(value, list):
            value = [mapped(inner, change, f"{at}/{index}") for index, inner in enumerate(value)]
        elif key in SCHEMA_VALUES:
            value = mapped(value, change, at)
        result[key] = value
    return change(pointer, result)


def _needs_unnamed(schema: Schema) -> bool:
    """Whether the object needs properties that it does not name itself."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return False
    return any(name not in properties for name in required if isinstance(name, str))


def is_intersected(schema: Schema) -> bool:
    """Whether llguidance computes the intersection of several schemas here: for `allOf`, and for `$ref`, `anyOf` or `oneOf` beside other
    keywords.
    """
    keywords = [key for key in schema if key in KEYWORDS - DEFINITIONS]
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
