"""From the form and the `tools` of a chat to the grammar that its answer must match and the parser that finds its tool calls.

Knows no engine, and of the tokenizer only how the model's chat template writes tool calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from app.engine.request import ThoughtLimit
from app.errors import InvalidRequest
from app.forms.parser import ToolCallParser
from app.forms.splitter import Splitter
from app.forms.tools import Calls, ToolFormat, ToolsUnsupported
from app.schemas import ChatRequest, CompletionRequest, NamedTool, Tool
from app.schemas.messages import AllowedToolChoice, Schema
from app.tokenizer import Tokenizer
from serve.wire.forms import Form, check_fields, form_of
from serve.wire.signatures import signatures_of
from serve.wire.thought import Thought, limit_of


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
    left_out: tuple[str, ...] = ()  # paths of what the grammar does not enforce

    def thought_splitter(self) -> Splitter | None:
        return None if self.thought is None else self.thought.splitter(self.tool_format is not None)

    def tool_call_parser(self) -> ToolCallParser | None:
        return None if self.tool_format is None else ToolCallParser(self.tool_format, self.must_call, self.tools, self.or_form)


def visible_tools(body: ChatRequest) -> list[Tool] | None:
    """The tools that the prompt describes to the model."""
    return None if body.tool_choice == "none" else body.tools or None


def structured_output_of(body: ChatRequest, tokenizer: Tokenizer, thought: Thought | None) -> StructuredOutput:
    """What follows a thought has the form that the request asks for. Raises `InvalidRequest`, naming the field, for what cannot be done."""
    _check_tools(body)
    tools, form = visible_tools(body), form_of(body)
    if tools is not None:
        structured = _tool_call_output(body, tools, form, tokenizer, thought)
    elif form is not None:
        grammar = form.grammar if thought is None else thought.format.form_grammar(form.grammar, tokenizer.added_tokens, thought.place)
        structured = StructuredOutput(grammar)
    else:
        structured = StructuredOutput()
    if structured.grammar is not None:
        check_fields(body, "tools" if form is None or tools is not None else form.field)
    return replace(structured, thought=thought, thought_limit=limit_of(body, thought, tokenizer))


def completion_output(body: CompletionRequest) -> StructuredOutput:
    """A completion has neither tools nor a thought. Raises `InvalidRequest`, naming the field."""
    form = form_of(body)
    if form is None:
        return StructuredOutput()
    check_fields(body, form.field)
    return StructuredOutput(form.grammar)


def _tool_call_output(
    body: ChatRequest, tools: Sequence[Tool], form: Form | None, tokenizer: Tokenizer, thought: Thought | None
) -> StructuredOutput:
    format = tokenizer.chat.tool_format
    if isinstance(format, ToolsUnsupported):
        raise InvalidRequest(f"tools: {format.reason}", param="tools", code="unsupported_parameter")
    mode, allowed = _choice_of(body)
    if form is not None and not form.is_json:
        raise InvalidRequest(
            f"{form.field} cannot be combined with tools, unless tool_choice is none or the form is JSON", param=form.field
        )
    if form is not None and mode == "auto" and format.begins_like_json:
        message = (
            f"{form.field} cannot be combined with tools here, unless tool_choice is none: this model writes calls that begin like JSON"
        )
        raise InvalidRequest(message, param=form.field)
    functions = {place: tool.function for place, tool in enumerate(tools) if allowed is None or tool.function.name in allowed.values()}
    signatures = signatures_of(functions, format, None if form is None else form.schema)
    must_call = mode != "auto"
    parallel = body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedTool)  # a named function is called once
    calls = Calls(format, signatures.schemas, must_call, parallel, None if form is None else form.grammar)
    grammar = calls.grammar() if thought is None else thought.format.calls_grammar(calls, tokenizer.added_tokens, thought.place)
    or_form = form is not None and not must_call
    return StructuredOutput(grammar, format, must_call, or_form, signatures.schemas, left_out=signatures.left_out)


def _choice_of(body: ChatRequest) -> tuple[str, dict[str, str] | None]:
    """none, auto or required, and the names of the tools that may be called, by the paths of the fields that name them; None: all."""
    choice = body.tool_choice or "auto"
    if isinstance(choice, NamedTool):
        return "required", {"tool_choice.function.name": choice.function.name}
    if isinstance(choice, AllowedToolChoice):
        path = "tool_choice.allowed_tools.tools"
        named = enumerate(choice.allowed_tools.tools)
        return choice.allowed_tools.mode, {f"{path}.{place}.function.name": tool.function.name for place, tool in named}
    return choice, None


def _check_tools(body: ChatRequest) -> None:
    names = [tool.function.name for tool in body.tools or ()]
    mode, allowed = _choice_of(body)
    if not body.tools and (mode == "required" or allowed is not None):
        raise InvalidRequest("tool_choice needs tools", param="tool_choice")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequest(f"two tools have the name '{name}'", param=f"tools.{index}.function.name")
    for param, name in (allowed or {}).items():
        if name not in names:
            raise InvalidRequest(f"tool_choice names '{name}', which is not one of the tools", param=param)
