"""How a conversation with tools is rendered: by the chat template alone, or with what the template leaves out put into the messages.

    learn_tools(render, added_tokens) -> ToolRendering     the first way that lets the template's own form of calls be learned

The ways, in the order in which they are tried: the template writes tools and calls; it writes tools, and calls stand in the content
(`app.forms.contents`); it writes calls, and tools are told in a message; both are written in the general form (`app.forms.general`).
Knows no tokenizer, no model and no request.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from app.errors import InvalidRequest
from app.forms.contents import CallWriter, call_writer, with_calls_in_content
from app.forms.general import messages_with_tools, plain_messages
from app.forms.learning import PROBE_ANSWER, learn_tool_format, probe_tool
from app.forms.tools import AddedTokens, ToolFormat, ToolsUnsupported

Messages = Sequence[dict[str, Any]]
Tools = Sequence[dict[str, Any]] | None
Variables = Mapping[str, Any]
NO_VARIABLES: Variables = MappingProxyType({})


class Render(Protocol):
    """Applies the template. Raises `InvalidRequest` for what the template refuses."""

    def __call__(self, messages: Messages, tools: Tools, add_generation_prompt: bool, variables: Variables = ..., /) -> str: ...


@dataclass(frozen=True, slots=True)
class ToolRendering:
    format: ToolFormat | ToolsUnsupported
    render: Render
    is_general: bool = False


def learn_tools(render: Render, added_tokens: AddedTokens) -> ToolRendering:
    own = ToolRendering(learn_tool_format(render, added_tokens), render)
    if isinstance(own.format, ToolFormat):
        return own
    for way in (partial(_in_content, render), partial(_told, render), partial(_generally, render)):
        learned = way(added_tokens)
        if learned is not None and isinstance(learned.format, ToolFormat):
            return learned
    return own


def _in_content(render: Render, added_tokens: AddedTokens) -> ToolRendering | None:
    def shown(write: CallWriter, messages: Messages, tools: Tools, prompt: bool, variables: Variables = NO_VARIABLES, /) -> str:
        named = {} if tools is None else {"xml_tools": list(tools)}  # SmolLM3's name for tools that are called in JSON
        return render(with_calls_in_content(messages, write), tools, prompt, {**variables, **named})

    try:
        prompt = shown(lambda _: "", [{"role": "user", "content": "?"}], [probe_tool("probe")], True)
    except InvalidRequest:
        return None
    write = call_writer(prompt, added_tokens.ids)
    if write is None or "probe" not in prompt:
        return None
    rendered = partial(shown, write)
    if not _takes_results(rendered):
        return None
    return ToolRendering(learn_tool_format(rendered, added_tokens), rendered)


def _takes_results(render: Render) -> bool:
    """Whether the template takes the result of a call that stands in the content."""
    call = {"id": "aB3dE5gH7", "type": "function", "function": {"name": "probe", "arguments": {}}}
    conversation: list[dict[str, Any]] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": PROBE_ANSWER, "tool_call_id": call["id"]},
    ]
    try:
        return PROBE_ANSWER in render(conversation, [probe_tool("probe")], True)
    except InvalidRequest:
        return False


def _told(render: Render, added_tokens: AddedTokens) -> ToolRendering:
    def told(example: str, messages: Messages, tools: Tools, prompt: bool, variables: Variables = NO_VARIABLES, /) -> str:
        def with_tools(system_turn: bool) -> str:
            return render(messages_with_tools(messages, tools, example, system_turn), None, prompt, variables)

        return _with_system_turn(with_tools, messages)

    format = learn_tool_format(partial(told, ""), added_tokens)
    example = format.example() if isinstance(format, ToolFormat) else ""
    return ToolRendering(format, partial(told, example))


def _generally(render: Render, added_tokens: AddedTokens) -> ToolRendering:
    def general(messages: Messages, tools: Tools, prompt: bool, variables: Variables = NO_VARIABLES, /) -> str:
        def plain(system_turn: bool) -> str:
            return render(plain_messages(messages, tools, system_turn), None, prompt, variables)

        return _with_system_turn(plain, messages)

    return ToolRendering(learn_tool_format(general, added_tokens), general, is_general=True)


def _with_system_turn(render: Callable[[bool], str], messages: Messages) -> str:
    """Rendered with a turn of the system, or without one by a template that has none, such as Gemma's."""
    try:
        return render(True)
    except InvalidRequest:
        if messages and messages[0]["role"] == "system":
            raise
        return render(False)
