"""From messages to the prompt that the model's own chat template makes of them; what the template cannot say is refused by name.

Knows no router and no answer.
"""

import json
from collections.abc import Sequence
from typing import Any

from app.errors import InvalidRequest
from app.forms.tools import Format
from app.schemas import Message, Tool, ToolCall
from app.tokenizer import Tokenizer, check_unicode

MARK = "\ue007"  # a private character: a template neither knows nor changes it
ROLES = {"developer": "system"}  # as templates call it


def prompt_of(
    messages: Sequence[Message], tools: Sequence[Tool] | None, tokenizer: Tokenizer, opened: bool = True, special: bool = False
) -> tuple[int, ...]:
    """Token ids. `opened` adds what opens the assistant's turn, `special` what the tokenizer puts around a text."""
    _check(messages)
    spelled = isinstance(tokenizer.calls, Format) and tokenizer.calls.spelled
    told = [_told(index, message, spelled) for index, message in enumerate(messages)]
    shown = None if tools is None else [tool.model_dump(exclude_none=True) for tool in tools]
    check_unicode(json.dumps(shown, ensure_ascii=False), "tools")
    _check_places(told, shown, tokenizer)
    return tokenizer.rendered(tokenizer.render(told, shown, opened), special)


def _told(index: int, message: Message, spelled: bool) -> dict[str, Any]:
    """A message as chat templates take it; some take arguments of calls as text: `spelled`."""
    path = f"messages.{index}"
    check_unicode(message.text, f"{path}.content")
    made: dict[str, Any] = {"role": ROLES.get(message.role, message.role), "content": message.text}
    for field in ("name", "tool_call_id"):
        value = getattr(message, field)
        if value is not None:
            check_unicode(value, f"{path}.{field}")
            made[field] = value
    if message.tool_calls:
        made["tool_calls"] = [_call(f"{path}.tool_calls.{place}", call, spelled) for place, call in enumerate(message.tool_calls)]
    return made


def _call(path: str, call: ToolCall, spelled: bool) -> dict[str, Any]:
    check_unicode(call.id + call.function.arguments, f"{path}.function.arguments")
    param = f"{path}.function.arguments"
    try:
        arguments = json.loads(call.function.arguments)
        check_unicode(json.dumps(arguments, ensure_ascii=False), param)
    except (ValueError, RecursionError):  # ValueError: no JSON, or a number of thousands of digits
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{param}: not a JSON object in a string", param=param)
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": call.function.arguments if spelled else arguments},
    }


def _check(messages: Sequence[Message]) -> None:
    """Raises `InvalidRequest` for a question without words, and for a result without its call."""
    called: set[str] = set()
    for index, message in enumerate(messages):
        if message.role == "user" and not message.text.strip():
            raise InvalidRequest(f"messages.{index}.content is empty or blank", param=f"messages.{index}.content")
        if message.tool_call_id is not None and message.tool_call_id not in called:
            param = f"messages.{index}.tool_call_id"
            raise InvalidRequest(f"{param}: no message before it calls a tool with the id {message.tool_call_id!r}", param=param)
        called |= {call.id for call in message.tool_calls or ()}


def _check_places(told: Sequence[dict[str, Any]], shown: Sequence[dict[str, Any]] | None, tokenizer: Tokenizer) -> None:
    """Raises `InvalidRequest` for a name or a tool's result that the template silently leaves out."""
    marks = {(index, field): f"{MARK}{index}{MARK}" for index, message in enumerate(told) for field in _optional(message)}
    if not marks:
        return
    marked = [{**message, **{field: marks[index, field] for field in _optional(message)}} for index, message in enumerate(told)]
    text = tokenizer.render(marked, shown, False).replace(json.dumps(MARK)[1:-1], MARK)
    for (index, field), mark in marks.items():
        if mark not in text:
            param = f"messages.{index}.{field}"
            raise InvalidRequest(f"{param}: the model's chat template has no place for it", param=param, code="unsupported_parameter")


def _optional(message: dict[str, Any]) -> list[str]:
    """Fields that not every template knows."""
    return [field for field in ("name", "content") if field in message and (field == "name" or message["role"] == "tool")]
