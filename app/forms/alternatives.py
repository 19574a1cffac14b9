"""Whether the alternatives of a `oneOf` exclude one another, so that an `anyOf` says the same.

    are_disjoint(alternatives: Sequence[Schema], parts: Mapping[str, Schema]) -> bool    `parts`: all of the schema by their JSON pointers

False where it cannot be told. They exclude one another by their types, by their values, or by the values of a property that objects
of both need, such as a discriminator. References and `allOf` are followed, so that neither has to be written out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, islice
from typing import Any

Schema = dict[str, Any]
Value = tuple[str, object]  # of JSON: its type, and what it is
MAX_ALTERNATIVES = 256  # of one `oneOf`, those within its alternatives included: each is compared with each
UNIONS = ("anyOf", "oneOf")
TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})
JSON_TYPES = {bool: "boolean", int: "number", float: "number", str: "string", type(None): "null"}
BESIDE_A_UNION = frozenset({"title", "description", "default", "discriminator", "$defs", "definitions", "examples"})  # and restrict nothing


@dataclass(frozen=True, slots=True)
class Outline:
    """What tells an alternative from others."""

    types: frozenset[str]
    values: frozenset[Value] | None  # None: any
    needed: Mapping[str, frozenset[Value]]  # properties of every object, each with the values that it may have

    def excludes(self, other: "Outline") -> bool:
        common = self.types & other.types
        if not common or (self.values is not None and other.values is not None and not self.values & other.values):
            return True
        return common == {"object"} and any(not self.needed[name] & other.needed[name] for name in self.needed.keys() & other.needed.keys())


def are_disjoint(alternatives: Sequence[Any], parts: Mapping[str, Schema]) -> bool:
    flat = [*islice((inner for each in alternatives for inner in _flat(each, parts, frozenset())), MAX_ALTERNATIVES + 1)]
    if len(flat) > MAX_ALTERNATIVES or not all(isinstance(each, dict) for each in flat):
        return False
    outlines = [_outline(each, parts) for each in flat]
    return all(one.excludes(other) for one, other in combinations(outlines, 2))


def _flat(schema: Any, parts: Mapping[str, Schema], followed: frozenset[str]) -> Iterator[Any]:
    """The alternatives of an alternative that is nothing but a choice itself; otherwise the schema."""
    keywords = schema.keys() - BESIDE_A_UNION if isinstance(schema, dict) else set()
    if keywords == {"$ref"} and (pointer := _pointer(schema)) in parts and pointer not in followed:
        yield from _flat(parts[pointer], parts, followed | {pointer})
    elif len(keywords) == 1 and isinstance(inside := schema.get(next(iter(keywords))), list) and not keywords.isdisjoint(UNIONS):
        for inner in inside:
            yield from _flat(inner, parts, followed)
    else:
        yield schema


def _outline(schema: Schema, parts: Mapping[str, Schema]) -> Outline:
    together = [*_together(schema, parts)]
    types = reduce(frozenset.intersection, map(_types, together), TYPES)
    names = {name for each in together if isinstance(each.get("required"), list) for name in each["required"] if isinstance(name, str)}
    needed = dict[str, frozenset[Value]]()
    for each in together:
        properties = each["properties"] if isinstance(each.get("properties"), dict) else {}
        for name in names & properties.keys():
            values = _common_values([*_together(properties[name], parts)])
            if values is not None:
                needed[name] = needed.get(name, values) & values
    return Outline(types, _common_values(together), needed)


def _together(schema: Any, parts: Mapping[str, Schema]) -> Iterator[Schema]:
    """The schema and those that a value has to conform to beside it, by `$ref` and `allOf`, each once."""
    waiting, followed = [schema], set[str]()
    while waiting:
        each = waiting.pop()
        if not isinstance(each, dict):
            continue
        yield each
        waiting += each["allOf"] if isinstance(each.get("allOf"), list) else []
        if (pointer := _pointer(each)) in parts and pointer not in followed:
            followed.add(pointer)
            waiting.append(parts[pointer])


def _pointer(schema: Schema) -> str:
    target = schema.get("$ref")
    return target[1:] if isinstance(target, str) and target.startswith("#") else "none"


def _types(schema: Schema) -> frozenset[str]:
    names = schema.get("type", [*TYPES])
    names = frozenset("number" if name == "integer" else name for name in (names if isinstance(names, list) else [names]))
    values = _values(schema)
    return names if values is None else names & {type for type, _ in values}


def _common_values(schemas: Sequence[Schema]) -> frozenset[Value] | None:
    found = [values for values in map(_values, schemas) if values is not None]
    return reduce(frozenset.intersection, found) if found else None


def _values(schema: Schema) -> frozenset[Value] | None:
    """Those of `const` or `enum`; None without, and where one of them is a list or an object."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or not all(type(value) in JSON_TYPES for value in values):
        return None
    return frozenset((JSON_TYPES[type(value)], value) for value in values)
