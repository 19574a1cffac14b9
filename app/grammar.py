"""JSON schemas as grammars of answers, for llguidance; and what is wrong with one, before anything is sampled by it.

    json_grammar(schema: dict[str, Any] | None) -> str    one JSON value that keeps to the schema; any object without one
    fault(schema: dict[str, Any]) -> str | None           why answers cannot be held to it, as a sentence for the client; None if they can
    part(schema: dict[str, Any]) -> str                   the schema as a part of a larger grammar (`app.tools`)

What llguidance would leave out of account is refused by name, and so is what would keep it busy for seconds (docs/structured.md has the
measurements). Knows no model, no tokenizer and no request.
"""

import json
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import cache
from itertools import chain
from math import prod
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

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
NOTES = frozenset(  # by the standard they decide nothing
    "title description default examples example deprecated readOnly writeOnly $schema $id $anchor $comment contentEncoding "
    "contentMediaType contentSchema discriminator".split()
)
NAMED, LISTED = ("properties", "patternProperties", "$defs", "definitions"), ("prefixItems", "anyOf", "oneOf", "allOf", "items")
SINGLE = ("items", "additionalItems", "additionalProperties")
JOINED = ("allOf", "$ref", "anyOf", "oneOf")  # with anything else beside them, schemas are intersected

MOST_PLACES = 2000
MOST_CHAINED = 1000  # nested schemas, those behind references counted: at 2,000 llguidance 1.9.1 runs out of stack and ends the process
MOST_OPTIONAL = 400  # of an object: beyond 500 its parser gives up at the first token
MOST_PATTERNS = 16  # names by pattern: each is compared with each
MOST_JOINED = 8  # patterns and formats where schemas are intersected: exponential
MOST_MULTIPLE = 10_000  # one state of the lexer for each remainder
MOST_WHOLE = 2**53  # beyond it llguidance 1.9.1 writes another number: it counts in float64


def json_grammar(schema: Schema | None) -> str:
    return f"start: {part(ANY if schema is None else schema)}"


def part(schema: Schema) -> str:
    return "%json " + json.dumps({**closed(schema), "x-guidance": OPTIONS})


def closed(schema: Schema) -> Schema:
    """The schema with no properties but those it names, where it says nothing of others: a model that may add some seldom ends. What
    keeps to it keeps to the schema as well. As it is where schemas are intersected: each would forbid what the other names.
    """
    return schema if any(_open(one) for _, one in _walk(schema)) else _closed(schema)


def _open(schema: Schema) -> bool:
    """What it names is not all that it needs."""
    named, required = schema.get("properties"), schema.get("required")
    beyond = isinstance(named, dict) and isinstance(required, list) and any(name not in named for name in required if isinstance(name, str))
    return beyond or "allOf" in schema or ("properties" in schema and _joins(schema))


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


def crowded(schemas: Sequence[Schema]) -> str | None:
    """Why so many schemas cannot be enforced at once, each of which could be."""
    places = [one for schema in schemas for _, one in _walk(schema)]
    if len(places) > MOST_PLACES:
        return f"the schemas have {len(places)} parts together; at most {MOST_PLACES} are supported"
    if sum(_digits(step) for step in map(_multiple, places) if step is not None) > MOST_MULTIPLE:
        return f"multipleOf is not supported beyond {MOST_MULTIPLE} in all schemas together"
    return None


def _multiple(schema: Schema) -> Decimal | None:
    return _number(schema.get("multipleOf"))


def fault(schema: Schema) -> str | None:
    for wrong in _wrong(schema):
        return wrong
    matcher = LLMatcher(_bytes(), json_grammar(schema), log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return _sentence(matcher.get_error()) or None


class Bytes:
    """A vocabulary of the 256 bytes and an end: what a grammar is tried with where no model is known."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (eos_token_id,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def _bytes() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(Bytes()))


def _sentence(error: str) -> str:
    """Without the places of a text that the client has not written."""
    if error.startswith("NoExtension"):
        return "nothing can keep to it"
    found = re.sub(r"^at \d+\(\d+\): ", "", error.strip()).removeprefix("failed to compile JSON schema: ")
    told = re.search(r"^error: (.*)", found, re.M) if found.startswith("regex parse error") else None
    return f"pattern: {told[1]}" if told else found.partition("\n")[0][:300]


def _wrong(schema: Schema) -> Iterator[str]:
    """Sentences, in the order in which the schema is read."""
    places = dict(_walk(schema))
    if len(places) > MOST_PLACES:
        yield f"the schema has {len(places)} parts; at most {MOST_PLACES} are supported"
    for pointer, inner in places.items():
        for reason in chain(_unknown(inner), _sizes(inner), _numbers(inner)):
            yield f"{reason} (at #{pointer})"
    yield from _references(places)
    yield from _intersections(places)


def _walk(schema: Schema) -> Iterator[Place]:
    """The schema and every schema in it. What is no schema where one is due is left to llguidance."""
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        pointer, inner = waiting.pop()
        if isinstance(inner, dict):
            yield pointer, inner
            waiting += [(f"{pointer}/{step}", value) for step, value in reversed(list(_inside(inner)))]


def _inside(schema: Schema) -> Iterator[tuple[str, Any]]:
    for key, value in schema.items():
        if key in NAMED and isinstance(value, dict):
            yield from ((f"{key}/{_escaped(name)}", one) for name, one in value.items())
        elif key in LISTED and isinstance(value, list):
            yield from ((f"{key}/{index}", one) for index, one in enumerate(value))
        elif key in SINGLE:
            yield key, value


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _unknown(schema: Schema) -> Iterator[str]:
    for key in schema:
        if key not in KEYWORDS and key not in NOTES and (not key.startswith("x-") or key == "x-guidance"):
            yield f"{key[:80]} is not supported"
    if schema.get("format") == "unknown":
        yield "format 'unknown' is not supported"


def _sizes(schema: Schema) -> Iterator[str]:
    named = schema.get("properties")
    if isinstance(named, dict) and isinstance(required := schema.get("required", []), list):
        optional = len(named) - len([name for name in required if isinstance(name, str) and name in named])
        if optional > MOST_OPTIONAL:
            yield f"properties: {optional} are optional; at most {MOST_OPTIONAL} of an object may be"
    patterns = schema.get("patternProperties")
    if isinstance(patterns, dict) and len(patterns) > MOST_PATTERNS:
        yield f"patternProperties has {len(patterns)} patterns; at most {MOST_PATTERNS} are supported"


def _numbers(schema: Schema) -> Iterator[str]:
    for key in ("enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
        if any(abs(number) > MOST_WHOLE for number in _whole(schema.get(key))):
            yield f"{key} is not supported beyond {MOST_WHOLE}: float64 does not tell such numbers apart"
    step = _multiple(schema)
    if step is not None and step <= 0:
        yield "multipleOf must be above 0"
    if schema.get("type") != "integer" and _leaks(schema):
        yield "exclusiveMinimum and exclusiveMaximum are not supported for a range that lies between two neighbouring whole numbers"


def _leaks(schema: Schema) -> bool:
    """Whether llguidance 1.9.1 would allow the excluded end: a whole number, when the other end is a fraction less than 1 away."""
    low, above = _end(schema, "minimum", "exclusiveMinimum")
    high, below = _end(schema, "maximum", "exclusiveMaximum")
    if low is None or high is None or abs(high - low) >= 1:
        return False
    return (above and low % 1 == 0) or (below and high % 1 == 0)


def _end(schema: Schema, plain: str, exclusive: str) -> tuple[Decimal | None, bool]:
    """One end of a range, and whether it is excluded: by a number of its own, or as in draft 4 by True beside the plain one."""
    own, beside = _number(schema.get(exclusive)), _number(schema.get(plain))
    return (beside, schema.get(exclusive) is True) if own is None else (own, True)


def _number(value: object) -> Decimal | None:
    found = Decimal(str(value)) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return found if found is not None and found.is_finite() else None


def _whole(value: object) -> Iterator[int]:
    """The whole numbers in a JSON value."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, int):
            yield one
        elif isinstance(one, list | dict):
            waiting += one.values() if isinstance(one, dict) else one


def _digits(number: Decimal) -> int:
    """As a whole number: 0.25 is 25, and 20 is 20."""
    _, digits, exponent = number.normalize().as_tuple()
    assert isinstance(exponent, int)
    return max(1, int("".join(map(str, digits))) * 10 ** min(max(0, exponent), 20))


def _references(places: dict[str, Schema]) -> Iterator[str]:
    targets = {one["$ref"] for one in places.values() if isinstance(one.get("$ref"), str)}
    for target in targets:
        if target.removeprefix("#") not in places or not target.startswith("#"):
            yield f"$ref {target[:80]!r} is not supported: only '#' and '#/...', to a schema within this one"
    depth = max(pointer.count("/") for pointer in places) + 1
    if (len(targets) + 1) * depth > MOST_CHAINED:
        yield f"the schema is nested {depth} deep and refers to {len(targets)} places; the product may be {MOST_CHAINED}"


def _intersections(places: dict[str, Schema]) -> Iterator[str]:
    steps = [_digits(step) for step in {_number(one.get("multipleOf")) for one in places.values()} if step is not None]
    joined = any(_joins(one) for one in places.values())
    if (prod(steps) if joined else sum(steps)) > MOST_MULTIPLE:
        yield f"multipleOf is not supported beyond {MOST_MULTIPLE}, the decimal point not counted; several count together"
    found = {str(one[key]) for one in places.values() for key in ("pattern", "format") if key in one}
    if joined and len(found) > MOST_JOINED:
        yield f"pattern and format are {len(found)} beside allOf, or beside $ref or anyOf with more keywords; at most {MOST_JOINED} may be"


def _joins(schema: Schema) -> bool:
    beside = [key for key in schema if key in KEYWORDS and key not in ("$defs", "definitions")]
    return "allOf" in schema or (len(beside) > 1 and any(key in schema for key in JOINED))
