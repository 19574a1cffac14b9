"""The chat template of a model: conversations as text, and what can be learned from it about thoughts and tool calls."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from app.errors import InvalidRequest, first_line
from app.forms.general import plain_messages
from app.forms.learning import learn_tool_format
from app.forms.reasoning import ReasoningFormat, learn_reasoning
from app.forms.tools import AddedTokens, ToolFormat, ToolsUnsupported


class ChatTemplate:
    def __init__(self, base: PreTrainedTokenizerBase, added_tokens: AddedTokens) -> None:
        self._base, self._added_tokens = base, added_tokens
        self.exists = bool(base.chat_template)

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """The conversation as text, by the chat template; tools in the general form where the template has no place for them.

        `variables` are further ones of the template, such as `enable_thinking`. Raises `InvalidRequest` if the template is missing or
        refuses the messages.
        """
        has_tools = bool(tools) or any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
        render = self._render_generally if has_tools and self.tools_are_general else self._render
        return render(messages, tools, add_generation_prompt, variables)

    def render_continued(self, messages: Sequence[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        """The conversation up to the end of its last message, which the model is to continue. Raises `InvalidRequest`, as `render`."""
        content = str(messages[-1]["content"])
        text = self.render(messages, None, False, variables)
        start = text.rfind(content.strip())
        if start < 0:
            raise InvalidRequest(
                "the model's chat template changes the content of the last message, so it cannot be continued", param="messages"
            )
        kept = content if text.startswith(content, start) else content.strip()
        return text[: start + len(kept)]

    def _render_generally(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        try:
            return self._render(plain_messages(messages, tools, system_turn=True), None, add_generation_prompt, variables)
        except InvalidRequest:  # templates such as Gemma's have no turn of the system
            if messages and messages[0]["role"] == "system":
                raise
            return self._render(plain_messages(messages, tools, system_turn=False), None, add_generation_prompt, variables)

    def _render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        if not self.exists:
            raise InvalidRequest("this model has no chat template: use /v1/completions", param="messages")
        tool_list: Any = None if tools is None else list(tools)
        try:
            return str(
                self._base.apply_chat_template(
                    list(messages), tools=tool_list, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
                )
            )
        except RecursionError as error:
            raise InvalidRequest("the messages are nested too deep for the model's chat template", param="messages") from error
        except (TemplateError, TypeError, KeyError) as error:  # TypeError, KeyError: an expression in the template got an unexpected value
            raise InvalidRequest(f"the model's chat template refuses these messages: {first_line(error)}", param="messages") from error

    @cached_property
    def reasoning(self) -> ReasoningFormat | None:
        """How the model marks its thoughts, by its chat template; None for a model that does not think first."""
        return learn_reasoning(self._template_text, self._added_tokens.special)

    @property
    def closing_marks(self) -> list[str]:
        """What ends a thought, and parts of a tool call that no quotation mark or bracket ends."""
        thought, tools = self.reasoning, self.tool_format
        marks = ("" if thought is None else thought.close, *(tools.closing_marks if isinstance(tools, ToolFormat) else ()))
        return [mark for mark in marks if mark]

    def uses(self, variable: str) -> bool:
        """Whether the chat template has a place for this variable."""
        return re.search(rf"\b{re.escape(variable)}\b", self._template_text) is not None

    @property
    def _template_text(self) -> str:
        template = self._base.chat_template or ""
        return "\n".join(template.values()) if isinstance(template, dict) else template

    @property
    def tool_format(self) -> ToolFormat | ToolsUnsupported:
        """How the model writes tool calls, learned from its chat template or from the general form; or why they are not supported."""
        return self._learned_tools[0]

    @property
    def tools_are_general(self) -> bool:
        """Whether tools are told, called and answered in plain messages, because the chat template does not write them all."""
        return self._learned_tools[1]

    @cached_property
    def _learned_tools(self) -> tuple[ToolFormat | ToolsUnsupported, bool]:
        own = learn_tool_format(self._render, self._added_tokens)
        general = learn_tool_format(self._render_generally, self._added_tokens) if isinstance(own, ToolsUnsupported) else own
        return (own, False) if isinstance(general, ToolsUnsupported) or general is own else (general, True)
