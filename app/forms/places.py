"""Where in a JSON schema lies what llguidance refuses.

with_place(problem, schema) -> str                  what it says of the innermost part that it refuses, with its place
refused_place(schema, compiles) -> str              the pointer of the innermost part that does not compile, though the parts in it do
part_alone(schema, pointer) -> tuple[Schema, int]   a part with all that it refers to, as a schema, and its number of subschemas
depth_of(schema) -> int                             steps of its longest JSON pointer
"""

from collections.abc import Callable

from app.forms.grammar import Schema, child_schemas, json_grammar, mapped, subschemas
from app.forms.trial import grammar_problem

MAX_DEPTH = 128  # steps of a JSON pointer: llguidance reads no deeper JSON
DEEPER = 4  # steps more of a schema that is moved into another one
MAX_TRIED = 4000  # subschemas compiled to find a place, about 0.1 ms each


def depth_of(schema: Schema) -> int:
    return max(pointer.count("/") for pointer, _ in subschemas(schema))


def with_place(problem: str, schema: Schema) -> str:
    problems, left = {"": problem}, MAX_TRIED

    def compiles(pointer: str) -> bool:
        nonlocal left
        part, size = part_alone(schema, pointer)
        left -= size
        if left > 0 and (inner := grammar_problem(json_grammar(part))) is not None:
            problems[pointer] = inner
        return pointer not in problems

    place = refused_place(schema, compiles) if depth_of(schema) + DEEPER <= MAX_DEPTH else ""
    return f"{problems[place]} (at #{place})"


def refused_place(schema: Schema, compiles: Callable[[str], bool]) -> str:
    parts, seen, place = dict(subschemas(schema)), set[str](), ""
    while place not in seen:
        seen.add(place)
        inner = parts[place]
        inside = [f"{place}/{step}" for step, _ in child_schemas(inner) if not step.startswith(("$defs/", "definitions/"))]
        inside += [str(inner["$ref"]).removeprefix("#")] if "$ref" in inner else []
        candidates = (part for part in inside if part in parts and part not in seen)
        place = next((part for part in candidates if not compiles(part)), place)
    return place


def part_alone(schema: Schema, pointer: str) -> tuple[Schema, int]:
    def refer(_: str, inner: Schema) -> Schema:
        return {**inner, "$ref": f"#/$defs/whole{inner['$ref'][1:]}"} if isinstance(inner.get("$ref"), str) else inner

    moved = mapped(schema, refer)
    parts = dict(subschemas(moved))
    return {"$ref": "#/$defs/part", "$defs": {"part": parts[pointer], "whole": moved}}, len(parts)
