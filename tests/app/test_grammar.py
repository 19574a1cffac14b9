"""Schemas as grammars: what an answer may be, and which schemas are refused by name before llguidance ignores them or chokes on them."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from app.grammar import MOST_OPTIONAL, Bytes, Schema, closed, fault, json_grammar, part

LOW = LLTokenizer(TokenizerWrapper(Bytes()))
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=8)  # llguidance leaves this one out
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def holds(schema: Schema | None, text: str) -> bool:
    matcher = LLMatcher(LOW, json_grammar(schema), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def exactly(**properties: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def chained(count: int) -> Schema:
    """Lists in lists, each behind a reference."""
    named = {f"a{place}": {"type": "array", "items": {"$ref": f"#/$defs/a{place + 1}"}} for place in range(count)}
    return {"$defs": {**named, f"a{count}": {"type": "string"}}, "$ref": "#/$defs/a0"}


NODE = {
    "$defs": {"node": {**exactly(next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})}},
    "$ref": "#/$defs/node",
}


def test_without_a_schema_any_object_and_nothing_else() -> None:
    for text in ("{}", '{"a": 1, "b": [1, 2.5e3, null, true], "c": {"d": "\\n\u732b"}}'):
        assert holds(None, text)
    for text in ("[]", "1", '"a"', "null", "", "{} ", ' {"a": 1}', "{}{}", '{"a": 1'):
        assert not holds(None, text)


@settings(max_examples=100, deadline=None)
@given(value=st.dictionaries(TEXT, VALUE, max_size=4))
def test_every_object_as_json_dumps_writes_it(value: Any) -> None:
    assert holds(None, json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize("text", ['{"a":1}', '{ "a": 1}', '{"a":  1}', '{"a": 1, \n"b": 2}', '{"a": 1 }', "{\n}"])
def test_no_room_for_blanks_without_end(text: str) -> None:
    assert not holds(None, text)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"enum": ["red", 3, None]}, ['"red"', "3", "null"], ['"blue"', "4"]),
        ({"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"}, ['"AB-1"'], ['"A-1"', '"AB-"']),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"\u732b\u732b\u732b"'], ['"a"', '"abcd"']),
        ({"type": "integer", "minimum": -3, "exclusiveMaximum": 12}, ["-3", "11"], ["-4", "12", "1.5"]),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, ["0.1", "1"], ["0", "0.0", "1.1"]),
        ({"type": "integer", "multipleOf": 3}, ["9"], ["10"]),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, ["[true]"], ["[]", "[true, true, true]", "[1]"]),
        ({"type": "array", "prefixItems": [{"type": "null"}], "items": False}, ["[null]"], ["[null, 1]"]),
        (exactly(a={"type": "string"}, b={"anyOf": [{}, exactly(c={"const": 1})]}), ['{"a": "", "b": {"c": 1}}'], ['{"a": ""}']),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ['{"x": 1}', "{}"], ['{"x": "1"}']),
        ({"type": "object", "patternProperties": {"^a": {}}, "additionalProperties": False}, ['{"ab": null}'], ['{"b": null}']),
        ({"type": "string", "format": "date"}, ['"2026-11-21"'], ['"2026-13-21"', '"today"']),
        (NODE, ['{"next": null}', '{"next": {"next": {"next": null}}}'], ['{"next": 1}', "{}"]),
        ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, ["3", "5"], ["2", "6"]),
        ({"oneOf": [exactly(kind={"const": "a"}), exactly(kind={"const": "b"})]}, ['{"kind": "b"}'], ['{"kind": "c"}']),
        ({"$defs": {"a": {"type": "string"}}, "$ref": "#/$defs/a", "maxLength": 1}, ['"a"'], ['"ab"']),
        ({"type": "integer", "format": "int32", "title": "t", "default": 3, "examples": [1], "x-note": {"not": 1}}, ["7"], ["7.5"]),
        ({"properties": {"a/b~c": {"type": "null"}}, "items": {"$ref": "#/properties/a~1b~0c"}, "type": "array"}, ["[null]"], ["[1]"]),
        (chained(200), ["[[]]"], ["[1]"]),
    ],
)  # fmt: skip
def test_a_schema_is_kept_to(schema: Schema, good: list[str], bad: list[str]) -> None:
    assert fault(schema) is None
    assert [text for text in good if not holds(schema, text)] == []
    assert [text for text in bad if holds(schema, text)] == []


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not "),
        ({"if": {}, "then": {}}, "if "),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"contains": {}}, "contains"),
        ({"propertyNames": {}}, "propertyNames"),
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
def test_what_would_be_ignored_or_cannot_be_done_is_named(schema: Schema, says: str) -> None:
    for one in (schema, {"type": "array", "items": schema}, {"$defs": {"a": schema}, "$ref": "#/$defs/a"}):
        assert says in (fault(one) or "")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "https://example.com/a.json"}, "https://example.com/a.json"),
        ({"$ref": "#/nowhere"}, "#/nowhere"),
        ({"$ref": "#"}, "nothing can keep to it"),
        ({"default": {"uniqueItems": True}, "$ref": "#/default"}, "#/default"),
        ({"type": "any"}, "any"),
        ({"enum": []}, "empty"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "'a'"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "exclusiveMinimum"),
        ({"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 0.5}, "exclusiveMinimum"),
        ({"type": "number", "minimum": -4.5, "exclusiveMaximum": -4}, "exclusiveMaximum"),
    ],
)
def test_what_no_answer_can_keep_to_is_told(schema: Schema, says: str) -> None:
    assert says in (fault(schema) or "")


def test_the_place_is_named() -> None:
    schema = {"type": "object", "properties": {"a/b": {"type": "array", "items": {"anyOf": [{}, {"not": {}}]}}}}
    assert fault(schema) == "not is not supported (at #/properties/a~1b/items/anyOf/1)"


PATTERNS = [f"(a|b)*a(a|b){{{count}}}" for count in range(12, 40)]
HOSTILE: dict[str, Schema] = {
    "chain": chained(900),  # 2,000 end the process
    "many": {"anyOf": [{"type": "string"}] * 5000},
    "optional": {"type": "object", "properties": {f"p{place}": {} for place in range(MOST_OPTIONAL + 1)}},
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
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_refused_at_once(name: str) -> None:
    began = time.monotonic()
    assert fault(HOSTILE[name])
    assert time.monotonic() - began < 30  # not a measure of speed: unbounded, some of these do not end


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"},
        {"type": "string", "minLength": 10**6},
        {"type": "array", "minItems": 10**6, "items": {"type": "array", "maxItems": 10**9}},
        {"type": "object", "properties": {f"p{place}": {"type": "integer"} for place in range(MOST_OPTIONAL)}},
        {"type": "object", "patternProperties": {f"^(a|b)*a(a|b){{14}}c{place}$": {} for place in range(16)}},
        {"enum": [f"value {place}" for place in range(10_000)]},
    ],
)
def test_a_large_schema_is_done_at_once(schema: Schema) -> None:
    began = time.monotonic()
    assert fault(schema) is None
    assert time.monotonic() - began < 30  # not a measure of speed: unbounded, some of these do not end


def test_a_part_stands_in_a_larger_grammar() -> None:
    matcher = LLMatcher(LOW, f'start: "<" {part({"type": "integer"})} ">"', log_level=0)
    assert matcher.try_consume_tokens(list(b"<12>")) == 4 and matcher.is_stopped()


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
    assert "float64" in (fault(schema) or "")
    assert fault({"enum": [2**53, -(2**53), 0.5, True]}) is None


@pytest.mark.parametrize("step", [0, -1, -0.5])
def test_a_step_of_nothing_is_refused(step: float) -> None:
    assert "above 0" in (fault({"type": "number", "multipleOf": step}) or "")


NAMES: Schema = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_objects_are_closed_where_nothing_is_said() -> None:
    assert closed(NAMES) == {**NAMES, "additionalProperties": False}
    nested: Schema = {"type": "array", "items": NAMES, "$defs": {"b": NAMES}}
    assert closed(nested)["items"]["additionalProperties"] is False and closed(nested)["$defs"]["b"]["additionalProperties"] is False
    for schema in ({"type": "object"}, {**NAMES, "additionalProperties": True}, {**NAMES, "patternProperties": {"^x": {}}}):
        assert closed(schema) == schema


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [NAMES, {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}]},
        {**NAMES, "anyOf": [{"required": ["a"]}, {"properties": {"b": {"const": 1}}, "required": ["b"]}]},
        {**NAMES, "required": ["b"]},
    ],
)
def test_objects_that_need_more_than_they_name_stay_open(schema: Schema) -> None:
    assert closed(schema) == schema and fault(schema) is None
