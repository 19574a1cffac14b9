"""Finds what is wrong with a JSON schema before anything is sampled by it.

    schema_problem(schema: dict[str, Any]) -> str | None          why the schema cannot be enforced, as a sentence for the client, or None
    combined_problem(schemas: Sequence[dict]) -> str | None       why these schemas cannot be enforced together, or None
    bare_problem(schema)                                          the same in less time, without the place of what llguidance refuses
    own_problem(schema), whole_problem(schema), endless_parts(schema)    in parts, for `app.forms.relaxed`

Refuses by name what llguidance would ignore, what would keep it busy for seconds, and what would make it fail in the middle of an answer
(docs/structured.md has the measurements). Knows no model, no tokenizer and no request.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from decimal import Decimal
from itertools import chain
from math import prod

from app.forms.grammar import (
    KEYWORDS,
    LEFT_OUT,
    Schema,
    child_schemas,
    is_intersected,
    json_grammar,
    pointer_token,
    simplified,
    subschemas,
    with_plain_references,
)
from app.forms.patterns import regex_size, uses_rust_set_syntax
from app.forms.places import MAX_DEPTH, depth_of, with_place
from app.forms.trial import grammar_problem

ANNOTATIONS = frozenset(  # by the standard they restrict nothing
    "title description default examples example deprecated readOnly writeOnly $schema $id $anchor $comment contentEncoding "
    "contentMediaType contentSchema".split()
).union(LEFT_OUT)
MAX_SUBSCHEMAS = 2000
MAX_NESTING = 1000  # levels, those reached through references included: at 2,000 llguidance 1.9.1 overflows its stack and kills the process
MAX_OPTIONAL_PROPERTIES = 400  # of one object: beyond 500 llguidance's parser gives up at the first token
MAX_PATTERN_PROPERTIES = 16  # of one object: llguidance compares each with each
MAX_INTERSECTED_PATTERNS = 8  # patterns and formats where schemas are intersected: exponential
MAX_MULTIPLE_OF = 10_000  # llguidance's lexer has one state for each remainder
MAX_MIN_ITEMS = 5000  # at 20,000 llguidance's parser gives up
MAX_MIN_LENGTH = 20_000  # characters: llguidance's lexer gives up at 27,777
MAX_PATTERN_CHARS = 10_000
MAX_PATTERN_ATOMS = 100_000  # with repetitions written out: at 1,000,000 llguidance's lexer gives up
MAX_VARIABLE_REPEATS = 2000  # of several repetitions {m,n}: from 4,000 on llguidance's lexer may give up
MAX_TEXT_CHARS = 4000  # of one that an answer has to repeat, also of a choice: at 80,000 each of its tokens takes 70 ms
MAX_TEXTS_CHARS = 65_536  # of them all, one for each enum
MAX_NUMBER = 2**53  # beyond it llguidance 1.9.1 writes another number, because it counts in float64


def combined_problem(schemas: Sequence[Schema]) -> str | None:
    """Why these schemas cannot be enforced at once, although each of them could be; None if they can."""
    parts = [inner for schema in schemas for _, inner in subschemas(schema)]
    if len(parts) > MAX_SUBSCHEMAS:
        return f"the schemas have {len(parts)} subschemas together; at most {MAX_SUBSCHEMAS} are supported"
    if sum(_digits(step) for step in map(_multiple_of, parts) if step is not None) > MAX_MULTIPLE_OF:
        return f"the values of multipleOf in all schemas add up to more than {MAX_MULTIPLE_OF}, which is not supported"
    return None


def _multiple_of(schema: Schema) -> Decimal | None:
    return _number(schema.get("multipleOf"))


def schema_problem(schema: Schema) -> str | None:
    own = _own_problem_of_all(schema)
    refused = grammar_problem(json_grammar(schema)) if own is None else None
    return own if refused is None else with_place(refused, with_plain_references(schema))


def bare_problem(schema: Schema) -> str | None:
    own = _own_problem_of_all(schema)
    return grammar_problem(json_grammar(schema)) if own is None else own


def _own_problem_of_all(schema: Schema) -> str | None:
    depth = depth_of(schema)
    if depth > MAX_DEPTH:
        return f"the schema is nested {depth} deep; at most {MAX_DEPTH} levels are supported"
    return next(_problems(simplified(schema)), None)


def _problems(schema: Schema) -> Iterator[str]:
    """Sentences, in the order in which the schema is read."""
    parts = dict(subschemas(schema))
    if len(parts) > MAX_SUBSCHEMAS:
        yield f"the schema has {len(parts)} subschemas; at most {MAX_SUBSCHEMAS} are supported"
    for pointer, inner in parts.items():
        if (problem := own_problem(inner)) is not None:
            yield f"{problem} (at #{pointer})"
    yield from _length_problems(parts)
    yield from _reference_problems(parts)
    yield from _intersection_problems(parts)
    yield from (f"a required part contains itself, so an answer would never end (at #{pointer})" for pointer in endless_parts(schema))


def own_problem(schema: Schema) -> str | None:
    """What is wrong with the keywords of one schema, whatever the schemas inside it are."""
    return next(chain(_keyword_problems(schema), _size_problems(schema), _number_problems(schema), _pattern_problems(schema)), None)


def whole_problem(schema: Schema) -> str | None:
    """What is wrong with the parts of a schema together."""
    parts = dict(subschemas(schema))
    return next(chain(_length_problems(parts), _reference_problems(parts), _intersection_problems(parts)), None)


def endless_parts(schema: Schema) -> list[str]:
    """The pointers of parts that an answer can enter and never end."""
    parts = dict(subschemas(schema))
    return sorted(_reachable(parts) - _finite(parts))


def _keyword_problems(schema: Schema) -> Iterator[str]:
    for key in schema:
        if key not in KEYWORDS and key not in ANNOTATIONS and (not key.startswith("x-") or key == "x-guidance"):
            yield f"{key[:80]} is not supported"
    if "prefixItems" in schema and "additionalItems" in schema:
        yield "additionalItems is not supported beside prefixItems; use items instead"
    if schema.get("format") == "unknown":
        yield "format 'unknown' is not supported"


def _size_problems(schema: Schema) -> Iterator[str]:
    properties = schema.get("properties")
    if isinstance(properties, dict) and isinstance(required := schema.get("required", []), list):
        optional = len(properties) - len([name for name in required if isinstance(name, str) and name in properties])
        if optional > MAX_OPTIONAL_PROPERTIES:
            yield f"{optional} properties of an object are optional; at most {MAX_OPTIONAL_PROPERTIES} are supported"
    for key, limit in (("minItems", MAX_MIN_ITEMS), ("minProperties", MAX_MIN_ITEMS), ("minLength", MAX_MIN_LENGTH)):
        if (minimum := _number(schema.get(key))) is not None and minimum > limit:
            yield f"{key} above {limit} is not supported"
    for key in ("const", "enum", "properties"):
        if (longest := max(_text_lengths(schema, key), default=0)) > MAX_TEXT_CHARS:
            kind = "a name in properties" if key == "properties" else f"{key} with a value"
            yield f"{kind} of {longest:,} characters is not supported; at most {MAX_TEXT_CHARS:,} are"
    patterns = schema.get("patternProperties")
    if isinstance(patterns, dict) and len(patterns) > MAX_PATTERN_PROPERTIES:
        yield f"patternProperties has {len(patterns)} patterns; at most {MAX_PATTERN_PROPERTIES} are supported"


def _text_lengths(schema: Schema, key: str) -> list[int]:
    """Characters of each text that this keyword has in an answer."""
    value = schema.get(key)
    if key == "const":
        return [len(json.dumps(value, ensure_ascii=False))] if key in schema else []
    texts = value if isinstance(value, list if key == "enum" else dict) else []
    return [len(json.dumps(text, ensure_ascii=False)) for text in texts]


def _length_problems(parts: dict[str, Schema]) -> Iterator[str]:
    """An answer that has to be long is tokenized from where it is to its end with each token."""
    ways = [max(_text_lengths(inner, "enum"), default=0) + sum(_text_lengths(inner, "const")) for inner in parts.values()]
    names = [sum(_text_lengths(inner, "properties")) for inner in parts.values()]
    if (size := sum(ways) + sum(names)) > MAX_TEXTS_CHARS:
        yield f"const, enum and the names of properties have {size:,} characters; at most {MAX_TEXTS_CHARS:,} are supported"


def _number_problems(schema: Schema) -> Iterator[str]:
    for key in ("enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
        if any(abs(number) > MAX_NUMBER for number in _integers(schema.get(key))):
            yield f"{key} holds a whole number beyond {MAX_NUMBER}, which is not supported: float64 does not tell such numbers apart"
    step = _multiple_of(schema)
    if step is not None and step <= 0:
        yield "multipleOf must be above 0"
    if schema.get("type") != "integer" and _allows_excluded_end(schema):
        yield "exclusiveMinimum and exclusiveMaximum are not supported for a range between two neighbouring whole numbers"


def _allows_excluded_end(schema: Schema) -> bool:
    """Whether llguidance 1.9.1 would allow the excluded end of the range: a whole number, when the other end is less than 1 away."""
    low, low_excluded = _range_end(schema, "minimum", "exclusiveMinimum")
    high, high_excluded = _range_end(schema, "maximum", "exclusiveMaximum")
    if low is None or high is None or abs(high - low) >= 1:
        return False
    return (low_excluded and low == low.to_integral_value()) or (high_excluded and high == high.to_integral_value())


def _range_end(schema: Schema, inclusive_key: str, exclusive_key: str) -> tuple[Decimal | None, bool]:
    """One end of a range and whether it is excluded. `exclusive_key` holds a number, or in draft 4 True beside the inclusive number."""
    exclusive, inclusive = _number(schema.get(exclusive_key)), _number(schema.get(inclusive_key))
    return (inclusive, schema.get(exclusive_key) is True) if exclusive is None else (exclusive, True)


def _number(value: object) -> Decimal | None:
    number = Decimal(str(value)) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return number if number is not None and number.is_finite() else None


def _integers(value: object) -> Iterator[int]:
    """All whole numbers in a JSON value."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, int):
            yield inner
        elif isinstance(inner, list | dict):
            waiting += inner.values() if isinstance(inner, dict) else inner


def _digits(number: Decimal) -> int:
    """The number without its decimal point: 0.25 is 25, and 20 is 20."""
    _, digits, exponent = number.normalize().as_tuple()
    assert isinstance(exponent, int)
    return max(1, int("".join(map(str, digits))) * 10 ** min(max(0, exponent), 20))


def _reference_problems(parts: dict[str, Schema]) -> Iterator[str]:
    targets = {inner["$ref"] for inner in parts.values() if isinstance(inner.get("$ref"), str)}
    for target in targets:
        if target.removeprefix("#") not in parts or not target.startswith("#"):
            yield f"$ref {target[:80]!r} is not supported: it must be '#', or '#/...' with the place of a schema in this one"
    depth = max(pointer.count("/") for pointer in parts) + 1
    if (len(targets) + 1) * depth > MAX_NESTING:
        yield f"the schema is nested {depth} deep and refers to {len(targets)} places; the product of the two may be {MAX_NESTING} at most"


def _intersection_problems(parts: dict[str, Schema]) -> Iterator[str]:
    steps = [_digits(step) for step in {_multiple_of(inner) for inner in parts.values()} if step is not None]
    intersected = any(is_intersected(inner) for inner in parts.values())
    if (prod(steps) if intersected else sum(steps)) > MAX_MULTIPLE_OF:
        yield f"multipleOf above {MAX_MULTIPLE_OF} is not supported; the decimal point is not counted, and several values count together"
    patterns = {str(inner[key]) for inner in parts.values() for key in ("pattern", "format") if key in inner}
    if intersected and len(patterns) > MAX_INTERSECTED_PATTERNS:
        yield (
            f"the schema has {len(patterns)} values of pattern and format; at most {MAX_INTERSECTED_PATTERNS} are supported "
            "together with allOf, or with $ref, anyOf or oneOf beside other keywords"
        )


def _pattern_problems(schema: Schema) -> Iterator[str]:
    by_pattern = schema.get("patternProperties")
    for key, patterns in (("pattern", [schema.get("pattern")]), ("patternProperties", by_pattern if isinstance(by_pattern, dict) else ())):
        for pattern in (text for text in patterns if isinstance(text, str)):
            if len(pattern) > MAX_PATTERN_CHARS:
                yield f"{key} has {len(pattern):,} characters; at most {MAX_PATTERN_CHARS:,} are supported"
                return
            if uses_rust_set_syntax(pattern):
                yield f"{key}: '[', '&&', '--' and '~~' within a set of characters must be escaped"
            size = regex_size(pattern)
            if size.atoms > MAX_PATTERN_ATOMS:
                yield f"{key} has {size.atoms:,} characters with repetitions written out; at most {MAX_PATTERN_ATOMS:,} are supported"
            elif size.several_variable and size.variable_repeats > MAX_VARIABLE_REPEATS:
                yield (
                    f"{key} has several repetitions {{m,n}}, which repeat up to {size.variable_repeats:,} times together; "
                    f"at most {MAX_VARIABLE_REPEATS:,} are supported"
                )


def _reachable(parts: dict[str, Schema]) -> Set[str]:
    """The pointers that some answer can enter. A model that enters a part which never ends could not get out."""
    reachable: set[str] = set()
    waiting = [""]
    while waiting:
        pointer = waiting.pop()
        if pointer in parts and pointer not in reachable:
            reachable.add(pointer)
            schema = parts[pointer]
            waiting += [f"{pointer}/{step}" for step, _ in child_schemas(schema) if not step.startswith(("$defs/", "definitions/"))]
            waiting += [str(schema["$ref"]).removeprefix("#")] if "$ref" in schema else []
    return reachable


def _finite(parts: dict[str, Schema]) -> Set[str]:
    """The pointers whose schema some finite value can conform to: the least fixed point of `_has_finite_value`."""
    finite: set[str] = set()
    undecided = list(reversed(parts))  # inner schemas before those around them
    size_before = -1
    while len(finite) > size_before:
        size_before = len(finite)
        for pointer in undecided:
            if _has_finite_value(pointer, parts, finite):
                finite.add(pointer)
        undecided = [pointer for pointer in undecided if pointer not in finite]
    return finite


def _has_finite_value(pointer: str, parts: dict[str, Schema], finite: Set[str]) -> bool:
    """Whether a finite value conforms to the schema, given which of its parts are known to be finite."""
    schema = parts[pointer]

    def is_finite(*steps: object) -> bool:
        inner = "/".join([pointer, *map(str, steps)])
        return inner in finite or inner not in parts

    def holds(key: str, quantifier: Callable[[Iterable[bool]], bool]) -> bool:
        schemas = schema.get(key)
        return not isinstance(schemas, list) or quantifier(is_finite(key, index) for index in range(len(schemas)))

    if "enum" in schema or "const" in schema:
        return True
    target = str(schema.get("$ref", "#")).removeprefix("#")
    target_is_finite = "$ref" not in schema or target in finite or target not in parts
    return target_is_finite and holds("anyOf", any) and holds("oneOf", any) and holds("allOf", all) and _type_is_finite(schema, is_finite)


def _type_is_finite(schema: Schema, is_finite: Callable[..., bool]) -> bool:
    types = schema.get("type", "null")
    types = [name for name in (types if isinstance(types, list) else [types]) if isinstance(name, str)]
    checks = {"array": _array_is_finite, "object": _object_is_finite}
    return not types or any(name not in checks or checks[name](schema, is_finite) for name in types)


def _array_is_finite(schema: Schema, is_finite: Callable[..., bool]) -> bool:
    min_items = int(_number(schema.get("minItems")) or 0)
    prefix_key = "items" if isinstance(schema.get("items"), list) else "prefixItems"
    rest_key = "additionalItems" if prefix_key == "items" else "items"
    prefix_length = len(prefix) if isinstance(prefix := schema.get(prefix_key), list) else 0
    prefix_is_finite = all(is_finite(prefix_key, index) for index in range(min(min_items, prefix_length)))
    return prefix_is_finite and (min_items <= prefix_length or is_finite(rest_key))


def _object_is_finite(schema: Schema, is_finite: Callable[..., bool]) -> bool:
    properties, required = schema.get("properties"), schema.get("required")
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    unnamed = () if "patternProperties" in schema else ("additionalProperties",)
    paths = [("properties", pointer_token(name)) if isinstance(properties, dict) and name in properties else unnamed for name in names]
    return all(is_finite(*path) for path in paths if path)
