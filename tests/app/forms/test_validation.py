"""Schemas that cannot be enforced are refused by name and at once, before llguidance ignores them, hangs on them or fails mid-answer."""

import json
import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from app.forms.grammar import Schema, json_grammar
from app.forms.patterns import regex_size, uses_rust_set_syntax
from app.forms.trial import byte_tokenizer
from app.forms.validation import MAX_MIN_ITEMS, MAX_MIN_LENGTH, MAX_OPTIONAL_PROPERTIES, schema_problem


def chained(count: int) -> Schema:
    """Lists nested `count` deep, each reached by a reference."""
    schemas = {f"a{place}": {"type": "array", "items": {"$ref": f"#/$defs/a{place + 1}"}} for place in range(count)}
    return {"$defs": {**schemas, f"a{count}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def nested(count: int) -> Schema:
    schema: Schema = {"type": "string"}
    for _ in range(count):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not "),
        ({"if": {}, "then": {}}, "if "),
        (nested(900), "at most 128 levels"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"contains": {}}, "contains"),
        ({"propertyNames": {"maxLength": 3}}, "propertyNames"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"$dynamicRef": "#a"}, "$dynamicRef"),
        ({"type": "object", "properties": {"a": True, "b": True, "c": True}, "minProperties": 2}, "maxProperties"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "string", "format": "iri"}, "iri"),
        ({"type": "string", "format": "unknown"}, "format 'unknown'"),
        ({"type": "string", "pattern": "(?=a)b"}, "pattern: look-around"),
        ({"type": "string", "maxlength": 3}, "maxlength"),
        ({"type": "string", "nullable": True}, "nullable"),
        ({"extends": {}}, "extends"),
        ({"divisibleBy": 3}, "divisibleBy"),
        ({"x-guidance": {"lenient": True}, "format": "anything"}, "x-guidance"),
    ],
)
def test_a_keyword_that_is_ignored_or_unsupported_is_named(schema: Schema, says: str) -> None:
    for nested in (schema, {"type": "array", "items": schema}, {"$defs": {"a": schema}, "$ref": "#/$defs/a"}):
        assert says in (schema_problem(nested) or "")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "https://example.com/a.json"}, "https://example.com/a.json"),
        ({"$ref": "#/nowhere"}, "#/nowhere"),
        ({"default": {"uniqueItems": True}, "$ref": "#/default"}, "#/default"),
        ({"type": "any"}, "any"),
        ({"enum": []}, "empty"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "'a'"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "exclusiveMinimum"),
        ({"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 0.5}, "exclusiveMinimum"),
        ({"type": "number", "minimum": -4.5, "exclusiveMaximum": -4}, "exclusiveMaximum"),
        ({"type": "number", "exclusiveMinimum": 1e300, "maximum": 1e300}, "exclusiveMinimum"),
        ({"type": {}}, "type"),
        ({"type": "array", "prefixItems": [{"const": 1}], "additionalItems": False}, "additionalItems"),
        ({"type": "string", "pattern": "^[a-z&&[aeiou]]$"}, "'&&'"),
        ({"type": "string", "pattern": "^[[a]b]$"}, "within a set"),
    ],
)
def test_a_schema_that_no_answer_can_conform_to_is_refused(schema: Schema, says: str) -> None:
    assert says in (schema_problem(schema) or "")


def test_the_problem_names_the_place_in_the_schema() -> None:
    schema = {"type": "object", "properties": {"a/b": {"type": "array", "items": {"anyOf": [{}, {"not": {}}]}}}}
    assert schema_problem(schema) == "not is not supported (at #/properties/a~1b/items/anyOf/1)"


PATTERNS = [f"(a|b)*a(a|b){{{count}}}" for count in range(12, 40)]
ITSELF: Schema = {"$ref": "#"}
LISTS: Schema = {"type": "array", "items": ITSELF, "minItems": 1}
HOSTILE: dict[str, Schema] = {
    "chain": chained(900),  # 2,000 would kill the process
    "many": {"anyOf": [{"type": "string"}] * 5000},
    "optional": {"type": "object", "properties": {f"p{place}": {} for place in range(MAX_OPTIONAL_PROPERTIES + 1)}},
    "names": {"type": "object", "patternProperties": {f"^a{place}_": {} for place in range(40)}},
    "joined": {"allOf": [{"type": "string", "pattern": pattern} for pattern in PATTERNS]},
    "chained patterns": {
        "$defs": {f"a{n}": {"$ref": f"#/$defs/a{n + 1}", "pattern": p} for n, p in enumerate(PATTERNS)} | {f"a{len(PATTERNS)}": {}},
        "$ref": "#/$defs/a0",
    },
    "multiple": {"type": "integer", "multipleOf": 99999989},
    "multiples": {"anyOf": [{"type": "integer", "multipleOf": 9900 + place} for place in range(99)]},
    "joined multiples": {"allOf": [{"type": "integer", "multipleOf": place} for place in (997, 991)]},
    "deep": json.loads('{"items":' * 300 + "{}" + "}" * 300),
    "product": {"allOf": [{"anyOf": [{"required": [f"a{place}"]}, {"required": [f"b{place}"]}]} for place in range(18)]},
    "huge": {"type": "number", "minimum": 10**400},
    "repeated": {"type": "string", "pattern": "^((a{1000}){1000}){1000}$"},
    "repeated at will": {"type": "string", "pattern": "^(a{1,100}){1,100}$"},
    "repeated in a row": {"type": "string", "pattern": "a{0,1000}" * 20},
    "sets": {"type": "string", "pattern": "[" * 100_000},
    "open sets": {"type": "string", "pattern": "[" * 9_999 + "\\"},
    "open classes": {"type": "string", "pattern": "\\p{" * 3_000},
    "long": {"type": "string", "minLength": 10**6},
    "full": {"type": "array", "items": {"const": "a"}, "minItems": 10**5},
    "full of names": {"type": "object", "minProperties": 10**5},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_refused_at_once(name: str) -> None:
    began = time.monotonic()
    assert schema_problem(HOSTILE[name])
    assert time.monotonic() - began < 30  # not a measure of speed: unbounded, some of these do not end


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a{1,40}){1,50}$"},
        {"type": "string", "pattern": "^[a-z]{1,90000}$"},
        {"type": "string", "minLength": MAX_MIN_LENGTH},
        {"type": "array", "minItems": MAX_MIN_ITEMS, "items": {"type": "array", "maxItems": 10**9}},
        {"type": "object", "properties": {f"p{place}": {"type": "integer"} for place in range(MAX_OPTIONAL_PROPERTIES)}},
        {"type": "object", "patternProperties": {f"^(a|b)*a(a|b){{14}}c{place}$": {} for place in range(16)}},
        chained(200),
        {"enum": [f"value {place}" for place in range(10_000)]},
    ],
)
def test_a_large_schema_is_accepted_at_once(schema: Schema) -> None:
    began = time.monotonic()
    assert schema_problem(schema) is None
    assert time.monotonic() - began < 30  # not a measure of speed: unbounded, some of these do not end


@pytest.mark.parametrize(
    "schema",
    [
        {"const": 2**53 + 1},
        {"enum": [1, {"a": [-(2**60)]}]},
        {"type": "integer", "minimum": 10**25},
        {"type": "object", "properties": {"a": {"type": "integer", "exclusiveMaximum": 2**54}}},
    ],
)
def test_numbers_that_float64_does_not_tell_apart_are_refused(schema: Schema) -> None:
    assert "float64" in (schema_problem(schema) or "")
    assert schema_problem({"enum": [2**53, -(2**53), 0.5, True]}) is None


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"const": "字" * 3999}, "const with a value of 4,001 characters"),
        ({"type": "array", "items": {"enum": ["a", ["b" * 4000]]}}, "enum with a value of 4,004 characters"),
        ({"type": "object", "properties": {"n" * 4000: {}}}, "a name in properties of 4,002 characters"),
        ({"type": "array", "prefixItems": [{"const": "c" * 3900}] * 17}, "const, enum and the names of properties have 66,334 characters"),
    ],
)
def test_a_text_that_an_answer_has_to_repeat_is_bounded(schema: Schema, says: str) -> None:
    assert says in str(schema_problem(schema))
    assert schema_problem({"const": "字" * 3998}) is None


@pytest.mark.parametrize("step", [0, -1, -0.5])
def test_multiple_of_zero_or_less_is_refused(step: float) -> None:
    assert "above 0" in (schema_problem({"type": "number", "multipleOf": step}) or "")


@pytest.mark.parametrize(
    "schema",
    [
        ITSELF,
        LISTS,
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "object", "properties": {"a": ITSELF}, "required": ["a"]},
        {"type": "object", "additionalProperties": ITSELF, "required": ["a"]},
        {"anyOf": [LISTS, {"type": "array", "prefixItems": [ITSELF], "minItems": 1}]},
        {"allOf": [LISTS, {"type": "array"}]},
        {"type": ["array", "object"], "items": ITSELF, "minItems": 1, "properties": {"a": ITSELF}, "required": ["a"]},
        {
            "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}},
            "anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}],
        },
    ],
)
def test_a_schema_without_a_finite_answer_is_refused(schema: Schema) -> None:
    assert "never end (at #" in (schema_problem(schema) or "")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": ITSELF},
        {"type": "object", "properties": {"a": ITSELF}},
        {"type": ["array", "null"], "items": ITSELF, "minItems": 1},
        {"anyOf": [LISTS, {"type": "null"}]},
        {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}}, "type": "null"},  # no answer enters $defs/a
        {"enum": [1], "type": "array", "items": ITSELF, "minItems": 1} | {"type": "integer"},
    ],
)
def test_a_schema_with_a_finite_answer_is_accepted(schema: Schema) -> None:
    assert schema_problem(schema) is None


REFERRING = st.deferred(
    lambda: (
        st.sampled_from([ITSELF, {"type": "null"}, {"$ref": "#/$defs/a"}, {"type": "integer"}])
        | st.builds(
            lambda inner, min_items: {"type": "array", "items": inner, "minItems": min_items, "maxItems": 2}, REFERRING, st.integers(0, 1)
        )
        | st.builds(
            lambda inner, needed: {"type": "object", "properties": {"k": inner}, "required": ["k"][:needed]}, REFERRING, st.integers(0, 1)
        )
        | st.builds(lambda some: {"anyOf": some}, st.lists(REFERRING, min_size=1, max_size=2))
    )
)


@settings(max_examples=80, deadline=None)
@given(root=REFERRING, other=REFERRING)
def test_an_accepted_schema_never_traps_an_answer(root: Schema, other: Schema) -> None:
    """However deep an answer has nested, one of 40 random walks that prefer closing brackets completes it."""
    schema = {"$defs": {"a": other}, **root}
    if schema_problem(schema) is not None:
        return
    for opening_steps in (0, 20, 60):
        matcher = LLMatcher(byte_tokenizer(), json_grammar(schema), log_level=0)
        walk(matcher, b'[{",', random.Random(0), opening_steps)
        assert any(walk(matcher.deep_copy(), (256, *b"}]n1"), random.Random(seed), 300) for seed in range(40))


def walk(matcher: LLMatcher, order: Sequence[int], rng: random.Random, steps: int) -> bool:
    """Takes the first allowed byte in `order`, else a random one; returns whether the answer is complete."""
    for _ in range(steps):
        if matcher.is_stopped():
            break
        mask = matcher.compute_bitmask()
        assert not matcher.is_error(), matcher.get_error()[:200]
        chosen = next((byte for byte in order if mask[byte >> 3] >> (byte & 7) & 1), None)
        if chosen is None:
            chosen = rng.choice([byte for byte in range(257) if mask[byte >> 3] >> (byte & 7) & 1])
        matcher.consume_token(chosen)
    return matcher.is_stopped()


@pytest.mark.parametrize(
    ("pattern", "atoms", "variable_repeats", "several_variable"),
    [
        ("", 0, 0, False),
        ("abc", 3, 0, False),
        ("a{3}", 3, 0, False),
        ("a{2,4}", 4, 4, False),
        ("(a{1,9}b){5}", 50, 45, True),
        ("(ab){0,9}", 18, 9, False),
        ("(ab?){5,}", 10, 0, False),
        (r"[a\]{9}]{4}\{{3}", 7, 0, False),
        (r"\p{L}{3}|\x{61}", 4, 0, False),
        ("a{0,7}|b{0,8}", 15, 15, True),
        ("((((", 0, 0, False),
        (")){9}{", 11, 0, False),
        ("[abc", 1, 0, False),
        ("a\\", 2, 0, False),
    ],
)
def test_the_size_of_a_pattern(pattern: str, atoms: int, variable_repeats: int, several_variable: bool) -> None:
    assert regex_size(pattern) == (atoms, variable_repeats, several_variable)


@pytest.mark.parametrize("pattern", [r"[\[\]a]", r"[^a-z]", r"a--b&&c[~]", r"\[[a]", "[]a]"])
def test_sets_that_mean_the_same_in_rust_and_javascript(pattern: str) -> None:
    assert not uses_rust_set_syntax(pattern)


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ({"type": "string", "pattern": "(?=a)b"}, ""),
        ({"type": "any"}, ""),
        ({"type": "array", "items": {"type": "string", "format": "unheard-of"}}, "/items"),
        (
            {"type": "object", "properties": {"a/b": {"type": "string", "minLength": 3, "maxLength": 1}}, "required": ["a/b"]},
            "/properties/a~1b",
        ),
        ({"allOf": [{"oneOf": [{"type": "number"}, {"type": "integer"}]}]}, "/allOf/0"),
        ({"anyOf": [{"type": "null"}, {"$ref": 5}]}, "/anyOf/1"),
    ],
)
def test_the_place_of_what_is_refused_is_named(part: Schema, place: str) -> None:
    """Also of what only llguidance refuses, and behind a reference."""
    for schema, start in (
        ({"type": "object", "properties": {"x": {"type": "null"}, "p": part}, "required": ["p"]}, "/properties/p"),
        ({"type": "array", "items": {"$ref": "#/$defs/d%5B%5D"}, "minItems": 1, "$defs": {"d[]": part}}, "/$defs/d[]"),
    ):
        problem = schema_problem(schema)
        assert problem is not None and problem.endswith(f"(at #{start}{place})")
