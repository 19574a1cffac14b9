"""JSON schemas as grammars: which answers they allow."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from pydantic import TypeAdapter

from app.forms.grammar import Schema, json_grammar, schema_term, simplified, with_closed_objects
from app.forms.relaxed import relaxed
from app.forms.trial import ByteVocabulary
from app.forms.validation import schema_problem

BYTES = LLTokenizer(TokenizerWrapper(ByteVocabulary()))
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=8)  # llguidance never writes U+007F
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def allows(schema: Schema | None, text: str) -> bool:
    matcher = LLMatcher(BYTES, json_grammar(schema), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def object_of(**properties: Any) -> Schema:
    """An object with exactly these properties, all required."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


DURATIONS = [
    f'"P{part}"'
    for part in ("1Y", "1Y2M3D", "2M", "3DT4H5M6S", "T4H", "T5M6S", "T6S", "7W", "999999Y999999M999999DT999999H999999M99999999S")
]
NODE = {
    "$defs": {"node": {**object_of(next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})}},
    "$ref": "#/$defs/node",
}


def test_without_a_schema_any_object_is_allowed_and_nothing_else() -> None:
    for text in ("{}", '{"a": 1, "b": [1, 2.5e3, null, true], "c": {"d": "\\n\u732b"}}'):
        assert allows(None, text)
    for text in ("[]", "1", '"a"', "null", "", "{} ", ' {"a": 1}', "{}{}", '{"a": 1'):
        assert not allows(None, text)


@settings(max_examples=100, deadline=None)
@given(value=st.dictionaries(TEXT, VALUE, max_size=4))
def test_every_object_written_by_json_dumps_is_allowed(value: Any) -> None:
    assert allows(None, json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize("text", ['{"a":1}', '{ "a": 1}', '{"a":  1}', '{"a": 1, \n"b": 2}', '{"a": 1 }', "{\n}"])
def test_no_white_space_beyond_what_json_dumps_writes(text: str) -> None:
    assert not allows(None, text)


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
        (object_of(a={"type": "string"}, b={"anyOf": [{}, object_of(c={"const": 1})]}), ['{"a": "", "b": {"c": 1}}'], ['{"a": ""}']),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ['{"x": 1}', "{}"], ['{"x": "1"}']),
        ({"type": "object", "patternProperties": {"^a": {}}, "additionalProperties": False}, ['{"ab": null}'], ['{"b": null}']),
        ({"type": "string", "format": "date"}, ['"2026-11-21"'], ['"2026-13-21"', '"today"']),
        ({"type": "string", "format": "duration"}, DURATIONS, ['"P1234567Y"', '"PT1M1H"', '"P1W2D"', '"P"', '"PT"', '"1D"', '"P1D "']),
        ({"format": "duration", "enum": ["P1234567Y"]}, ['"P1234567Y"'], ['"P1D"']),
        (NODE, ['{"next": null}', '{"next": {"next": {"next": null}}}'], ['{"next": 1}', "{}"]),
        ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, ["3", "5"], ["2", "6"]),
        ({"oneOf": [object_of(kind={"const": "a"}), object_of(kind={"const": "b"})]}, ['{"kind": "b"}'], ['{"kind": "c"}']),
        ({"$defs": {"a": {"type": "string"}}, "$ref": "#/$defs/a", "maxLength": 1}, ['"a"'], ['"ab"']),
        ({"type": "integer", "format": "int32", "title": "t", "default": 3, "examples": [1], "x-note": {"not": 1}}, ["7"], ["7.5"]),
        ({"properties": {"a/b~c": {"type": "null"}}, "items": {"$ref": "#/properties/a~1b~0c"}, "type": "array"}, ["[null]"], ["[1]"]),
    ],
)  # fmt: skip
def test_a_schema_is_enforced(schema: Schema, good: list[str], bad: list[str]) -> None:
    assert schema_problem(schema) is None
    assert [text for text in good if not allows(schema, text)] == []
    assert [text for text in bad if allows(schema, text)] == []


def test_every_duration_that_may_be_written_can_be_read() -> None:
    adapter = TypeAdapter(timedelta)
    assert adapter.json_schema() == {"type": "string", "format": "duration"}
    for text in DURATIONS:
        adapter.validate_json(text)


def test_a_schema_is_a_term_in_a_larger_grammar() -> None:
    matcher = LLMatcher(BYTES, f'start: "<" {schema_term({"type": "integer"})} ">"', log_level=0)
    assert matcher.try_consume_tokens(list(b"<12>")) == 4 and matcher.is_stopped()


ONE_PROPERTY: Schema = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_objects_are_closed_unless_the_schema_mentions_other_properties() -> None:
    assert with_closed_objects(ONE_PROPERTY) == {**ONE_PROPERTY, "additionalProperties": False}
    nested: Schema = {"type": "array", "items": ONE_PROPERTY, "$defs": {"b": ONE_PROPERTY}}
    assert (
        with_closed_objects(nested)["items"]["additionalProperties"] is False
        and with_closed_objects(nested)["$defs"]["b"]["additionalProperties"] is False
    )
    for schema in ({"type": "object"}, {**ONE_PROPERTY, "additionalProperties": True}, {**ONE_PROPERTY, "patternProperties": {"^x": {}}}):
        assert with_closed_objects(schema) == schema


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [ONE_PROPERTY, {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}]},
        {**ONE_PROPERTY, "anyOf": [{"required": ["a"]}, {"properties": {"b": {"const": 1}}, "required": ["b"]}]},
        {**ONE_PROPERTY, "required": ["b"]},
    ],
)
def test_objects_that_need_unnamed_properties_stay_open(schema: Schema) -> None:
    assert with_closed_objects(schema) == schema and schema_problem(schema) is None


def test_what_is_intersected_stays_open_and_nothing_else() -> None:
    both: Schema = {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object", "properties": {"b": {"type": "integer"}}}]}
    inner: Schema = {"type": "object", "properties": {"deep": ONE_PROPERTY}}
    schema: Schema = {"type": "object", "properties": {"x": both, "y": ONE_PROPERTY}, "$defs": {"a": inner, "c": ONE_PROPERTY}}
    closed = {**ONE_PROPERTY, "additionalProperties": False}
    assert with_closed_objects(schema) == {
        **schema,
        "additionalProperties": False,
        "properties": {"x": both, "y": closed},
        "$defs": {"a": inner, "c": closed},
    }


def test_an_allof_of_one_part_is_this_part() -> None:
    wrapped: Schema = {"allOf": [{"$ref": "#/$defs/a"}], "description": "as pydantic 1 writes it"}
    schema: Schema = {"type": "object", "properties": {"q": wrapped}, "required": ["q"], "$defs": {"a": ONE_PROPERTY}}
    assert simplified(schema)["properties"]["q"] == {"description": "as pydantic 1 writes it", "$ref": "#/$defs/a"}
    assert simplified(simplified(schema)) == simplified(schema)
    assert (
        conforms(schema, '{"q": {"a": 1}}')
        and not conforms(schema, '{"q": {"a": 1, "b": 2}}')
        and not conforms(schema, '{"q": {}, "b": 2}')
    )
    for kept in (
        {"allOf": [ONE_PROPERTY], "minProperties": 1},
        {"allOf": [ONE_PROPERTY, {"minProperties": 1}]},
        {**schema, "required": [], "properties": {"q": wrapped, "r": {"$ref": "#/properties/q/allOf/0"}}},
    ):
        assert simplified(kept) == kept


def test_keywords_that_say_what_is_so_anyway_are_accepted() -> None:
    schema: Schema = {"type": "array", "items": {"type": "string", "nullable": False}, "uniqueItems": False}
    assert schema_problem(schema) is None and conforms(schema, '["a", "a"]')
    named: Schema = {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {}}  # so zod writes a record
    assert schema_problem(named) is None and conforms(named, '{"a": 1}')
    for keyword in ("uniqueItems", "nullable"):
        assert schema_problem({"type": "array", keyword: True}) == f"{keyword} is not supported (at #)"


def test_a_oneof_whose_alternatives_overlap_is_refused_in_words_of_the_client() -> None:
    problem = schema_problem({"oneOf": [{"type": "number"}, {"type": "integer"}]})
    assert problem == "alternatives of oneOf that may overlap are not supported; use anyOf (at #)"


def conforms(schema: Schema, text: str) -> bool:
    matcher = LLMatcher(BYTES, json_grammar(schema), log_level=0)
    return bool(matcher.try_consume_tokens(list(text.encode())) == len(text) and matcher.is_accepting())


def test_references_are_fragments_of_a_uri() -> None:
    definitions: Schema = {name: {"type": "integer"} for name in ("Page[int]", "50%", "as%20it is", "a b")}
    for target, is_known in (
        ("Page%5Bint%5D", True),
        ("Page[int]", True),
        ("50%25", True),
        ("as%20it is", True),
        ("a%20b", True),
        ("c%20d", False),
    ):
        schema: Schema = {"type": "object", "properties": {"p": {"$ref": f"#/$defs/{target}"}}, "required": ["p"], "$defs": definitions}
        assert (schema_problem(schema) is None) == is_known
        assert not is_known or (conforms(schema, '{"p": 1}') and not conforms(schema, '{"p": "a"}'))
        assert (relaxed(schema).left_out == ()) == is_known


@pytest.mark.parametrize("annotation", ["xml", "externalDocs", "markdownDescription", "errorMessage", "$vocabulary", "id", "discriminator"])
def test_annotations_of_generators_restrict_nothing(annotation: str) -> None:
    node: Schema = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}], annotation: {"a": 1}}}}
    assert schema_problem({"$ref": "#/$defs/n", "$defs": {"n": {**node, annotation: {}}}}) is None


@pytest.mark.parametrize("name", ["binary", "password", "path", "file-path", "directory-path"])
def test_a_format_that_any_text_has_restricts_nothing(name: str) -> None:
    schema: Schema = {"type": "string", "format": name, "maxLength": 3}
    assert schema_problem(schema) is None and conforms(schema, '"a/b"') and not conforms(schema, '"a/bc"')


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("byte", ["", "QQ==", "QUI=", "QUJD"], ["QQ=", "Q", "QUJD="]),
        ("base64", ["QUJD", "+/+/"], ["-_-_"]),
        (
            "uuid4",
            ["0f8fad5b-d9cb-469f-a165-70867728950e"],
            ["0f8fad5b-d9cb-169f-a165-70867728950e", "0f8fad5b-d9cb-469f-c165-70867728950e"],
        ),
        ("uuid1", ["0f8fad5b-d9cb-169f-a165-70867728950e"], ["0f8fad5b-d9cb-469f-a165-70867728950e"]),
    ],
)
def test_formats_of_generators_are_patterns(name: str, good: list[str], bad: list[str]) -> None:
    schema: Schema = {"type": "string", "format": name}
    assert schema_problem(schema) is None
    assert (
        [text for text in good if not conforms(schema, json.dumps(text))]
        == []
        == [text for text in bad if conforms(schema, json.dumps(text))]
    )
