"""Tool calls for a model whose chat template shows it tools, but does not write its calls: they stand in the content of its messages.

    call_writer(prompt, added_tokens) -> CallWriter | None      by the marks that the template or the vocabulary names
    with_calls_in_content(messages, write) -> list[dict]        the conversation without calls beside the contents

Written as the cards of LFM2, SmolLM3 and Granite 3.3 have it. Knows no tokenizer, no model and no request.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

Messages = Sequence[dict[str, Any]]
CallWriter = Callable[[Sequence[Mapping[str, Any]]], str]  # from the functions called, with name and arguments


def call_writer(prompt: str, added_tokens: Collection[str]) -> CallWriter | None:
    """`prompt` is one that shows tools to the model."""
    if "<|tool_call_start|>" in added_tokens:
        return python_calls
    if "<|tool_call|>" in prompt:
        return listed_calls
    return tagged_calls if "<tool_call>" in prompt else None


def python_calls(functions: Sequence[Mapping[str, Any]]) -> str:
    """As LFM2 writes them."""
    calls = (
        f"{function['name']}({', '.join(f'{key}={_literal(value)}' for key, value in function['arguments'].items())})"
        for function in functions
    )
    return f"<|tool_call_start|>[{', '.join(calls)}]<|tool_call_end|>"


def tagged_calls(functions: Sequence[Mapping[str, Any]]) -> str:
    """As Hermes, SmolLM3 and others write them."""
    return "\n".join(f"<tool_call>\n{_json(_call(function))}\n</tool_call>" for function in functions)


def listed_calls(functions: Sequence[Mapping[str, Any]]) -> str:
    """As Granite 3 writes them."""
    return f"<|tool_call|>{_json([_call(function) for function in functions])}"


def with_calls_in_content(messages: Messages, write: CallWriter) -> list[dict[str, Any]]:
    return [_without_calls(message, write) if message.get("tool_calls") else dict(message) for message in messages]


def _without_calls(message: dict[str, Any], write: CallWriter) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return kept | {"content": (message.get("content") or "") + write([call["function"] for call in message["tool_calls"]])}


def _call(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": function["name"], "arguments": function["arguments"]}


def _literal(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, bool) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
