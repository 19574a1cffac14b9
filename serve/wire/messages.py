"""From a body of Anthropic's Messages API to a chat request, and from what a chat refuses back to the names in that body.

Knows neither the router nor the answer.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from app.errors import InvalidRequest
from app.schemas import ChatRequest, Function, FunctionCall, Message, NamedTool, ResponseFormat, Tool, ToolCall
from app.schemas.anthropic import (
    CountTokensRequest,
    HostedTool,
    MessagesRequest,
    OutputConfig,
    ToolSelection,
    Turn,
)
from app.schemas.blocks import TextBlock, ThinkingBlock, ToolResultBlock, ToolUseBlock
from app.schemas.generation import SamplingParameters
from app.schemas.messages import NamedFunction, NamedSchema, ToolChoice
from app.schemas.thought import Effort
from app.tokenizer import ChatTemplate
from serve.wire.ignored import collected_in, ignore

MAX_MESSAGES = 1024  # of a chat
# The line with which Claude Code begins its system prompt: its own version and a hash, which differ between requests.
BILLING = re.compile(r"x-anthropic-billing-header:(?:[ \t]*[\w-]+=[^;\s]*;?)*\s*")
NO_USE = "the model has no use for it"
NOT_RUN = "tools that Anthropic defines are not served; only tools of type 'custom', with an input_schema, are"
NOT_EDITED = "nothing is taken out of a conversation here; what does not fit the context is refused"
# Beginnings and ends of the names of a chat's fields, and what they are called here.
BEGINNINGS = {
    "reasoning_effort": "thinking",
    "thinking_token_budget": "thinking.budget_tokens",
    "chat_template_kwargs.enable_thinking": "thinking",
    "response_format": "output_config.format",
    "response_format.json_schema.schema": "output_config.format.schema",
    "tool_choice.function.name": "tool_choice.name",
}
ENDS = {
    ".function.arguments": ".input",
    ".function.name": ".name",
    ".function.parameters": ".input_schema",
    ".tool_call_id": ".tool_use_id",
}
TOOL_CHOICES: Mapping[str, ToolChoice] = {"auto": "auto", "any": "required", "none": "none"}


@dataclass(slots=True)
class Translation:
    """The messages of a chat, and the fields of the body that they come from: `messages.3` may be `messages.1.content.0` there."""

    messages: list[Message] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=lambda: dict(BEGINNINGS))

    def add(self, message: Message, origin: str) -> str:
        """Returns the name of the message in the chat."""
        name = f"messages.{len(self.messages)}"
        self.messages.append(message)
        self.names[name] = origin
        return name

    @contextmanager
    def own_names(self) -> Iterator[None]:
        """Errors raised inside, and what is left out there, name the fields of the body, not those of the chat."""
        left_out: list[str] = []
        try:
            with collected_in(left_out):
                yield
        except InvalidRequest as error:
            if error.param is None:
                raise
            param = self._origin(error.param)
            raise type(error)(error.message.replace(error.param, param), param=param, code=error.code) from None
        for name in left_out:
            ignore(self._origin(name), NO_USE)

    def keyword(self, path: str) -> str:
        """The path of a keyword in a tool's schema."""
        tool, parameters, inner = path.partition(".function.parameters")
        return self._origin(tool + parameters) + inner

    def _origin(self, param: str) -> str:
        parts = param.split(".")
        for count in range(len(parts), 0, -1):
            begin, end = ".".join(parts[:count]), "".join(f".{part}" for part in parts[count:])
            if begin in self.names:
                return self.names[begin] + ENDS.get(end, end)
        matching = (end for end in ENDS if param.endswith(end))
        return next((param.removesuffix(end) + ENDS[end] for end in matching), param)


def chat_request(body: CountTokensRequest, template: ChatTemplate | None = None) -> tuple[ChatRequest, Translation]:
    """What the template has no use for is left out; without one, the chat of another server decides that.

    Where the template takes what the system says at the beginning only, all of it stands there. Raises `InvalidRequest` for a conversation
    that cannot be continued.
    """
    _leave_out(body)
    translation = Translation()
    translation.names |= {f"tools.{index}": f"tools.{place}" for index, place in enumerate(body.client_tools)}
    system_first = template is not None and not template.takes_later_system
    turns = [(turn, f"messages.{index}") for index, turn in enumerate(body.messages)]
    system = [_system_text(body), *(without_billing(turn.text) for turn, _ in turns if system_first and turn.role == "system")]
    if any(system):
        translation.add(Message(role="system", content="\n\n".join(filter(None, system))), "system")
    for turn, path in turns:
        if not (system_first and turn.role == "system"):
            _add_turn(translation, turn, path)
    if len(translation.messages) > MAX_MESSAGES:
        message = f"messages: with one for each tool_result these are {len(translation.messages)} messages; at most {MAX_MESSAGES} are read"
        raise InvalidRequest(message, param="messages")
    continues = body.messages[-1].role == "assistant"
    if continues:
        _check_continued(body)
    return ChatRequest(
        messages=translation.messages,
        model=body.model,
        continue_final_message=continues or None,
        response_format=_response_format(body.output_config),
        reasoning_effort=_effort(body, template),
        thinking_token_budget=None if body.thinking is None else body.thinking.budget_tokens,
        chat_template_kwargs={"enable_thinking": True} if _thinks(body, template) else None,
        **_tool_fields(body),
        **(_answer_fields(body) if isinstance(body, MessagesRequest) else {}),
    ), translation


def without_billing(text: str) -> str:
    """A text of the system without the line that Claude Code begins with: no cached prompt would begin like this one."""
    found = BILLING.match(text)
    return text if found is None else text[found.end() :]


def _system_text(body: CountTokensRequest) -> str:
    blocks = body.system or ()
    return without_billing(blocks) if isinstance(blocks, str) else "".join(without_billing(block.text) for block in blocks)


def _leave_out(body: CountTokensRequest) -> None:
    for index, tool in enumerate(body.tools or ()):
        if isinstance(tool, HostedTool):
            ignore(f"tools.{index}[{tool.type}]", NOT_RUN)
    if body.context_management not in (None, {}, {"edits": []}):
        ignore("context_management", NOT_EDITED)


def _thinks(body: CountTokensRequest, template: ChatTemplate | None) -> bool:
    """Whether it is asked to think, and can."""
    if body.thinking is None or body.thinking.type != "enabled":
        return False
    can = template is None or template.reasoning is not None or template.thinking_switch is not None
    if not can:
        ignore("thinking", "the model does not think")
    return can


def _effort(body: CountTokensRequest, template: ChatTemplate | None) -> Effort | None:
    disabled = body.thinking is not None and body.thinking.type == "disabled"
    effort = None if body.output_config is None else body.output_config.effort
    if effort is not None and (disabled or (template is not None and not template.uses("reasoning_effort"))):
        ignore("output_config.effort", "thinking is disabled" if disabled else "the model's chat template has no place for it")
        effort = None
    return "none" if disabled else effort


def _add_turn(translation: Translation, turn: Turn, path: str) -> None:
    if turn.role == "user":
        _add_user_turn(translation, turn, path)
        return
    calls = {place: block for place, block in enumerate(turn.blocks) if isinstance(block, ToolUseBlock)}
    thought = "".join(block.thinking for block in turn.blocks if isinstance(block, ThinkingBlock))
    tool_calls = [_tool_call(block) for block in calls.values()] or None
    text = without_billing(turn.text) if turn.role == "system" else turn.text
    message = Message(role=turn.role, content=text, tool_calls=tool_calls, reasoning_content=thought or None)
    name = translation.add(message, path)
    translation.names |= {f"{name}.tool_calls.{index}": f"{path}.content.{place}" for index, place in enumerate(calls)}


def _tool_call(block: ToolUseBlock) -> ToolCall:
    return ToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=json.dumps(block.input)))


def _add_user_turn(translation: Translation, turn: Turn, path: str) -> None:
    """A message for each tool result, and one for the texts between them."""
    texts: list[str] = []

    def add_text() -> None:
        translation.add(Message(role="user", content="".join(texts)), path)
        texts.clear()

    for place, block in enumerate(turn.blocks):
        if isinstance(block, ToolResultBlock):
            if texts:
                add_text()
            message = Message(role="tool", content=_result_text(block), tool_call_id=block.tool_use_id)
            translation.add(message, f"{path}.content.{place}")
        elif isinstance(block, TextBlock):
            texts.append(block.text)
    if texts or not turn.blocks:
        add_text()


def _result_text(block: ToolResultBlock) -> str:
    content = block.content or ""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return f"Error: {text}" if block.is_error else text


def _check_continued(body: CountTokensRequest) -> None:
    last, path = body.messages[-1], f"messages.{len(body.messages) - 1}"
    calls = any(isinstance(block, ToolUseBlock) for block in last.blocks)
    if calls or not last.text.strip():
        what = "it calls a tool, whose tool_result must follow" if calls else "it has no text"
        raise InvalidRequest(f"{path}: the last message is by the assistant, so the answer would continue it, but {what}", param=path)
    has_tools = bool(body.client_tools) and not (body.tool_choice is not None and body.tool_choice.type == "none")
    if has_tools or (body.output_config is not None and body.output_config.format is not None):
        raise InvalidRequest(
            f"{path}: the last message is by the assistant, and an answer that continues it has neither tools nor output_config.format",
            param=path,
        )


def _response_format(config: OutputConfig | None) -> ResponseFormat | None:
    if config is None or config.format is None:
        return None
    return ResponseFormat(type="json_schema", json_schema=NamedSchema(name="answer", schema=config.format.schema_))


def _tool_fields(body: CountTokensRequest) -> dict[str, Any]:
    choice = body.tool_choice or ToolSelection(type="auto")
    if choice.type == "none":
        return {}
    functions = [
        Function(name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict)
        for tool in body.client_tools.values()
    ]
    named = None if choice.name is None else NamedTool(type="function", function=NamedFunction(name=choice.name))
    return {
        "tools": [Tool(type="function", function=function) for function in functions] or None,
        "tool_choice": named or TOOL_CHOICES[choice.type],
        "parallel_tool_calls": not choice.disable_parallel_tool_use,
    }


def _answer_fields(body: MessagesRequest) -> dict[str, Any]:
    return {
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "seed": body.seed,
        "stream": body.stream,
        **{name: getattr(body, name) for name in SamplingParameters.model_fields},
    }
