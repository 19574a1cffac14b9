"""The form of an answer: JSON that keeps to a schema, or calls of tools. From the body to a grammar, and what reads the text.

Knows no engine and no tokenizer but its template's way of writing calls.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from app.errors import InvalidRequest
from app.forms.grammar import json_grammar
from app.forms.parser import Reader
from app.forms.tools import Format, NoTools
from app.forms.validation import crowded, fault
from app.schemas import ChatRequest, NamedTool, Tool
from app.schemas.messages import Schema
from app.tokenizer import Tokenizer

ALONE = ("bad_words", "min_tokens", "ignore_eos", "stop_token_ids")  # each decides by itself over tokens that the form needs
KEPT, LONG = 256, 65_536  # verdicts on schemas that are kept, and characters of a schema that is not worth keeping


@dataclass(frozen=True, slots=True)
class Form:
    grammar: str | None = None  # None: anything may be said
    calls: Format | None = None  # how the model writes calls, where it may
    forced: bool = False  # nothing but calls may be said

    def reader(self) -> Reader | None:
        return None if self.calls is None else Reader(self.calls, self.forced)


def shown(body: ChatRequest) -> list[Tool] | None:
    """The tools that the model is told of."""
    return None if body.tool_choice == "none" else body.tools


def form_of(body: ChatRequest, tokenizer: Tokenizer) -> Form:
    """Raises `InvalidRequest` for what cannot be done, by the field's name."""
    _check_tools(body)
    tools = shown(body)
    form = _json(body) if tools is None else _calls(body, tools, tokenizer)
    if form.grammar is not None:
        cause = "response_format" if tools is None else "tools"
        for field in ALONE:
            if getattr(body, field):
                raise InvalidRequest(f"{field} does not go with {cause}: the form decides which tokens may come", param=field)
    return form


def _json(body: ChatRequest) -> Form:
    asked = body.response_format
    if asked is None or asked.type == "text":
        return Form()
    if asked.json_schema is None or asked.json_schema.schema_ is None:
        return Form(json_grammar(None))
    _check(asked.json_schema.schema_, "response_format.json_schema.schema")
    return Form(json_grammar(asked.json_schema.schema_))


def _calls(body: ChatRequest, tools: Sequence[Tool], tokenizer: Tokenizer) -> Form:
    format = tokenizer.calls
    if isinstance(format, NoTools):
        raise InvalidRequest(f"tools: {format.reason}", param="tools", code="unsupported_parameter")
    if body.response_format is not None and body.response_format.type != "text":
        raise InvalidRequest("response_format does not go with tools unless tool_choice is none", param="response_format")
    choice = body.tool_choice or "auto"
    name = choice.function.name if isinstance(choice, NamedTool) else None
    picked = [tool.function for tool in tools if name in {None, tool.function.name}]
    crowd = crowded([tool.function.arguments for tool in tools])
    if crowd is not None:
        raise InvalidRequest(f"tools: {crowd}", param="tools", code="unsupported_schema")
    for index, tool in enumerate(tools):
        _check(tool.function.arguments, f"tools.{index}.function.parameters")
    given = {function.name: function.arguments for function in picked}
    forced = choice != "auto"
    grammar = format.grammar(given, forced, body.parallel_tool_calls is not False)
    return Form(grammar, format, forced)


def _check_tools(body: ChatRequest) -> None:
    names = [tool.function.name for tool in body.tools or ()]
    for field in ("tool_choice", "parallel_tool_calls"):
        if getattr(body, field) is not None and body.tools is None:
            raise InvalidRequest(f"{field} needs tools", param=field)
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequest(f"two tools have the name '{name}'", param=f"tools.{index}.function.name")
    if isinstance(body.tool_choice, NamedTool) and body.tool_choice.function.name not in names:
        raise InvalidRequest(f"tool_choice: '{body.tool_choice.function.name}' is none of the tools", param="tool_choice.function.name")


@lru_cache(KEPT)
def _fault(schema: str) -> str | None:
    return fault(json.loads(schema))


def _check(schema: Schema, param: str) -> None:
    text = json.dumps(schema)
    wrong = _fault(text) if len(text) <= LONG else fault(schema)
    if wrong is not None:
        raise InvalidRequest(f"{param} cannot be enforced to the letter: {wrong}", param=param, code="unsupported_schema")
