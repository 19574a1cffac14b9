"""A JSON schema without what cannot be enforced, for tools whose client does not ask for `strict`.

    relaxed(schema: dict[str, Any]) -> Relaxed    .schema, and .left_out: JSON pointers of what was left out, in the order of finding

The result is wider than the schema, never narrower: what the schema accepts, the result accepts. It has the type object at its top. What
`app.forms.validation` refuses is left out at its place only; where that is not enough, the place takes any value, and at last the whole
any object. Knows no model and no request.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from app.forms.grammar import (
    ANY_OBJECT,
    DEFINITIONS,
    KEYWORDS,
    NO_BY_DEFAULT,
    SCHEMA_LISTS,
    SCHEMA_MAPS,
    Schema,
    json_grammar,
    mapped,
    pointer_token,
    subschemas,
    with_plain_references,
)
from app.forms.places import MAX_DEPTH, part_alone, refused_place
from app.forms.trial import grammar_problem
from app.forms.validation import ANNOTATIONS, MAX_SUBSCHEMAS, bare_problem, endless_parts, own_problem, whole_problem

MAX_TRIED = 20_000  # subschemas compiled for one schema, about 0.1 ms each; a pattern counts as one for every 20 characters
MAX_ROUNDS = 64  # places that are found one after the other
TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# What is left out first where leaving one keyword out is enough; if none is, they are left out one after the other.
LEAST_FIRST = (
    *("additionalItems", "format", "pattern", "multipleOf", *COUNTS, *BOUNDS, "patternProperties", "required", "additionalProperties"),
    *("prefixItems", "items", "allOf", "$ref", "oneOf", "anyOf", "properties", "enum", "const"),
)
OF_TEXTS = ("pattern", "format")
NAMING = ("properties", "patternProperties", "additionalProperties")
TOGETHER = ({"multipleOf"}, {"pattern", "format"}, {"$ref"})  # left out everywhere, where the parts of a schema are too much together


@dataclass(frozen=True, slots=True)
class Relaxed:
    schema: Schema
    left_out: tuple[str, ...] = ()


ANYTHING = Relaxed(ANY_OBJECT, ("",))


def relaxed(schema: Schema) -> Relaxed:
    sizes = [pointer.count("/") for pointer, _ in subschemas(schema)]
    if len(sizes) > MAX_SUBSCHEMAS or max(sizes) > MAX_DEPTH:
        return ANYTHING
    if bare_problem(schema) is None:
        return Relaxed(schema)
    work = _Relaxing(schema)
    return Relaxed(work.schema, tuple(dict.fromkeys(work.left_out))) if work.is_done() else ANYTHING


def without(schema: Schema, *keywords: str) -> Schema:
    """The schema without these keywords. As grammars close objects that name their properties, one of which something is left out that
    may name others stays open.
    """
    also = {
        "prefixItems": ("items", "additionalItems"),
        "items": ("additionalItems",),
        "minimum": ("exclusiveMinimum",) if schema.get("exclusiveMinimum") is True else (),
        "maximum": ("exclusiveMaximum",) if schema.get("exclusiveMaximum") is True else (),
    }
    gone = {*keywords, *(other for keyword in keywords for other in also.get(keyword, ()))}
    rest = {key: value for key, value in schema.items() if key not in gone}
    if not gone.isdisjoint(NAMING):
        return {**rest, "additionalProperties": True}
    names_others = not gone.isdisjoint({"required", "$ref"}) or any('"properties"' in json.dumps(schema.get(key)) for key in gone)
    return {"additionalProperties": True, **rest} if names_others and "properties" in rest else rest


class _Relaxing:
    """A schema, from which more and more is left out."""

    def __init__(self, schema: Schema) -> None:
        self.left_out: list[str] = []
        self._left = MAX_TRIED
        self.schema: Schema = mapped(mapped(with_plain_references(schema), self._sound), self._fine_alone)

    def is_done(self) -> bool:
        """Go on until the schema can be enforced. False if it cannot be brought there."""
        together, looked_at_choices = iter(TOGETHER), False
        for _ in range(MAX_ROUNDS):
            self.schema = self._with_known_references()
            self._left -= sum(1 for _ in subschemas(self.schema))
            if endless := endless_parts(self.schema):
                self._replace(max(endless, key=len), self._any)
            elif whole_problem(self.schema) is not None:
                keywords = next(together, None)
                if keywords is None:
                    return False
                self.schema = mapped(self.schema, partial(self._without_all, keywords))
            elif (problem := bare_problem(self.schema)) is None:
                return True
            elif "oneOf" in problem and not looked_at_choices:
                looked_at_choices = True
                self.schema = mapped(self.schema, self._as_any_of)
            elif self._left <= 0:
                return False
            else:
                self._relax_at(refused_place(self.schema, lambda place: self._compiles_within(self.schema, place)))
        return False

    def _without(self, pointer: str, schema: Schema, *keywords: str) -> Schema:
        self.left_out += [f"{pointer}/{pointer_token(keyword)}" for keyword in schema if keyword in keywords]
        return without(schema, *keywords) if keywords else schema

    def _without_all(self, keywords: set[str], pointer: str, schema: Schema) -> Schema:
        return self._without(pointer, schema, *keywords & set(schema))

    def _any(self, pointer: str, schema: Schema) -> Schema:
        """Any value of the schema's type; definitions stay, as other places may refer to them."""
        self.left_out.append(pointer)
        return {key: value for key, value in schema.items() if key in DEFINITIONS or (key == "type" and not pointer)}

    def _replace(self, pointer: str, change: Callable[[str, Schema], Schema]) -> None:
        self.schema = mapped(self.schema, lambda at, inner: change(at, inner) if at == pointer else inner)

    def _sound(self, pointer: str, schema: Schema) -> Schema:
        """With keywords that are known, each with a value that it may have. One that is null says nothing."""
        schema = {key: value for key, value in schema.items() if value is not None or key in {*ANNOTATIONS, "const"}}
        or_null = schema.get("nullable") is True
        schema = {key: value for key, value in schema.items() if key not in NO_BY_DEFAULT or (key != "nullable" and value is not False)}
        unsound = [key for key, value in schema.items() if not _is_sound(key, value)]
        schema = _with_schemas(self._without(pointer, schema, *unsound))
        return _or_null(schema) if or_null else schema

    def _fine_alone(self, pointer: str, schema: Schema) -> Schema:
        return self._weaker(pointer, schema, self._is_fine_alone)

    def _is_fine_alone(self, schema: Schema) -> bool:
        if own_problem(schema) is not None:
            return False
        text = {key: schema[key] for key in OF_TEXTS if key in schema}
        return not text or self._compiles({"type": "string", **text}, 1 + len(str(text)) // 20)

    def _weaker(self, pointer: str, schema: Schema, is_fine: Callable[[Schema], bool]) -> Schema:
        """The schema without as little as makes it fine."""
        if is_fine(schema):
            return schema
        for weaker, keywords in _weakened(schema):
            if is_fine(weaker):
                self.left_out += [f"{pointer}/{pointer_token(keyword)}" for keyword in keywords]
                return weaker
        return self._any(pointer, schema)

    def _with_known_references(self) -> Schema:
        parts = {f"#{pointer}" for pointer, _ in subschemas(self.schema)}

        def known(pointer: str, inner: Schema) -> Schema:
            return self._without(pointer, inner, *(["$ref"] if "$ref" in inner and inner["$ref"] not in parts else []))

        return mapped(self.schema, known)

    def _as_any_of(self, pointer: str, schema: Schema) -> Schema:
        """With anyOf where alternatives of oneOf overlap."""
        if "oneOf" not in schema or "anyOf" in schema or self._compiles_within(self.schema, pointer):
            return schema
        return self._weaker(pointer, schema, lambda weaker: "oneOf" not in weaker)

    def _relax_at(self, pointer: str) -> None:
        def is_fine(weaker: Schema) -> bool:
            return self._compiles_within(mapped(self.schema, lambda at, inner: weaker if at == pointer else inner), pointer)

        inner = dict(subschemas(self.schema))[pointer]
        weaker = self._weaker(pointer, inner, is_fine)
        self._replace(pointer, lambda at, _: self._any(at, inner) if weaker == inner else weaker)

    def _compiles_within(self, schema: Schema, pointer: str) -> bool:
        """Whether the part of the schema can be compiled with all that it refers to."""
        if self._left <= 0:
            return False
        return self._compiles(*part_alone(schema, pointer))

    def _compiles(self, schema: Schema, size: int) -> bool:
        self._left -= size
        return self._left > 0 and grammar_problem(json_grammar(schema)) is None


def _weakened(schema: Schema) -> Iterator[tuple[Schema, list[str]]]:
    """Wider schemas, the least changed ones first, and the keywords that are gone from them."""
    if "oneOf" in schema and "anyOf" not in schema:
        yield {"anyOf" if key == "oneOf" else key: value for key, value in schema.items()}, ["oneOf"]
    keywords = [keyword for keyword in LEAST_FIRST if keyword in schema]
    yield from ((without(schema, keyword), [keyword]) for keyword in keywords)
    yield from ((without(schema, *keywords[:count]), keywords[:count]) for count in range(2, len(keywords) + 1))


def _is_sound(keyword: str, value: Any) -> bool:
    """Whether a keyword is one that may be enforced, and has a value that it may have."""
    if keyword in KEYWORDS:
        return SOUND.get(keyword, _is_anything)(value)
    return keyword in ANNOTATIONS or (keyword.startswith("x-") and keyword != "x-guidance")


def _is_anything(value: Any) -> bool:
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


SOUND: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "type": lambda value: value != [] and all(isinstance(name, str) and name in TYPES for name in _listed(value)),
        "required": lambda value: isinstance(value, list) and all(map(_is_text, value)),
        "items": lambda value: _is_schema(value) or isinstance(value, list),
        "multipleOf": lambda value: _is_number(value) and value > 0,
        "exclusiveMinimum": lambda value: _is_number(value) or isinstance(value, bool),
        "exclusiveMaximum": lambda value: _is_number(value) or isinstance(value, bool),
        "minimum": _is_number,
        "maximum": _is_number,
        **dict.fromkeys(COUNTS, _is_count),
        **dict.fromkeys(("pattern", "format", "$ref"), _is_text),
        **dict.fromkeys(("enum", "prefixItems", "anyOf", "oneOf", "allOf"), _is_list),
        **dict.fromkeys(SCHEMA_MAPS, lambda value: isinstance(value, dict)),
        **dict.fromkeys(("additionalItems", "additionalProperties"), _is_schema),
    }
)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _with_schemas(schema: Schema) -> Schema:
    """Any value where a schema should stand and something else does."""

    def checked(inner: Any) -> Any:
        return inner if isinstance(inner, dict | bool) else {}

    result = dict(schema)
    for key, value in schema.items():
        if key in SCHEMA_MAPS:
            result[key] = {name: checked(inner) for name, inner in value.items()}
        elif key in SCHEMA_LISTS and isinstance(value, list):
            result[key] = [checked(inner) for inner in value]
    return result


def _or_null(schema: Schema) -> Schema:
    """The schema or null, as OpenAPI's `nullable` has it."""
    null = {"type": "null"}
    if "allOf" in schema or "$ref" in schema:
        definitions = {key: value for key, value in schema.items() if key in DEFINITIONS}
        return {**definitions, "anyOf": [{key: value for key, value in schema.items() if key not in definitions}, null]}
    changed = dict(schema)
    if "const" in schema:
        values = [changed.pop("const")]
        changed["enum"] = [value for value in schema.get("enum", values) if value in values]
    if "enum" in changed:
        changed["enum"] = [*changed["enum"], *([] if None in changed["enum"] else [None])]
    if "type" in schema:
        changed["type"] = list(dict.fromkeys([*_listed(schema["type"]), "null"]))
    return changed | {key: [*schema[key], null] for key in ("anyOf", "oneOf") if key in schema}
