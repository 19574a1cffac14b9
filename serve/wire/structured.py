"""From `response_format` and `tools` of a chat to the grammar that its answer must match and the parser that finds its tool calls.

Knows no engine, and of the tokenizer only how the model's chat template writes tool calls.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from app.engine.request import ThoughtLimit
from app.errors import InvalidRequest
from app.forms.grammar import json_grammar
from app.forms.parameters import parameters_problem
from app.forms.parser import ToolCallParser
from app.forms.splitter import Splitter
from app.forms.tools import Calls, ToolFormat, ToolsUnsupported
from app.forms.validation import combined_problem, schema_problem
from app.schemas import ChatRequest, NamedTool, Tool
from app.schemas.messages import Schema
from app.tokenizer import Tokenizer
from serve.wire.thought import Thought, limit_of

# Each of these bans or forces tokens, or ends the answer, whatever the grammar requires at that point.
INCOMPATIBLE_FIELDS = ("bad_words", "min_tokens", "ignore_eos", "stop_token_ids", "allowed_token_ids")
MAX_CACHED_SCHEMAS = 256
MAX_CACHED_SCHEMA_CHARS = 65_536  # longer schemas are checked anew each time


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """What constrains an answer, and how its tool calls are read."""

    grammar: str | None = None  # None: the answer is unconstrained
    tool_format: ToolFormat | None = None  # how the model writes tool calls; None: it has no tools
    must_call: bool = False  # the answer consists of tool calls only
    or_form: bool = False  # it consists of tool calls or of a JSON value
    tools: Mapping[str, Schema] = field(default_factory=dict)  # that may be called, with the schemas of their arguments
    thought: Thought | None = None  # what may come before the answer
    thought_limit: ThoughtLimit | None = None

    def thought_splitter(self) -> Splitter | None:
        return None if self.thought is None else self.thought.format.splitter(self.thought.place, self.tool_format is not None)

    def tool_call_parser(self) -> ToolCallParser | None:
        return None if self.tool_format is None else ToolCallParser(self.tool_format, self.must_call, self.tools, self.or_form)


def visible_tools(body: ChatRequest) -> list[Tool] | None:
    """The tools that the prompt describes to the model."""
    return None if body.tool_choice == "none" else body.tools or None


def structured_output_of(body: ChatRequest, tokenizer: Tokenizer, thought: Thought | None) -> StructuredOutput:
    """What follows a thought has the form that the request asks for. Raises `InvalidRequest`, naming the field, for what cannot be done."""
    _check_tools(body)
    tools = visible_tools(body)
    structured = _json_output(body, tokenizer, thought) if tools is None else _tool_call_output(body, tools, tokenizer, thought)
    if structured.grammar is not None:
        cause = "response_format" if tools is None else "tools"
        for field in INCOMPATIBLE_FIELDS:
            if getattr(body, field):
                raise InvalidRequest(f"{field} cannot be combined with {cause}: a grammar decides which tokens may follow", param=field)
    return replace(structured, thought=thought, thought_limit=limit_of(body, thought, tokenizer))


def _form_of(body: ChatRequest) -> str | None:
    """The grammar of `response_format`; None for any text."""
    format = body.response_format
    if format is None or format.type == "text":
        return None
    path, schema = format.enforced or ("", None)
    if schema is not None:
        _check_schema(schema, f"response_format.{path}")
    return json_grammar(schema)


def _json_output(body: ChatRequest, tokenizer: Tokenizer, thought: Thought | None) -> StructuredOutput:
    grammar = _form_of(body)
    if grammar is None:
        return StructuredOutput()
    return StructuredOutput(grammar if thought is None else thought.format.form_grammar(grammar, tokenizer.added_tokens, thought.place))


def _tool_call_output(body: ChatRequest, tools: Sequence[Tool], tokenizer: Tokenizer, thought: Thought | None) -> StructuredOutput:
    format = tokenizer.chat.tool_format
    if isinstance(format, ToolsUnsupported):
        raise InvalidRequest(f"tools: {format.reason}", param="tools", code="unsupported_parameter")
    choice, form = body.tool_choice or "auto", _form_of(body)
    if form is not None and choice == "auto" and format.begins_like_json:
        message = (
            "response_format cannot be combined with tools here, unless tool_choice is none: this model writes calls that begin like JSON"
        )
        raise InvalidRequest(message, param="response_format")
    name = choice.function.name if isinstance(choice, NamedTool) else None
    callable_functions = [tool.function for tool in tools if name in {None, tool.function.name}]
    own = None if form is None or body.response_format is None else body.response_format.enforced
    problem = combined_problem([*(tool.function.arguments for tool in tools), *([] if own is None or own[1] is None else [own[1]])])
    if problem is not None:
        raise InvalidRequest(f"tools: {problem}", param="tools", code="unsupported_schema")
    for index, tool in enumerate(tools):
        param = f"tools.{index}.function.parameters"
        _check_schema(tool.function.arguments, param)
        problem = None if format.parameters is None else parameters_problem(tool.function.arguments)
        if problem is not None:
            raise InvalidRequest(f"{param} cannot be enforced exactly: {problem}", param=param, code="unsupported_schema")
    schemas = {function.name: function.arguments for function in callable_functions}
    must_call = choice != "auto"
    parallel = body.parallel_tool_calls is not False and name is None  # a named function is called once
    calls = Calls(format, schemas, must_call, parallel, form)
    grammar = calls.grammar() if thought is None else thought.format.calls_grammar(calls, tokenizer.added_tokens, thought.place)
    return StructuredOutput(grammar, format, must_call, form is not None and not must_call, schemas)


def _check_tools(body: ChatRequest) -> None:
    names = [tool.function.name for tool in body.tools or ()]
    if not body.tools and body.tool_choice not in {None, "none", "auto"}:
        raise InvalidRequest("tool_choice needs tools", param="tool_choice")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequest(f"two tools have the name '{name}'", param=f"tools.{index}.function.name")
    if isinstance(body.tool_choice, NamedTool) and body.tool_choice.function.name not in names:
        raise InvalidRequest(
            f"tool_choice names '{body.tool_choice.function.name}', which is not one of the tools", param="tool_choice.function.name"
        )


@lru_cache(MAX_CACHED_SCHEMAS)
def _cached_problem(schema: str) -> str | None:
    return schema_problem(json.loads(schema))


def _check_schema(schema: Schema, param: str) -> None:
    text = json.dumps(schema)
    problem = _cached_problem(text) if len(text) <= MAX_CACHED_SCHEMA_CHARS else schema_problem(schema)
    if problem is not None:
        raise InvalidRequest(f"{param} cannot be enforced exactly: {problem}", param=param, code="unsupported_schema")
