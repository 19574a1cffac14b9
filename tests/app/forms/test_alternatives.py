"""Alternatives that exclude one another: what is said to be so is so, by all values of a pool."""

from itertools import combinations
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from app.forms.alternatives import MAX_ALTERNATIVES, are_disjoint
from app.forms.grammar import Schema, subschemas, with_any_of
from app.forms.relaxed import relaxed
from app.forms.validation import schema_problem


def tagged(**tags: Any) -> Schema:
    properties = {name: {"enum": value} if isinstance(value, list) else {"const": value} for name, value in tags.items()}
    return {"type": "object", "properties": properties, "required": list(properties)}


DEFINITIONS: dict[str, Schema] = {
    "a": tagged(k="a"),
    "b": tagged(k="b"),
    "kind": {"enum": ["c", "d"]},
    "c": {"type": "object", "properties": {"k": {"$ref": "#/$defs/kind"}}, "required": ["k"]},
    "either": {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "discriminator": {"propertyName": "k"}},
    "loop": {"$ref": "#/$defs/loop"},
}
ALTERNATIVES: tuple[Any, ...] = (
    *({"$ref": f"#/$defs/{name}"} for name in DEFINITIONS),
    *({"type": name} for name in ("null", "integer", "number", "string", "array", "object")),
    *({"const": value} for value in (1, True, "a", None, {"k": "a"})),
    {"enum": [1.0, "b"]},
    {"type": ["string", "null"]},
    {"properties": {"k": {"const": "e"}}, "required": ["k"]},
    {"type": "object", "properties": {"k": {"const": "e"}}},
    {"allOf": [{"$ref": "#/$defs/a"}, tagged(n=1)]},
    tagged(k=1, n=True),
    tagged(k=True, n=1),
    True,
    {},
)
VALUES: tuple[Any, ...] = (
    *(None, True, 1, 1.0, 2.5, "a", "b", "x", [], {}),
    *({"k": tag} for tag in ("a", "b", "c", "e", 1, True)),
    *({"k": tag, "n": n} for tag in ("a", "b", 1, True) for n in (1, True)),
)
PARTS = dict(subschemas({"$defs": DEFINITIONS}))


def test_no_value_conforms_to_two_that_exclude_one_another() -> None:
    told = 0
    conforming = []
    for each in ALTERNATIVES:
        validator = Draft202012Validator({"$defs": DEFINITIONS, "allOf": [each]})
        conforming.append(
            [] if each == {"$ref": "#/$defs/loop"} else [place for place, value in enumerate(VALUES) if validator.is_valid(value)]
        )
    for (one, fits), (other, other_fits) in combinations(zip(ALTERNATIVES, conforming, strict=True), 2):
        if are_disjoint([one, other], PARTS):
            assert not set(fits) & set(other_fits), (one, other)
            told += 1
    assert told > 100


NODE: Schema = {
    "type": "object",
    "properties": {
        "k": {"const": "n"},
        "next": {"oneOf": [{"$ref": "#/$defs/node"}, {"$ref": "#/$defs/a"}], "title": "Next", "discriminator": {"propertyName": "k"}},
    },
    "required": ["k", "next"],
}


@pytest.mark.parametrize(
    "ways",
    [
        [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        [{"$ref": "#/$defs/a"}, {"type": "null"}],
        [{"$ref": "#/$defs/a"}, {"type": "string"}],
        [{"$ref": "#/$defs/either"}, {"$ref": "#/$defs/c"}],
        [{"$ref": "#/$defs/node"}, {"$ref": "#/$defs/a"}],
    ],
)
def test_a_oneof_of_references_is_enforced(ways: list[Schema]) -> None:
    schema = {"type": "object", "properties": {"p": {"oneOf": ways}}, "$defs": {**DEFINITIONS, "node": NODE}}
    del schema["$defs"]["loop"]
    assert schema_problem(schema) is None and relaxed(schema).left_out == ()


def test_what_may_overlap_stays_refused() -> None:
    for ways in ([{"type": "object"}, {"$ref": "#/$defs/a"}], [{"type": "string", "format": "date"}, {"type": "string"}]):
        problem = schema_problem({"oneOf": ways, "$defs": {"a": DEFINITIONS["a"]}})
        assert problem is not None and "oneOf" in problem


def test_many_alternatives_are_left_as_they_are() -> None:
    many: Schema = {"oneOf": [tagged(k=str(number)) for number in range(MAX_ALTERNATIVES + 1)]}
    assert not are_disjoint(many["oneOf"], {}) and are_disjoint(many["oneOf"][1:], {})
    doubled: dict[str, Schema] = {f"/$defs/{level}": {"oneOf": [{"$ref": f"#/$defs/{level + 1}"}] * 2} for level in range(40)}
    assert not are_disjoint([{"$ref": "#/$defs/0"}], doubled)
    assert "oneOf" in with_any_of({"oneOf": [{}, {}]})
