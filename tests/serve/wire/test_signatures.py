"""Schemas of tools: what of them is enforced where all are too much together, or where arguments are written one by one."""

from dataclasses import replace
from typing import Any

import pytest

from app.errors import InvalidRequest
from app.forms.parameters import ParameterFormat, parameters_problem
from app.forms.tools import AddedTokens, ToolFormat
from app.schemas import Function
from serve.wire.signatures import signatures_of

JSON = ToolFormat("<call>", (":",), None, ("</call>",), AddedTokens({}, frozenset(), frozenset()))
ONE_BY_ONE = replace(JSON, parameters=ParameterFormat("<parameter=", ">\n", "\n</parameter>\n", ""))


def functions(*schemas: dict[str, Any], strict: bool | None = None) -> dict[int, Function]:
    return {place: Function(name=f"f{place}", parameters=schema, strict=strict) for place, schema in enumerate(schemas)}


def large(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{place}": {"type": "string"} for place in range(count)}}


def test_of_tools_that_are_too_much_together_the_largest_take_any_object() -> None:
    schemas = [large(300 + place) for place in range(8)]
    found = signatures_of(functions(*schemas), JSON, None)
    assert found.left_out == ("tools.6.function.parameters", "tools.7.function.parameters")
    assert [found.schemas[f"f{place}"] for place in range(8)] == [*schemas[:6], *[{"type": "object"}] * 2]
    with pytest.raises(InvalidRequest, match="together"):
        signatures_of(functions(*schemas, strict=True), JSON, None)


def test_only_tools_that_add_to_what_is_too_much_are_relaxed() -> None:
    steps = [{"type": "object", "properties": {"a": {"type": "integer", "multipleOf": step}}} for step in (7001, 7003)]
    found = signatures_of(functions(large(30), *steps), JSON, None)
    assert found.left_out == ("tools.1.function.parameters",) and found.schemas["f0"] == large(30)


def test_arguments_one_by_one_have_only_their_own_schemas() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/properties/b"}, "b": {"type": "integer"}},
        "required": ["a", "c"],
        "anyOf": [{"properties": {"d": {"type": "string"}}}, {"required": ["b"]}],
    }
    found = signatures_of(functions(schema), ONE_BY_ONE, None)
    assert found.left_out == tuple(f"tools.0.function.parameters.{path}" for path in ("anyOf", "properties.a.$ref"))
    enforced = found.schemas["f0"]
    assert enforced["properties"] == {"a": {}, "b": {"type": "integer"}, "c": {}, "d": {}} and parameters_problem(enforced) is None
    with pytest.raises(InvalidRequest, match="anyOf"):
        signatures_of(functions(schema, strict=True), ONE_BY_ONE, None)
    with pytest.raises(InvalidRequest, match="names of letters"):
        signatures_of(functions({"type": "object", "properties": {"a b": {}}}), ONE_BY_ONE, None)
