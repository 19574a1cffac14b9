"""From chat messages to the token ids that the model's chat template makes of them. What the template has no place for is named: a result
of a tool is refused, what the conversation can do without is left out.

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
from app.tokenizer.chat import TEMPLATE_ROLES, THINKING_SWITCHES
from serve.wire.arguments import object_of
from serve.wire.ignored import ignore

RESERVED_VARIABLES = frozenset("messages tools documents add_generation_prompt continue_final_message bos_token eos_token".split())
PROBE = "\ue007"  # a private-use character, which templates copy unchanged
NO_PLACE = "the model's chat template has no place for it"

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
    _look_for_optional_fields(template_messages, template_tools, tokenizer)
    if end == "continued message":
        return tokenizer.chat.render_continued(template_messages, variables)
    return tokenizer.chat.render(template_messages, template_tools, end == "generation prompt", variables)


def template_variables(body: ChatRequest, tokenizer: Tokenizer) -> dict[str, Any]:
    """What `chat_template_kwargs` and `reasoning_effort` say to the chat template, as far as it listens. Raises `InvalidRequest` for fields
    that contradict each other, and for a thought that cannot be turned off.
    """
    chat = tokenizer.chat
    asked = _by_field(body.chat_template_kwargs)
    if body.reasoning is not None and body.reasoning.enabled:
        asked["reasoning.enabled"] = "enable_thinking", True
    said = [*_said_by_name(asked, chat), *_said_by_effort(body, chat)]
    switch = chat.thinking_switch
    if body.max_thought_tokens == 0 and switch is not None and switch not in {variable for variable, *_ in said}:
        said.append((switch, "", False))  # where it is said to think, the thought is closed as soon as it is opened
    return _agreed(said)


def named_variables(variables: Mapping[str, Any] | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """What `chat_template_kwargs` alone say to the chat template. Raises `InvalidRequest`, as `template_variables` does."""
    return _agreed([*_said_by_name(_by_field(variables), tokenizer.chat)])


def _by_field(variables: Mapping[str, Any] | None) -> dict[str, tuple[str, Any]]:
    """The names and values of `chat_template_kwargs` by the fields of the request that say them."""
    check_unicode(json.dumps(variables, ensure_ascii=False), "chat_template_kwargs")
    return {f"chat_template_kwargs.{name}": (name, value) for name, value in (variables or {}).items()}


def _said_by_effort(body: ChatRequest, chat: ChatTemplate) -> Iterator[Said]:
    """As with vLLM, any effort turns thinking on where the template has a switch, and "none" turns it off."""
    param, effort = body.effort or ("", None)
    if effort is None:
        return
    switch, has_place = chat.thinking_switch, chat.uses("reasoning_effort")
    if has_place:
        yield "reasoning_effort", param, effort
    if switch is not None:
        yield switch, param, effort != "none"
    elif not has_place and effort != "none":
        ignore(param, NO_PLACE)
    elif not has_place and chat.reasoning is not None:
        raise InvalidRequest(f"{param} {effort!r}: {NO_PLACE}", param=param, code="unsupported_parameter")


def _said_by_name(asked: Mapping[str, tuple[str, Any]], chat: ChatTemplate) -> Iterator[Said]:
    for param, (name, value) in asked.items():
        if name in THINKING_SWITCHES and chat.thinking_switch is not None:  # whichever of their names the client knows
            yield chat.thinking_switch, param, value
        elif name not in RESERVED_VARIABLES and chat.uses(name):
            yield name, param, value
        elif name in RESERVED_VARIABLES:
            raise InvalidRequest(f"{param}: other fields of the request say this", param=param, code="unsupported_parameter")
        elif name not in THINKING_SWITCHES or bool(value) != (chat.reasoning is not None):  # without a switch it thinks if it can
            ignore(param, "the model's chat template has no such variable")


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

    A result whose call is not in the conversation stays as it is: whether it can be rendered is up to the template.
    """
    told: list[Message] = []
    unanswered: list[str] = []
    for message in messages:
        if message.role == "tool":
            if message.tool_call_id is None and unanswered:
                message = message.model_copy(update={"tool_call_id": unanswered[0]})
            if message.tool_call_id in unanswered:
                unanswered.remove(message.tool_call_id)
        unanswered += [call.id for call in message.tool_calls or ()]
        told.append(message)
    return told


def _look_for_optional_fields(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, tokenizer: Tokenizer) -> None:
    """Take out the names that the template has no use for. Raises `InvalidRequest` for a tool result that it silently drops.

    To find out, each such field is replaced by a probe, and the rendered text is searched for it.
    """
    probes = {(index, field): f"{PROBE}{index}{PROBE}" for index, message in enumerate(messages) for field in _optional_fields(message)}
    if not probes:
        return
    probed = [{**message, **{field: probes[index, field] for field in _optional_fields(message)}} for index, message in enumerate(messages)]
    text = tokenizer.chat.render(probed, tools, False).replace(json.dumps(PROBE)[1:-1], PROBE)
    for (index, field), probe in probes.items():
        param = f"messages.{index}.{field}"
        if probe in text:
            continue
        if field != "name":
            raise InvalidRequest(f"{param}: {NO_PLACE}", param=param, code="unsupported_parameter")
        ignore(param, NO_PLACE)
        del messages[index][field]


def _optional_fields(message: dict[str, Any]) -> list[str]:
    """The fields of a message that not every template renders."""
    return [field for field in ("name", "content") if field in message and (field == "name" or message["role"] == "tool")]
