"""From the body of /v1/responses to the chat request that means the same, and from that chat's errors back to the names of the body.

Knows neither the router nor the answer.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.errors import InvalidRequest
from app.schemas import ChatRequest, FunctionCall, Message, NamedTool, ResponseFormat, SamplingFields, Tool, ToolCall, ToolChoice
from app.schemas.items import FunctionCallItem, FunctionCallOutput, InputMessage, Item, ReasoningItem, full_name, text_of
from app.schemas.messages import MAX_TOOLS, AllowedToolChoice, AllowedTools, NamedFunction, NamedSchema
from app.schemas.responses import LOGPROBS, AllowedFunctionTools, NamedFunctionTool, ResponsesRequest, SchemaFormat
from app.schemas.thought import Reasoning
from serve.wire.ignored import ignore
from serve.wire.namespaces import functions_of, hosted_of

MAX_CALLS = 128  # in one message of a chat
# Fields that a chat has as well, under the same name and with the same meaning.
SHARED = frozenset(SamplingFields.model_fields) - {"n", "stream_options"} | {"parallel_tool_calls", "metadata"}
NO_BACKGROUND = "background: the answer is computed while its client waits; leave it out or send false"
NOT_RUN = "only tools of type 'function', also in namespaces, are served"
# Names of a chat in the messages of its errors, and the same fields of a response.
RENAMED = (
    (re.compile(r"\btool_choice\.allowed_tools\.tools\.(\d+)\.function\b"), r"tool_choice.tools.\1"),
    (re.compile(r"\btool_choice\.function\b"), "tool_choice"),
    (re.compile(r"\bresponse_format(\.json_schema)?\b"), "text.format"),
    (re.compile(r"\bmax_tokens\b"), "max_output_tokens"),
)
TOOL = re.compile(r"\btools\.(\d+)\.function\b")
MESSAGE = re.compile(r"\bmessages\.(\d+)(\.tool_calls\.\d+\.function|\.tool_calls\.\d+)?(\.content|\.tool_call_id)?\b")


@dataclass(slots=True)
class Conversation:
    """The messages that the items of an input make, and where each of them, of their tool calls and of the tools stands in the body."""

    messages: list[Message] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)  # `messages.2.tool_calls.0`: `input.4`
    tools: list[str] = field(default_factory=list)  # of the chat: the second one may be `tools.4`

    def add(self, item: Item, path: str) -> None:
        if isinstance(item, InputMessage):
            self._append(Message(role=item.role, content=text_of(item.content)), path)
        elif isinstance(item, FunctionCallItem):
            self._add_call(item, path)
        elif isinstance(item, FunctionCallOutput):
            self._append(Message(role="tool", content=text_of(item.output), tool_call_id=item.call_id), path)

    def _append(self, message: Message, path: str) -> None:
        self.paths[f"messages.{len(self.messages)}"] = path
        self.messages.append(message)

    def _add_call(self, item: FunctionCallItem, path: str) -> None:
        """To the message of the assistant before it, if there is one."""
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != "assistant" or len(last.tool_calls or ()) == MAX_CALLS:
            last = Message(role="assistant", content=None)
            self._append(last, path)
        calls = last.tool_calls or []
        self.paths[f"messages.{len(self.messages) - 1}.tool_calls.{len(calls)}"] = path
        call = ToolCall(id=item.call_id, function=FunctionCall(name=full_name(item.name, item.namespace), arguments=item.arguments))
        self.messages[-1] = last.model_copy(update={"tool_calls": [*calls, call]})

    def renamed(self, text: str) -> str:
        """A sentence or the path of a field in the names of the body."""
        for pattern, name in RENAMED:
            text = pattern.sub(name, text)
        text = TOOL.sub(lambda found: self.tools[int(found[1])], text)
        return MESSAGE.sub(self._path, text)

    def keyword(self, path: str) -> str:
        """The path of a keyword in a tool's schema."""
        tool, parameters, inner = path.partition(".parameters")
        return self.renamed(tool) + parameters + inner

    def _path(self, found: re.Match[str]) -> str:
        message, call, field = int(found[1]), found[2] or "", found[3] or ""
        path = self.paths[f"messages.{message}{call.removesuffix('.function')}"]
        if field == ".content":
            field = ".output" if self.messages[message].role == "tool" else ".content" if path.startswith("input.") else ""
        return path + field.replace(".tool_call_id", ".call_id")


def conversation_of(body: ResponsesRequest) -> Conversation:
    """Raises `InvalidRequest` for an input without anything that the model would see."""
    conversation = Conversation(tools=[served.path for served in functions_of(body)])
    if body.instructions:
        conversation.add(InputMessage(role="system", content=body.instructions), "instructions")
    if isinstance(body.input, str):
        conversation.add(InputMessage(role="user", content=body.input), "input")
    else:
        if all(isinstance(item, ReasoningItem) for item in body.input):
            raise InvalidRequest("input has no message: items of type 'reasoning' are not shown to the model", param="input")
        for index, item in enumerate(body.input):
            conversation.add(item, f"input.{index}")
    return conversation


def chat_of(body: ResponsesRequest, conversation: Conversation) -> ChatRequest:
    """The chat request that has the same answer. Raises `InvalidRequest`, naming the field, for what a chat cannot do."""
    _check(body)
    _leave_out(body)
    fields = body.model_dump(include=set(SHARED), exclude_none=True)
    return ChatRequest(
        **fields,
        messages=conversation.messages,
        max_tokens=body.max_output_tokens,
        logprobs=lists_logprobs(body) or None,
        top_logprobs=body.top_logprobs if lists_logprobs(body) else None,
        response_format=_response_format(body),
        tools=[Tool(type="function", function=served.function) for served in functions_of(body)] or None,
        tool_choice=_tool_choice(body),
        reasoning=None if body.reasoning is None else Reasoning(**body.reasoning.model_dump(include=set(Reasoning.model_fields))),
    )


def lists_logprobs(body: ResponsesRequest) -> bool:
    return LOGPROBS in (body.include or ()) or bool(body.top_logprobs)


@contextmanager
def names_of_the_body(conversation: Conversation) -> Iterator[None]:
    """Errors about the chat request become errors about the body that it was made of."""
    try:
        yield
    except InvalidRequest as error:
        param = "input" if error.param == "messages" else error.param and conversation.renamed(error.param)
        raise type(error)(conversation.renamed(error.message), param=param, code=error.code) from error


def _check(body: ResponsesRequest) -> None:
    if body.background:
        raise InvalidRequest(NO_BACKGROUND, param="background", code="unsupported_parameter")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    functions = functions_of(body)
    if len(functions) > MAX_TOOLS:
        raise InvalidRequest(f"tools: these are {len(functions)} functions with those of namespaces; at most {MAX_TOOLS}", param="tools")
    if lists_logprobs(body) and functions and body.tool_choice != "none":
        param = "include" if LOGPROBS in (body.include or ()) else "top_logprobs"
        raise InvalidRequest(
            f"{param} cannot be combined with tools unless tool_choice is none: calls have no log-probabilities", param=param
        )


def _leave_out(body: ResponsesRequest) -> None:
    """What asks for something that no answer of this server has, and that a client can do without."""
    for path, type in hosted_of(body).items():
        ignore(f"{path}[{type}]", NOT_RUN)
    for index, included in enumerate(body.include or ()):
        if included != LOGPROBS:
            ignore(f"include.{index}[{included}]", "no answer of this server has it")
    for name in ("summary", "generate_summary"):
        if body.reasoning is not None and getattr(body.reasoning, name) is not None:
            ignore(f"reasoning.{name}", "a thought is returned as it is")
    if body.text is not None and body.text.verbosity not in {None, "medium"}:
        ignore("text.verbosity", "the conversation says how long an answer should be")
    if body.store:
        ignore("store", "this server stores no responses")
    if body.truncation == "auto":
        ignore("truncation", "input that does not fit is refused, never cut")


def _response_format(body: ResponsesRequest) -> ResponseFormat | None:
    format = None if body.text is None else body.text.format
    if format is None:
        return None
    if not isinstance(format, SchemaFormat):
        return ResponseFormat(type=format.type)
    schema = NamedSchema(name=format.name, description=format.description, schema=format.schema_, strict=format.strict)
    return ResponseFormat(type="json_schema", json_schema=schema)


def _tool_choice(body: ResponsesRequest) -> ToolChoice | None:
    choice = body.tool_choice
    if isinstance(choice, NamedFunctionTool):
        return _named(choice)
    if isinstance(choice, AllowedFunctionTools):
        allowed = AllowedTools(mode=choice.mode, tools=[_named(tool) for tool in choice.tools])
        return AllowedToolChoice(type="allowed_tools", allowed_tools=allowed)
    return choice


def _named(tool: NamedFunctionTool) -> NamedTool:
    return NamedTool(type="function", function=NamedFunction(name=tool.name))
