"""Tools for a model whose chat template has no place for them: told in the system message, called and answered in plain messages.

    plain_messages(messages, tools, system_turn) -> list[dict]    the conversation without tools, calls and results, for any template
    messages_with_tools(messages, tools, example, system_turn)     the conversation without tools, for a template that writes calls

Calls are written as Hermes and Qwen write them, which most models have seen. `app.forms.tools` learns the form from what the template makes
of these messages, as it learns any other, and its grammar enforces it. Knows no tokenizer, no model and no request.
"""

import json
from collections.abc import Sequence
from typing import Any

Messages = Sequence[dict[str, Any]]

FUNCTIONS = (
    "You can call these functions, one JSON object a line:\n{functions}\n"
    "To call one, answer with its name and its arguments in this form:\n{example}\n"
)
EXAMPLE = '<tool_call>{"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}}</tool_call>'
RESULT = "The user then sends the result in <tool_response>. "
WORDS = "Where no function helps, answer in words."


def plain_messages(messages: Messages, tools: Sequence[dict[str, Any]] | None, system_turn: bool) -> list[dict[str, Any]]:
    """Messages of the roles system, user and assistant that have nothing but a content.

    Without `system_turn`, for templates that refuse the role system, the tools are told at the beginning of the first user message.
    """
    plain: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], _content(message)
        if role == "tool":
            role = "user"
            if plain and plain[-1]["role"] == "user" and plain[-1]["is_result"]:  # results of several calls are one turn
                plain[-1]["content"] += "\n" + content
                continue
        plain.append({"role": role, "content": content, "is_result": message["role"] == "tool"})
    if tools:
        _tell(plain, _functions(tools, EXAMPLE) + RESULT + WORDS, system_turn)
    return [{"role": message["role"], "content": message["content"]} for message in plain]


def messages_with_tools(
    messages: Messages, tools: Sequence[dict[str, Any]] | None, example: str, system_turn: bool
) -> list[dict[str, Any]]:
    """The tools told in the first message, as in `plain_messages`; `example` is a call as the template writes it."""
    told = [dict(message) for message in messages]
    if tools:
        _tell(told, _functions(tools, example) + WORDS, system_turn)
    return told


def _functions(tools: Sequence[dict[str, Any]], example: str) -> str:
    return FUNCTIONS.format(functions="\n".join(_line(tool["function"]) for tool in tools), example=example)


def _content(message: dict[str, Any]) -> str:
    content: str = message.get("content") or ""
    if message["role"] == "tool":
        return f"<tool_response>{content}</tool_response>"
    calls = [
        f"<tool_call>{_line({'name': call['function']['name'], 'arguments': call['function']['arguments']})}</tool_call>"
        for call in message.get("tool_calls") or ()
    ]
    return "\n".join([content] * bool(content) + calls)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _tell(messages: list[dict[str, Any]], text: str, system_turn: bool) -> None:
    """Put a text before all else that the model is told."""
    first = messages[0] if messages else None
    role = "system" if system_turn else "user"
    if first is not None and first["role"] == role:
        first["content"] = f"{text}\n\n{first['content']}" if role == "user" else f"{first['content']}\n\n{text}"
    else:
        messages.insert(0, {"role": role, "content": text})
