"""Short versions of the chat templates of well-known models, each with its own turn markers and way of writing calls; and a tokenizer with
all their tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError
from llguidance import LLMatcher, LLTokenizer
from transformers import PreTrainedTokenizerFast

from app.errors import InvalidRequest
from app.forms.learning import learn_tool_format
from app.forms.tools import CALL_ID, AddedTokens, ToolFormat, ToolsUnsupported

TURNS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
)
TURN_END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
HERMES = TURNS + (
    "{{ m.content }}{% for c in m.tool_calls or [] %}{% if not loop.first or m.content %}{{ '\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
) + TURN_END  # fmt: skip
THINKING = TURNS + (
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{% if not loop.first %}{{ '\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}"
) + TURN_END  # fmt: skip
SPELLED = HERMES.replace("c.function.arguments | tojson", "c.function.arguments")
DOUBLED = HERMES.replace("c.function.arguments | tojson", "c.function.arguments | tojson | tojson")
BACKWARD = HERMES.replace(
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}',
    '{"arguments": {{ c.function.arguments | tojson }}, "name": "{{ c.function.name }}"}',
)
ELSEWHERE = HERMES.replace("<|im_start|>{{ m.role }}", "<|im_start|>{{ 'caller' if m.tool_calls else m.role }}")
LLAMA = (
    "<|begin|>{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n"
    "{% if loop.first and tools %}{% for tool in tools %}{{ tool | tojson(indent=4) }}\n{% endfor %}{% endif %}"
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    '{% set c = m.tool_calls[0].function %}{"name": "{{ c.name }}", "parameters": {{ c.arguments | tojson }}}'
    "{% else %}{{ m.content }}{% endif %}<|eot|>{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
MISTRAL = (
    "<s>{% if tools %}[TOOLS] {{ tools | tojson }}[/TOOLS]{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]</s>{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
BARE = MISTRAL.replace("[TOOL_CALLS] [", "").replace("]</s>", "</s>").replace(", {% endif", "{% endif").replace(
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}',
    "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}",
)  # fmt: skip
BARE_WITH_IDS = BARE.replace("[ARGS]", "[CALL_ID]{{ c.id }}[ARGS]")
FENCED = (
    "<s>{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{% if loop.first %}<calls>{% endif %}<call>function<sep>{{ c.function.name }}\n```json\n"
    "{{ c.function.arguments | tojson }}\n```</call>{% if not loop.last %}{{ '\n' }}{% else %}</calls>{% endif %}{% endfor %}"
    "</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# As DeepSeek R1 and V3.1 write calls, who join arguments to a text and refuse an object.
JOINED = FENCED.replace("{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}")
# As Kimi K2 does it: the calls of an answer are counted.
COUNTED = TURNS + (
    "{{ m.content }}{% for c in m.tool_calls or [] %}{% if loop.first %}<calls>{% endif %}<call>functions.{{ c.function.name }}:"
    "{{ loop.index0 }}<sep>{{ c.function.arguments | tojson }}</call>{% if loop.last %}</calls>{% endif %}{% endfor %}"
) + TURN_END  # fmt: skip
# As Command R7B does it: the number of a call stands before its name, an answer has marks, and the prompt closes the thought.
ACTIONS = TURNS + (
    "{% if m.tool_calls %}<think></think><calls>[\n{% for c in m.tool_calls %}"
    '    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}'
    "{{ ',\n' if not loop.last }}{% endfor %}]</calls>{% elif m.role == 'assistant' %}<call>{{ m.content }}</call>"
    "{% else %}{{ m.content }}{% endif %}"
) + TURN_END.replace("assistant\n", "assistant\n<think></think>")  # fmt: skip
# As later models of Cohere: the prompt opens a thought, which is left out before the calls of the conversation.
ACTIONS_AFTER_THOUGHT = ACTIONS.replace("<think></think>", "", 1).replace("<think></think>", "<think>")
# As Bielik and Apriel write calls: on a line of their own.
BELOW = HERMES.replace("{% if not loop.first or m.content %}{{ '\n' }}{% endif %}", "{{ '\n' }}")
# As Gemma 4 does it: the keys of an object are bare words, and a text is put between the braces as it is.
BRACED = TURNS + (
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>call:{{ c.function.name }}{{ '{' }}"
    "{% if c.function.arguments is mapping %}{% for k, v in c.function.arguments | items %}{{ k }}:'{{ v }}'{% endfor %}"
    "{% else %}{{ c.function.arguments }}{% endif %}{{ '}' }}</tool_call>{% endfor %}"
) + TURN_END  # fmt: skip
VISIBLE = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<calls>", "</calls>", "<call>", "</call>", "<sep>"]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|begin|>", "<|eot|>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"]
ENDS = ["<|im_end|>", "<|eot|>", "</s>"]

OPEN = '<tool_call>\n{"name": "'
CLOSE = "}\n</tool_call>"
RING = {"type": "object", "properties": {"times": {"type": "integer"}, "why": {"type": "string"}}, "additionalProperties": False}
TOOLS = {"ring": RING, "ring_twice": {"type": "object", "properties": {}, "additionalProperties": False}}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with the added tokens of all templates, and the formats learned so far."""

    base: PreTrainedTokenizerFast
    guidance: LLTokenizer
    formats: dict[str, ToolFormat] = field(default_factory=dict)

    def learn(self, template: str) -> ToolFormat | ToolsUnsupported:
        def render(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], add_generation_prompt: bool) -> str:
            try:
                return str(
                    self.base.apply_chat_template(
                        list(messages),
                        tools=list(tools),
                        chat_template=template,
                        tokenize=False,
                        add_generation_prompt=add_generation_prompt,
                    )
                )
            except (TemplateError, TypeError) as error:
                raise InvalidRequest(str(error)) from error

        ids = {token.content: id for id, token in self.base.added_tokens_decoder.items()}
        return learn_tool_format(render, AddedTokens(ids, frozenset(ids) - frozenset(VISIBLE), frozenset(ENDS)))

    def format(self, template: str) -> ToolFormat:
        if template not in self.formats:
            learned = self.learn(template)
            assert isinstance(learned, ToolFormat), learned
            self.formats[template] = learned
        return self.formats[template]

    def allows(self, grammar: str, text: str) -> bool | None:
        """Whether the grammar allows the text as a complete answer (True), only as the beginning of one (None), or not at all."""
        matcher = LLMatcher(self.guidance, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = self.base.encode(text, add_special_tokens=False)
        if matcher.try_consume_tokens(ids) < len(ids):
            return False
        return True if matcher.is_accepting() else None


def write(format: ToolFormat, calls: Sequence[tuple[str, str]]) -> str:
    """An answer with these calls (name, arguments), as the template writes it, each id being nine letters, or each number 12."""
    id = "abcdefghi" if format.call_id == CALL_ID else "12"
    between, opening = id.join(format.between_calls or ()), id.join(format.opening)
    before_arguments, after_calls = id.join(format.before_arguments), id.join(format.after_calls)
    return opening + between.join(name + before_arguments + arguments for name, arguments in calls) + after_calls


TEMPLATES = {
    "hermes": HERMES,
    "thinking": THINKING,
    "spelled": SPELLED,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "fenced": FENCED,
    "joined": JOINED,
    "bare": BARE,
    "bare_with_ids": BARE_WITH_IDS,
    "counted": COUNTED,
    "actions": ACTIONS,
}
SEVERAL_CALLS = [name for name in TEMPLATES if name != "llama"]
