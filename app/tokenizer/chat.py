"""The chat template of a model: conversations as text, and what can be learned from it about thoughts and tool calls."""

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta
from transformers import PreTrainedTokenizerBase

from app.errors import InvalidRequest, first_line
from app.forms.reasoning import Reasoning, learn_reasoning
from app.forms.tools import AddedTokens, ToolFormat, ToolsUnsupported
from app.forms.ways import ToolRendering, learn_tools
from app.models.template import compiler, without_generation_tags

PROBE = "\ue006"  # a private-use character, which templates copy unchanged
TEMPLATE_ROLES = {"developer": "system"}  # OpenAI's roles that templates know by another name
THINKING_SWITCHES = ("enable_thinking", "thinking")  # names that templates have for it


class ChatTemplate:
    def __init__(self, base: PreTrainedTokenizerBase, added_tokens: AddedTokens) -> None:
        self._base = base
        self.exists = bool(base.chat_template)
        shown = () if self.reasoning is None else self.reasoning.marks
        self.added_tokens = added_tokens.shown(shown)  # the marks of thoughts are part of an answer's text

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
        render = self._learned_tools.render if has_tools else self._render
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
    def reasoning(self) -> Reasoning | None:
        """How the model marks its thoughts, by its chat template; None for a model that does not think first."""
        return learn_reasoning(self._template_text)

    @property
    def closing_marks(self) -> list[str]:
        """What ends a thought, and parts of a tool call that no quotation mark or bracket ends."""
        thought, tools = self.reasoning, self.tool_format
        marks = (*([] if thought is None else thought.ends), *(tools.closing_marks if isinstance(tools, ToolFormat) else ()))
        return [mark for mark in marks if mark]

    def with_thought(self, message: Mapping[str, Any], thought: str) -> dict[str, Any]:
        """A message of the assistant, as the template takes it, with its thought."""
        return {**message, "reasoning_content": thought} if self.reasoning is None else self.reasoning.with_thought(message, thought)

    def uses(self, variable: str) -> bool:
        """Whether the chat template looks this variable up."""
        return variable in variables_of(self._template_text)

    @property
    def thinking_switch(self) -> str | None:
        """The template's variable that says whether the model thinks first, if it has one."""
        return next((name for name in THINKING_SWITCHES if self.uses(name)), None)

    @cached_property
    def takes_later_system(self) -> bool:
        """Whether the template renders a message of the system behind others: some refuse it there, some leave it out."""
        try:
            return PROBE in self._render([{"role": "user", "content": "?"}, {"role": "system", "content": PROBE}], None, True)
        except InvalidRequest:
            return False

    @property
    def _template_text(self) -> str:
        template = self._base.chat_template or ""
        return "\n".join(template.values()) if isinstance(template, dict) else template

    @property
    def tool_format(self) -> ToolFormat | ToolsUnsupported:
        """How the model writes tool calls, learned from its chat template or from the general form; or why they are not supported."""
        format = self._learned_tools.format
        return format if isinstance(format, ToolsUnsupported) or self.reasoning is None else self.reasoning.tool_format(format)

    @property
    def tools_are_general(self) -> bool:
        """Whether tools are told, called and answered in plain messages, because the chat template does not write them all."""
        return self._learned_tools.is_general

    @property
    def hidden_tokens(self) -> frozenset[str]:
        """The special tokens that are left out of the text of an answer: all but those that mark a thought or a tool call."""
        format = self.tool_format
        return self.added_tokens.special if isinstance(format, ToolsUnsupported) else format.added_tokens.special

    @cached_property
    def _learned_tools(self) -> ToolRendering:
        return learn_tools(self._render, self.added_tokens)


@lru_cache(maxsize=8)
def variables_of(template: str) -> frozenset[str]:
    """The names that a chat template looks up but does not define on every way to them."""
    try:
        tree = compiler().parse(without_generation_tags(template))
    except TemplateSyntaxError:  # it cannot be rendered either
        return frozenset()
    return frozenset(meta.find_undeclared_variables(tree))
