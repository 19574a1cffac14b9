"""What is wrong with a JSON schema, before anything is sampled by it.

    fault(schema: dict[str, Any]) -> str | None        why answers cannot be held to it, as a sentence for the client; None if they can
    crowded(schemas: Sequence[dict]) -> str | None     why so many cannot be held to at once

What llguidance would leave out of account is refused by name, and so is what would keep it busy for seconds or fail it in the middle of an
answer (docs/structured.md has the measurements). Knows no model, no tokenizer and no request.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from decimal import Decimal
from functools import cache
from itertools import chain
from math import prod

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from app.forms.grammar import KEYWORDS, Schema, escaped, inside, joins, json_grammar, walk
from app.forms.patterns import foreign, measured

NOTES = frozenset(  # by the standard they decide nothing
    "title description default examples example deprecated readOnly writeOnly $schema $id $anchor $comment contentEncoding "
    "contentMediaType contentSchema discriminator".split()
)
MOST_PLACES = 2000
MOST_CHAINED = 1000  # nested schemas, those behind references counted: at 2,000 llguidance 1.9.1 runs out of stack and ends the process
MOST_OPTIONAL = 400  # of an object: beyond 500 its parser gives up at the first token
MOST_PATTERNS = 16  # names by pattern: each is compared with each
MOST_JOINED = 8  # patterns and formats where schemas are intersected: exponential
MOST_MULTIPLE = 10_000  # one state of the lexer for each remainder
MOST_ITEMS = 5000  # that must be there: at 20,000 its parser gives up
MOST_LETTERS = 20_000  # that must be there: its lexer gives up at 27,777
MOST_PATTERN = 10_000  # characters
MOST_THINGS = 100_000  # in a row, of a pattern: at 1,000,000 its lexer gives up
MOST_VARYING = 2000  # of them in several repetitions whose number may vary: from 4,000 on its lexer may give up
MOST_WHOLE = 2**53  # beyond it llguidance 1.9.1 writes another number: it counts in float64

BEGINNING = 256  # bytes of an answer that are tried
EAGER = (*b'{["]},', *range(48, 58), *range(97, 123), *range(257))  # in this order: into what opens, out of what may be closed


def crowded(schemas: Sequence[Schema]) -> str | None:
    """Why so many schemas cannot be enforced at once, each of which could be."""
    places = [one for schema in schemas for _, one in walk(schema)]
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
    _begin(matcher)
    return _sentence(matcher.get_error()) or None


def _begin(matcher: LLMatcher) -> None:
    """The first bytes of an answer, into whatever opens: some grammars fail only there."""
    for _ in range(BEGINNING):
        if matcher.is_error() or matcher.is_stopped():
            return
        mask = matcher.compute_bitmask()
        if not matcher.is_error():
            matcher.consume_token(next(byte for byte in EAGER if mask[byte >> 3] >> (byte & 7) & 1))


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
    places = dict(walk(schema))
    if len(places) > MOST_PLACES:
        yield f"the schema has {len(places)} parts; at most {MOST_PLACES} are supported"
    for pointer, inner in places.items():
        for reason in chain(_unknown(inner), _sizes(inner), _numbers(inner), _patterns(inner)):
            yield f"{reason} (at #{pointer})"
    yield from _references(places)
    yield from _intersections(places)
    yield from (f"what it requires never ends (at #{pointer})" for pointer in sorted(_entered(places) - _ending(places)))


def _unknown(schema: Schema) -> Iterator[str]:
    for key in schema:
        if key not in KEYWORDS and key not in NOTES and (not key.startswith("x-") or key == "x-guidance"):
            yield f"{key[:80]} is not supported"
    if "prefixItems" in schema and "additionalItems" in schema:
        yield "additionalItems is not supported beside prefixItems: items is its name there"
    if schema.get("format") == "unknown":
        yield "format 'unknown' is not supported"


def _sizes(schema: Schema) -> Iterator[str]:
    named = schema.get("properties")
    if isinstance(named, dict) and isinstance(required := schema.get("required", []), list):
        optional = len(named) - len([name for name in required if isinstance(name, str) and name in named])
        if optional > MOST_OPTIONAL:
            yield f"properties: {optional} are optional; at most {MOST_OPTIONAL} of an object may be"
    for key, most in (("minItems", MOST_ITEMS), ("minProperties", MOST_ITEMS), ("minLength", MOST_LETTERS)):
        if (least := _number(schema.get(key))) is not None and least > most:
            yield f"{key} is not supported beyond {most}"
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
    return (above and low == low.to_integral_value()) or (below and high == high.to_integral_value())


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
    joined = any(joins(one) for one in places.values())
    if (prod(steps) if joined else sum(steps)) > MOST_MULTIPLE:
        yield f"multipleOf is not supported beyond {MOST_MULTIPLE}, the decimal point not counted; several count together"
    found = {str(one[key]) for one in places.values() for key in ("pattern", "format") if key in one}
    if joined and len(found) > MOST_JOINED:
        yield f"pattern and format are {len(found)} beside allOf, or beside $ref or anyOf with more keywords; at most {MOST_JOINED} may be"


def _patterns(schema: Schema) -> Iterator[str]:
    named = schema.get("patternProperties")
    for key, patterns in (("pattern", [schema.get("pattern")]), ("patternProperties", named if isinstance(named, dict) else ())):
        for pattern in (one for one in patterns if isinstance(one, str)):
            if len(pattern) > MOST_PATTERN:
                yield f"{key} has {len(pattern):,} characters; at most {MOST_PATTERN:,} are supported"
                return
            if foreign(pattern):
                yield f"{key}: '[', '&&', '--' and '~~' within a set of characters are supported escaped only"
            whole = measured(pattern)
            if whole.things > MOST_THINGS:
                yield f"{key} repeats up to {whole.things:,} things; at most {MOST_THINGS:,} are supported"
            elif whole.several and whole.varying > MOST_VARYING:
                yield f"{key} has repetitions {{m,n}} that come to {whole.varying:,} together; at most {MOST_VARYING:,} are supported"


def _entered(places: dict[str, Schema]) -> Set[str]:
    """The places of which some answer has a part. A model that got into one that never ends could not get out."""
    entered: set[str] = set()
    waiting = [""]
    while waiting:
        pointer = waiting.pop()
        if pointer in places and pointer not in entered:
            entered.add(pointer)
            schema = places[pointer]
            waiting += [f"{pointer}/{step}" for step, _ in inside(schema) if not step.startswith(("$defs/", "definitions/"))]
            waiting += [str(schema["$ref"]).removeprefix("#")] if "$ref" in schema else []
    return entered


def _ending(places: dict[str, Schema]) -> Set[str]:
    """The places that something finite can keep to, as each by itself says: the least fixed point."""
    ending: set[str] = set()
    left = list(reversed(places))  # inner ones before those around them
    before = -1
    while len(ending) > before:
        before = len(ending)
        for pointer in left:
            if _ends(pointer, places, ending):
                ending.add(pointer)
        left = [pointer for pointer in left if pointer not in ending]
    return ending


def _ends(pointer: str, places: dict[str, Schema], ending: Set[str]) -> bool:
    """Whether something does whose parts are in `ending`."""
    schema = places[pointer]

    def ends(*steps: object) -> bool:
        inner = "/".join([pointer, *map(str, steps)])
        return inner in ending or inner not in places

    def some(key: str, enough: Callable[[Iterable[bool]], bool]) -> bool:
        return not isinstance(listed := schema.get(key), list) or enough(ends(key, index) for index in range(len(listed)))

    if "enum" in schema or "const" in schema:
        return True
    target = str(schema.get("$ref", "#")).removeprefix("#")
    referred = "$ref" not in schema or target in ending or target not in places
    return referred and some("anyOf", any) and some("oneOf", any) and some("allOf", all) and _type_ends(schema, ends)


def _type_ends(schema: Schema, ends: Callable[..., bool]) -> bool:
    types = schema.get("type", "null")
    types = [one for one in (types if isinstance(types, list) else [types]) if isinstance(one, str)]
    ways = {"array": _array_ends, "object": _object_ends}
    return not types or any(one not in ways or ways[one](schema, ends) for one in types)


def _array_ends(schema: Schema, ends: Callable[..., bool]) -> bool:
    least = int(_number(schema.get("minItems")) or 0)
    first = "items" if isinstance(schema.get("items"), list) else "prefixItems"
    others = "additionalItems" if first == "items" else "items"
    given = len(listed) if isinstance(listed := schema.get(first), list) else 0
    return all(ends(first, index) for index in range(min(least, given))) and (least <= given or ends(others))


def _object_ends(schema: Schema, ends: Callable[..., bool]) -> bool:
    named, required = schema.get("properties"), schema.get("required")
    needed = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    others = () if "patternProperties" in schema else ("additionalProperties",)
    inside = [("properties", escaped(name)) if isinstance(named, dict) and name in named else others for name in needed]
    return all(ends(*steps) for steps in inside if steps)
