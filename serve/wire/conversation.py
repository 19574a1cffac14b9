"""From chat messages to the token ids that the model's chat template makes of them; what the template would drop is refused by name.

Knows neither the router nor the answer.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from app.errors import InvalidRequest
from app.forms.tools import ToolFormat
from app.schemas import ChatRequest, Message, Tool, ToolCall
from app.schemas.generation import PromptEnd
from app.tokenizer import ChatTemplate, Tokenizer, check_unicode
from app.tokenizer.chat import THINKING_SWITCHES
from serve.wire.arguments import object_of

RESERVED_VARIABLES = frozenset("messages tools documents add_generation_prompt continue_final_message bos_token eos_token".split())
PROBE = "\ue007"  # a private-use character, which templates copy unchanged
TEMPLATE_ROLES = {"developer": "system"}  # OpenAI's roles that templates know by another name

Said = tuple[str, str, Any]  # a variable of the template, the field of the request that names it, and its value


def chat_token_ids(
    messages: Sequence[Message],
    tools: Sequence[Tool] | None,
    tokenizer: Tokenizer,
    end: PromptEnd = "generation prompt",
    add_special_tokens: bool = False,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[int, ...]:
    """The tokens of `chat_text`; `add_special_tokens` adds what the tokenizer puts around a text. Raises `InvalidRequest`, as that does."""
    return tokenizer.encode_rendered(chat_text(messages, tools, tokenizer, end, variables), add_special_tokens)


def chat_text(
    messages: Sequence[Message], tools: Sequence[Tool] | None, tokenizer: Tokenizer, end: PromptEnd, variables: Mapping[str, Any]
) -> str:
    """The conversation as the model's chat template renders it. A generation prompt opens the assistant's turn.

    Raises `InvalidRequest` for a message that the template cannot render.
    """
    messages = _with_call_ids(messages)
    template_messages = [_template_message(index, message, tokenizer.chat) for index, message in enumerate(messages)]
    template_tools = None if tools is None else [tool.model_dump(exclude_none=True) for tool in tools]
    check_unicode(json.dumps(template_tools, ensure_ascii=False), "tools")
    _check_optional_fields(template_messages, template_tools, tokenizer)
    if end == "continued message":
        return tokenizer.chat.render_continued(template_messages, variables)
    return tokenizer.chat.render(template_messages, template_tools, end == "generation prompt", variables)


def template_variables(body: ChatRequest, tokenizer: Tokenizer) -> dict[str, Any]:
    """What `chat_template_kwargs` and `reasoning_effort` say to the chat template. Raises `InvalidRequest` for what it has no place for,
    and for fields that contradict each other.
    """
    said = [*_said_by_name(body, tokenizer.chat)]
    switch = tokenizer.chat.thinking_switch
    param, effort = body.effort or ("", None)
    if effort is not None and tokenizer.chat.uses("reasoning_effort"):
        said.append(("reasoning_effort", param, effort))
    elif effort == "none" and switch is not None:
        said.append((switch, param, False))
    elif body.max_thought_tokens == 0 and switch is not None:
        if switch not in {variable for variable, *_ in said}:  # else the thought is closed as soon as it is opened
            said.append((switch, "", False))
    elif effort is not None and (effort != "none" or tokenizer.chat.reasoning is not None):
        message = f"{param} {effort!r}: the model's chat template has no place for it"
        raise InvalidRequest(message, param=param, code="unsupported_parameter")
    return _agreed(said)


def _said_by_name(body: ChatRequest, chat: ChatTemplate) -> Iterator[Said]:
    asked = {f"chat_template_kwargs.{name}": (name, value) for name, value in (body.chat_template_kwargs or {}).items()}
    if body.reasoning is not None and body.reasoning.enabled:
        asked["reasoning.enabled"] = "enable_thinking", True
    for param, (name, value) in asked.items():
        if name in THINKING_SWITCHES and chat.thinking_switch is not None:  # whichever of their names the client knows
            yield chat.thinking_switch, param, value
        elif name not in RESERVED_VARIABLES and chat.uses(name):
            yield name, param, value
        elif name not in THINKING_SWITCHES or bool(value) != (chat.reasoning is not None):  # without a switch it thinks if it can
            raise InvalidRequest(f"{param}: the model's chat template has no such variable", param=param, code="unsupported_parameter")


def _agreed(said: Sequence[Said]) -> dict[str, Any]:
    """The value of each variable. Raises `InvalidRequest` where two fields say different ones; 0 and false are different, too."""
    first: dict[str, tuple[str, Any]] = {}
    for variable, param, value in said:
        earlier, same = first.setdefault(variable, (param, value))
        if (type(same), same) != (type(value), value):
            raise InvalidRequest(f"{earlier} and {param} contradict each other; give one of them", param=param)
    return {variable: value for variable, (_, value) in first.items()}


def _template_message(index: int, message: Message, chat: ChatTemplate) -> dict[str, Any]:
    """A message as the chat template takes it. Some templates take the arguments of tool calls as text, others as an object."""
    path = f"messages.{index}"
    check_unicode(message.text, f"{path}.content")
    fields: dict[str, Any] = {"role": TEMPLATE_ROLES.get(message.role, message.role), "content": message.text}
    for field in ("name", "tool_call_id"):
        value = getattr(message, field)
        if value is not None:
            check_unicode(value, f"{path}.{field}")
            fields[field] = value
    if message.tool_calls:
        arguments_as_text = isinstance(chat.tool_format, ToolFormat) and chat.tool_format.arguments_as_text
        fields["tool_calls"] = [
            _template_call(f"{path}.tool_calls.{place}", call, arguments_as_text) for place, call in enumerate(message.tool_calls)
        ]
    thought = message.reasoning_content or message.reasoning
    if not thought:
        return fields
    check_unicode(thought, f"{path}.reasoning_content")
    return chat.with_thought(fields, thought)


def _template_call(path: str, call: ToolCall, arguments_as_text: bool) -> dict[str, Any]:
    param = f"{path}.function.arguments"
    text = call.function.arguments.strip() or "{}"
    check_unicode(call.id + text, param)
    arguments = object_of(text)
    check_unicode(json.dumps(arguments, ensure_ascii=False), param)
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": text if arguments_as_text else arguments},
    }


def _with_call_ids(messages: Sequence[Message]) -> list[Message]:
    """The messages, each tool result with the id of its call: one without an id answers the first call that has no result yet.

    Raises `InvalidRequest` for an empty user message, and for a tool result without its call.
    """
    checked: list[Message] = []
    call_ids: set[str] = set()
    unanswered: list[str] = []
    for index, message in enumerate(messages):
        if message.role == "user" and not message.text:
            raise InvalidRequest(f"messages.{index}.content is empty", param=f"messages.{index}.content")
        if message.role == "tool":
            param = f"messages.{index}.tool_call_id"
            if message.tool_call_id is None:
                if not unanswered:
                    raise InvalidRequest(f"{param} is missing, and every earlier tool call has its result", param=param)
                message = message.model_copy(update={"tool_call_id": unanswered[0]})
            elif message.tool_call_id not in call_ids:
                raise InvalidRequest(f"{param}: no earlier message calls a tool with the id {message.tool_call_id!r}", param=param)
            if message.tool_call_id in unanswered:
                unanswered.remove(message.tool_call_id)
        ids = [call.id for call in message.tool_calls or ()]
        call_ids.update(ids)
        unanswered += ids
        checked.append(message)
    return checked


def _check_optional_fields(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, tokenizer: Tokenizer) -> None:
    """Raise `InvalidRequest` for a name or a tool result that the template silently drops.

    To find out, each such field is replaced by a probe, and the rendered text is searched for it.
    """
    probes = {(index, field): f"{PROBE}{index}{PROBE}" for index, message in enumerate(messages) for field in _optional_fields(message)}
    if not probes:
        return
    probed = [{**message, **{field: probes[index, field] for field in _optional_fields(message)}} for index, message in enumerate(messages)]
    text = tokenizer.chat.render(probed, tools, False).replace(json.dumps(PROBE)[1:-1], PROBE)
    for (index, field), probe in probes.items():
        if probe not in text:
            param = f"messages.{index}.{field}"
            raise InvalidRequest(f"{param}: the model's chat template has no place for it", param=param, code="unsupported_parameter")


def _optional_fields(message: dict[str, Any]) -> list[str]:
    """The fields of a message that not every template renders."""
    return [field for field in ("name", "content") if field in message and (field == "name" or message["role"] == "tool")]
