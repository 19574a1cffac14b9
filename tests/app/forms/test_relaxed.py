"""Schemas of tools that do not ask for `strict`: what cannot be enforced is left out at its place, and the rest is enforced."""

import json
import random
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher

from app.forms.grammar import Schema, json_grammar
from app.forms.relaxed import relaxed
from app.forms.trial import byte_tokenizer
from app.forms.validation import MAX_DEPTH, MAX_SUBSCHEMAS, schema_problem

TEXT: Schema = {"type": "string"}
BAD_PATTERN: Schema = {"type": "string", "pattern": "(?=a)b"}
OVERLAPPING: Schema = {"oneOf": [TEXT, {"type": "string", "maxLength": 3}]}


def of(**properties: Any) -> Schema:
    return {"type": "object", "properties": properties}


def accepts(schema: Schema, value: Any) -> bool:
    matcher = LLMatcher(byte_tokenizer(), json_grammar(schema), log_level=0)
    text = json.dumps(value, ensure_ascii=False).encode()
    return matcher.try_consume_tokens(list(text)) == len(text) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("inner", "left_out", "enforced"),
    [
        ({**TEXT, "not": {"const": "x"}}, ["not"], TEXT),
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, ["propertyNames"], {"type": "object"}),
        ({"type": "array", "items": TEXT, "uniqueItems": True}, ["uniqueItems"], {"type": "array", "items": TEXT}),
        ({"type": "array", "uniqueItems": False}, [], {"type": "array", "uniqueItems": False}),
        ({"type": "array", "items": BAD_PATTERN, "maxItems": 2}, ["items/pattern"], {"type": "array", "items": TEXT, "maxItems": 2}),
        ({**TEXT, "format": "iri", "minLength": 2}, ["format"], {**TEXT, "minLength": 2}),
        ({**TEXT, "format": "date"}, [], {**TEXT, "format": "date"}),
        ({**TEXT, "enum": ["a"], "enumNames": ["A"], "order": 1}, ["enumNames", "order"], {**TEXT, "enum": ["a"]}),
        ({**TEXT, "enum": None, "required": None, "properties": None}, [], TEXT),
        ({**TEXT, "nullable": True}, [], {"type": ["string", "null"]}),
        ({"enum": ["a"], "nullable": True}, [], {"enum": ["a", None]}),
        ({"const": 1, "nullable": True}, [], {"enum": [1, None]}),
        ({"anyOf": [TEXT], "nullable": True}, [], {"anyOf": [TEXT, {"type": "null"}]}),
        ({"type": "any"}, ["type"], {}),
        ({**of(b=TEXT), "required": True}, ["required"], {**of(b=TEXT), "additionalProperties": True}),
        (OVERLAPPING, ["oneOf"], {"anyOf": OVERLAPPING["oneOf"]}),
        ({"oneOf": [TEXT, {"type": "integer"}], "not": {}}, ["not"], {"oneOf": [TEXT, {"type": "integer"}]}),
        ({"$ref": "https://example.com/a.json"}, ["$ref"], {}),
        ("string", [], {}),
        ({"enum": [2**60], "type": "integer"}, ["enum"], {"type": "integer"}),
        ({"allOf": [BAD_PATTERN, {"minLength": 2}]}, ["allOf/0/pattern"], {"allOf": [TEXT, {"minLength": 2}]}),
        ({"type": "integer", "allOf": [TEXT]}, ["allOf"], {"type": "integer"}),
        (
            {"type": "object", "patternProperties": {"^(?!x)": TEXT}, "additionalProperties": False},
            ["patternProperties"],
            {"type": "object", "additionalProperties": True},
        ),
        ({**of(a=TEXT), "if": {"properties": {"b": TEXT}}}, ["if"], {**of(a=TEXT), "additionalProperties": True}),
        ({**of(a=TEXT), "dependencies": {"a": ["b"]}}, ["dependencies"], of(a=TEXT)),
    ],
)
def test_what_cannot_be_enforced_is_left_out_at_its_place_only(inner: Any, left_out: list[str], enforced: Schema) -> None:
    result = relaxed({**of(a=inner, b={"type": "integer"}), "required": ["b", "a"]})
    assert list(result.left_out) == [f"/properties/a/{keyword}" for keyword in left_out]
    assert result.schema == {**of(a=enforced, b={"type": "integer"}), "required": ["b", "a"]}
    assert schema_problem(result.schema) is None


def test_a_schema_that_can_be_enforced_stays_as_it_is() -> None:
    schema = {**of(a=TEXT), "$defs": {"B": {"nullable": False}}, "x-order": 1}
    assert (relaxed(schema).schema, relaxed(schema).left_out) == (schema, ())


def test_a_reference_that_may_be_null_is_enforced() -> None:
    result = relaxed({**of(a={"$ref": "#/$defs/B", "nullable": True}), "$defs": {"B": {"enum": ["x"]}}})
    assert accepts(result.schema, {"a": None}) and accepts(result.schema, {"a": "x"}) and not accepts(result.schema, {"a": "y"})


def test_a_definition_is_relaxed_where_it_stands() -> None:
    result = relaxed({**of(a={"$ref": "#/$defs/A"}), "$defs": {"A": of(b={"$ref": "#/$defs/B"}), "B": BAD_PATTERN}})
    assert result.left_out == ("/$defs/B/pattern",) and not accepts(result.schema, {"a": {"b": 1}})


def test_a_part_that_never_ends_takes_any_value() -> None:
    result = relaxed({**of(a={"$ref": "#"}), "required": ["a"]})
    assert result.left_out == ("/properties/a",) and accepts(result.schema, {"a": 3}) and not accepts(result.schema, {})


def test_a_schema_that_is_too_much_takes_any_object() -> None:
    deep: Schema = TEXT
    for _ in range(MAX_DEPTH):
        deep = of(a=deep)
    for schema in (deep, of(**{f"a{place}": TEXT for place in range(MAX_SUBSCHEMAS)})):
        assert (relaxed(schema).schema, relaxed(schema).left_out) == ({"type": "object"}, ("",))


@pytest.mark.parametrize(
    "schema",
    [
        of(**{f"p{place}": {"type": "string", "pattern": "(ab?c*)?" * 1200} for place in range(30)}),
        {
            **of(**{f"p{place}": {"allOf": [TEXT, {"type": "integer"}]} for place in range(390)}),
            "required": [f"p{place}" for place in range(390)],
        },
    ],
)
def test_the_work_for_a_hostile_schema_is_bounded(schema: Schema) -> None:
    """Without the bound these take a minute and more."""
    result = relaxed(schema)
    assert result.left_out and schema_problem(result.schema) is None


def test_many_faults_are_all_found() -> None:
    result = relaxed(of(**{f"a{place}": BAD_PATTERN if place % 2 else OVERLAPPING for place in range(40)}))
    assert len(result.left_out) == 40 and not accepts(result.schema, {"a0": 1})


VALUES = (
    None,
    True,
    0,
    3,
    2.5,
    "",
    "a",
    "abc",
    "2024-01-02",
    [],
    ["a", "a"],
    [1, "a"],
    {},
    {"a": "x"},
    {"a": 1, "b": None},
    {"a": {"b": "q"}},
)
LEAVES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("type", ("string", "integer", "object", "array", ["string", "null"], "number")),
    ("enum", (["a", "abc", 3], [None, {}], [2**60, 0])),
    ("pattern", ("^a", "(?=a)", "^(?!b)")),
    ("format", ("date", "password")),
    ("minLength", (1, 2)),
    ("maximum", (2, 5)),
    ("exclusiveMinimum", (0, 2)),
    ("minItems", (1, 2)),
    ("uniqueItems", (True,)),
    ("required", (["a"], ["b"], ["z"])),
    ("minProperties", (1, 2)),
    ("multipleOf", (3, 0.5)),
)
NESTING = ("anyOf", "oneOf", "allOf", "not", "if", "then", "items", "contains", "additionalProperties", "propertyNames", "properties")


def made_up(chance: random.Random, depth: int = 0) -> Schema:
    schema = {key: chance.choice(values) for key, values in chance.sample(LEAVES, chance.choice((0, 1, 1, 2)))}
    for key in chance.sample(NESTING, chance.choice((0, 1, 1, 2)) if depth < 2 else 0):
        if key in {"anyOf", "oneOf", "allOf"}:
            schema[key] = [made_up(chance, depth + 1) for _ in range(2)]
        elif key == "properties":
            schema[key] = {name: made_up(chance, depth + 1) for name in chance.sample("abq", 2)}
        else:
            schema[key] = made_up(chance, depth + 1)
    if chance.random() < 0.2:
        schema["patternProperties"] = {chance.choice(("^a", "^(?!a)")): made_up(chance, 2)}
        schema["additionalProperties"] = False
    return schema


@pytest.mark.parametrize("seed", range(60))
def test_what_a_schema_accepts_the_relaxed_one_accepts(seed: int) -> None:
    schema = of(p=made_up(random.Random(seed)))
    result = relaxed(schema)
    for value in VALUES:
        if jsonschema.Draft202012Validator(schema).is_valid({"p": value}):
            assert jsonschema.Draft202012Validator(result.schema).is_valid({"p": value}), (schema, result, value)
    assert schema_problem(result.schema) is None
