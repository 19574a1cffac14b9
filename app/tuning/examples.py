"""What a line of a training file says: a conversation, a prompt with its completion, or a text. Knows no tokenizer.

A line that is wrong raises `WrongLine`, whose message says what would be right and quotes nothing of the line's text.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app.schemas.messages import Message, Tool

KEYS = "messages, prompt and completion, or text"
CONVERSATION = frozenset({"messages", "tools", "parallel_tool_calls"})
COMPLETION = frozenset({"prompt", "completion"})
TEXT = frozenset({"text"})


class WrongLine(Exception):
    @property
    def message(self) -> str:
        return str(self)


@dataclass(frozen=True, slots=True)
class Conversation:
    """`learnt` has the places of the messages that are learnt: those of the assistant whose weight is not 0."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] | None
    learnt: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Text:
    text: str


Example = Conversation | Completion | Text


def parse(line: bytes) -> Example:
    """Raises `WrongLine`."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise WrongLine("the line is not JSON") from None
    if not isinstance(value, dict):
        raise WrongLine(f"the line must be a JSON object with {KEYS}")
    if "messages" in value:
        return _conversation(_only(value, CONVERSATION))
    if COMPLETION & set(value):
        return Completion(*(_text(_only(value, COMPLETION), key) for key in ("prompt", "completion")))
    if "text" in value:
        return Text(_text(_only(value, TEXT), "text"))
    raise WrongLine(f"the line has none of {KEYS}")


def _only(value: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    unknown = sorted(set(value) - known)
    if unknown:
        raise WrongLine(f"'{unknown[0][:64]}' is none of {', '.join(sorted(known))}")
    return value


def _text(value: Mapping[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise WrongLine(f"'{key}' is missing" if key not in value else f"'{key}' must be a text")
    if not text and key != "prompt":
        raise WrongLine(f"'{key}' is empty")
    return text


def _conversation(value: dict[str, Any]) -> Conversation:
    given = value["messages"]
    if not isinstance(given, list) or not given:
        raise WrongLine("'messages' must be a list with at least one message")
    weights = [_weight(n, message) for n, message in enumerate(given)]
    messages = tuple(_message(n, message) for n, message in enumerate(given))
    learnt = tuple(n for n, message in enumerate(messages) if message.role == "assistant" and weights[n])
    if not any(message.role == "assistant" for message in messages):
        raise WrongLine("no message is the assistant's, so there is nothing to learn")
    if not learnt:
        raise WrongLine("every message of the assistant has weight 0, so there is nothing to learn")
    return Conversation(messages, _tools(value.get("tools")), learnt)


def _weight(n: int, message: Any) -> int:
    if not isinstance(message, dict):
        raise WrongLine(f"messages.{n} must be an object with role and content")
    weight = message.get("weight")
    if weight is None:
        return 1
    if isinstance(weight, bool) or weight not in (0, 1):
        raise WrongLine(f"messages.{n}.weight must be 0 or 1")
    if message.get("role") != "assistant":
        raise WrongLine(f"messages.{n}.weight is only for messages of the assistant")
    return int(weight)


def _message(n: int, message: dict[str, Any]) -> Message:
    try:
        return Message.model_validate({key: value for key, value in message.items() if key != "weight"})
    except ValidationError as error:
        raise WrongLine(_sentence(f"messages.{n}", error)) from None


def _tools(value: Any) -> tuple[Tool, ...] | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise WrongLine("'tools' must be a list")
    try:
        return tuple(Tool.model_validate(tool) for tool in value)
    except ValidationError as error:
        raise WrongLine(_sentence("tools", error)) from None


def _sentence(where: str, error: ValidationError) -> str:
    """The first of pydantic's errors, or one in our own words, without the value that caused it."""
    errors = error.errors(include_input=False, include_url=False)
    first = next((each for each in errors if each["type"] == "value_error"), errors[0])
    place = ".".join([where, *(str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier())])
    return f"{place}: {first['msg'].removeprefix('Value error, ')}"
