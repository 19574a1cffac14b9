"""From the fields of a chat or a completion that give the answer a form to the grammar that its answer must match.

    form_of(body) -> Form | None                        None: any text
    check_fields(body, cause)                           refuses fields that a grammar leaves no room for
    check_schema(schema, param)                         refuses a schema that cannot be enforced exactly

All raise `InvalidRequest`, naming the field. Knows no tools, no engine and no tokenizer.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from app.errors import InvalidRequest
from app.forms.grammar import json_grammar
from app.forms.lark import FormRefused, choice_grammar, regex_grammar, written_grammar
from app.forms.validation import schema_problem
from app.schemas import SamplingFields
from app.schemas.forms import FormFields
from app.schemas.messages import Schema

# Each of these bans or forces tokens, or ends the answer, whatever the grammar requires at that point.
INCOMPATIBLE_FIELDS = ("bad_words", "min_tokens", "ignore_eos", "stop_token_ids", "allowed_token_ids")
MAX_CACHED_SCHEMAS = 256
MAX_CACHED_SCHEMA_CHARS = 65_536  # longer schemas, and other forms, are checked anew each time
WRITERS: dict[str, Callable[[Any], str]] = {"regex": regex_grammar, "choice": choice_grammar, "grammar": written_grammar}


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a whole answer."""

    grammar: str
    field: str  # of the body that asks for it
    is_json: bool = True
    schema: Schema | None = None  # of a JSON value; None: any object, or no JSON


def form_of(body: FormFields) -> Form | None:
    fields = body.forms
    if not fields:
        return None
    if len(fields) > 1:
        raise InvalidRequest(f"{fields[1]} cannot be combined with {fields[0]}: each gives the answer a form", param=fields[1])
    (field,) = fields
    value: Any = getattr(body, field)
    if field == "response_format":
        path, schema = value.enforced or ("", None)
        return _json_form(field, schema, f"{field}.{path}")
    if field == "structured_outputs":
        ((kind, value),) = value.given.items()
        param = f"{field}.{kind}"
    else:
        kind, param = field.removeprefix("guided_").replace("json_schema", "json"), field
    if kind in WRITERS:
        return Form(_written(kind, value, param), field, is_json=False)
    return _json_form(field, None if kind == "json_object" else _schema_of(value, param), param)


def check_fields(body: SamplingFields, cause: str) -> None:
    for field in INCOMPATIBLE_FIELDS:
        if getattr(body, field):
            raise InvalidRequest(f"{field} cannot be combined with {cause}: a grammar decides which tokens may follow", param=field)


def check_schema(schema: Schema, param: str) -> None:
    text = json.dumps(schema)
    problem = _cached_problem(text) if len(text) <= MAX_CACHED_SCHEMA_CHARS else schema_problem(schema)
    if problem is not None:
        raise InvalidRequest(f"{param} cannot be enforced exactly: {problem}", param=param, code="unsupported_schema")


def _json_form(field: str, schema: Schema | None, param: str) -> Form:
    if schema is not None:
        check_schema(schema, param)
    return Form(json_grammar(schema), field, schema=schema)


def _schema_of(value: Schema | str, param: str) -> Schema:
    if isinstance(value, dict):
        return value
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{param} is no JSON schema: it must be an object, or a text that is one", param=param)
    return schema


def _written(kind: str, value: str | list[str], param: str) -> str:
    text = value if isinstance(value, str) else tuple(value)
    is_short = len(value if isinstance(value, str) else "".join(value)) <= MAX_CACHED_SCHEMA_CHARS
    grammar, problem = _cached_grammar(kind, text) if is_short else _grammar(kind, text)
    if problem is not None:
        raise InvalidRequest(f"{param} cannot be enforced: {problem}", param=param, code="unsupported_form")
    return grammar


def _grammar(kind: str, text: str | tuple[str, ...]) -> tuple[str, str | None]:
    """The grammar, and why it is none."""
    try:
        return WRITERS[kind](text), None
    except FormRefused as error:
        return "", error.reason


_cached_grammar = lru_cache(MAX_CACHED_SCHEMAS)(_grammar)


@lru_cache(MAX_CACHED_SCHEMAS)
def _cached_problem(schema: str) -> str | None:
    return schema_problem(json.loads(schema))
