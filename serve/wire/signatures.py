"""The schemas of tools' arguments as a grammar enforces them.

    signatures_of(functions, format, form) -> Signatures    raises `InvalidRequest`, naming the field

With `strict` a schema is enforced exactly or refused; without, what cannot be enforced is left out, and named. Knows no engine and no body.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from app.errors import InvalidRequest
from app.forms.grammar import ANY_OBJECT
from app.forms.parameters import parameters_problem, written_one_by_one
from app.forms.relaxed import Relaxed, relaxed
from app.forms.tools import ToolFormat
from app.forms.validation import combined_problem
from app.schemas import Function
from app.schemas.messages import Schema
from serve.wire.forms import MAX_CACHED_SCHEMA_CHARS, MAX_CACHED_SCHEMAS, check_schema


@dataclass(frozen=True, slots=True)
class Signatures:
    schemas: Mapping[str, Schema]  # of the arguments, by the names of tools
    left_out: tuple[str, ...]  # paths of fields and keywords that are not enforced


def signatures_of(functions: Mapping[int, Function], format: ToolFormat, form: Schema | None) -> Signatures:
    """`functions` are by their places in the list of tools; `form` is a schema that the grammar has to hold as well."""
    found = {place: _signature(function, _param(place), format) for place, function in functions.items()}
    if format.parameters is None:
        found = _together(found, functions, form)
    problem = combined_problem([*(each.schema for each in found.values()), *([] if form is None else [form])])
    if problem is not None:
        raise InvalidRequest(f"tools: {problem}", param="tools", code="unsupported_schema")
    names = (_param(place) + _path(pointer) for place, each in found.items() for pointer in each.left_out)
    return Signatures({functions[place].name: each.schema for place, each in found.items()}, tuple(names))


def _param(place: int) -> str:
    return f"tools.{place}.function.parameters"


def _path(pointer: str) -> str:
    """A JSON pointer as a path of fields."""
    return pointer.replace("/", ".").replace("~1", "/").replace("~0", "~")


def _signature(function: Function, param: str, format: ToolFormat) -> Relaxed:
    schema = Relaxed(function.arguments)
    if function.strict:
        check_schema(schema.schema, param)
    else:
        text = json.dumps(schema.schema)
        schema = _cached(text) if len(text) <= MAX_CACHED_SCHEMA_CHARS else relaxed(schema.schema)
    if format.parameters is not None:
        if not function.strict:
            written, left_out = written_one_by_one(schema.schema)
            schema = Relaxed(written, (*schema.left_out, *left_out))
        problem = parameters_problem(schema.schema)
        if problem is not None:
            raise InvalidRequest(f"{param} cannot be enforced exactly: {problem}", param=param, code="unsupported_schema")
    return schema


@lru_cache(MAX_CACHED_SCHEMAS)
def _cached(schema: str) -> Relaxed:
    return relaxed(json.loads(schema))


def _together(found: Mapping[int, Relaxed], functions: Mapping[int, Function], form: Schema | None) -> dict[int, Relaxed]:
    """Where all are too much together, the largest that are not strict take any object."""
    result = dict(found)
    sizes = {place: len(json.dumps(each.schema)) for place, each in found.items() if not functions[place].strict}
    for place in sorted(sizes, key=lambda place: sizes[place], reverse=True):
        problem = combined_problem([*(each.schema for each in result.values()), *([] if form is None else [form])])
        if problem is None:
            break
        if "multipleOf" not in problem or '"multipleOf"' in json.dumps(result[place].schema):
            result[place] = Relaxed(ANY_OBJECT, (*result[place].left_out, ""))
    return result
