"""Tools where a chat template leaves out the calls, or the tools: each way is chosen by what a short template of a known model writes."""

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.errors import InvalidRequest
from app.forms.parser import ArgumentsDelta, TextDelta, ToolCallParser, ToolCallStart
from app.forms.tools import AddedTokens, ToolFormat, ToolsUnsupported
from app.forms.ways import ToolRendering, learn_tools

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SHOWN = (
    "{% if tools %}<|im_start|>system\nList of tools: {{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}" + TURN
)  # LFM2's
XML = (  # SmolLM3's: tools have another name, and a thought that is switched off is written before the answer
    "<|im_start|>system\n{% if xml_tools %}<tools>\n{{ xml_tools | tojson }}\n</tools>\nCall as <tool_call>...</tool_call>{% endif %}"
    "<|im_end|>\n{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
    "{% if m.role == 'assistant' and not enable_thinking %}<think>\n\n</think>\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
GRANITE = (  # 3.3's
    "<|im_start|>system\n{% if tools %}Answer with <|tool_call|> followed by a JSON list of tools.\n{{ tools | tojson }}{% endif %}"
    "<|im_end|>\n{% for m in messages %}" + TURN
)
DEEPSEEK = (  # V3.1's: calls, but no tools
    "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% elif m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'tool' %}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>{% else %}<｜Assistant｜></think>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{% if loop.first %}<｜tool▁calls▁begin｜>{% endif %}<｜tool▁call▁begin｜>{{ c.function.name }}"
    "<｜tool▁sep｜>{{ c.function.arguments | tojson }}<｜tool▁call▁end｜>{% if loop.last %}<｜tool▁calls▁end｜>{% endif %}{% endfor %}"
    "<｜end▁of▁sentence｜>{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜></think>{% endif %}"
)
NO_RESULTS = SHOWN.replace(
    "{% for m in messages %}", "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}"
)
PLAIN = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}" + TURN
MARKS = ["<|im_start|>", "<|im_end|>", "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "<｜end▁of▁sentence｜>"]
LFM_MARKS = ["<|tool_call_start|>", "<|tool_call_end|>"]
ENDS = frozenset({"<|im_end|>", "<｜end▁of▁sentence｜>"})

ARGUMENTS = {"place": 'Köln, "Dom"', "deep": True, "steps": [1, 2]}
SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}, "deep": {"type": "boolean"}, "steps": {"type": "array"}}}
TOOL = {"type": "function", "function": {"name": "dig", "description": "Digs a hole.", "parameters": SCHEMA}}
CALL = {"id": "aB3dE5gH7", "type": "function", "function": {"name": "dig", "arguments": ARGUMENTS}}
CONVERSATION = [
    {"role": "user", "content": "Dig!"},
    {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "a hole", "tool_call_id": "aB3dE5gH7"},
]


def learn(template: str, marks: Sequence[str] = MARKS) -> ToolRendering:
    environment = ImmutableSandboxedEnvironment(keep_trailing_newline=True)
    environment.globals["raise_exception"] = _refuse

    def render(messages: Sequence[dict[str, Any]], tools: Any, prompt: bool, variables: Mapping[str, Any] = MappingProxyType({}), /) -> str:
        given = {"messages": copy.deepcopy(messages), "tools": tools, "add_generation_prompt": prompt, **variables}
        return environment.from_string(template).render(given)

    ids = {mark: 5000 + index for index, mark in enumerate(marks)}
    return learn_tools(render, AddedTokens(ids, frozenset(marks), ENDS))


def _refuse(message: str) -> str:
    raise InvalidRequest(message) from TemplateError(message)


def read(format: ToolFormat, text: str) -> tuple[str, list[tuple[str, str]]]:
    parser, said, calls = ToolCallParser(format, False, {"dig": SCHEMA}), "", list[tuple[str, str]]()
    for event in [*(event for letter in text for event in parser.push(letter)), *parser.flush()]:
        match event:
            case TextDelta(piece):
                said += piece
            case ToolCallStart(_, name):
                calls.append((name, ""))
            case ArgumentsDelta(index, piece):
                calls[index] = (calls[index][0], calls[index][1] + piece)
    assert parser.complete
    return said, calls


@pytest.mark.parametrize(
    ("template", "marks", "calls"),
    [
        (
            SHOWN,
            MARKS + LFM_MARKS,
            '<|tool_call_start|>[dig(place="Köln, \\"Dom\\"", deep=True, steps=[1, 2]), '
            'dig(place="Köln, \\"Dom\\"", deep=True, steps=[1, 2])]<|tool_call_end|>',
        ),
        (
            XML,
            MARKS,
            '<tool_call>\n{"name": "dig", "arguments": {"place": "Köln, \\"Dom\\"", "deep": true, "steps": [1, 2]}}\n</tool_call>\n'
            '<tool_call>\n{"name": "dig", "arguments": {"place": "Köln, \\"Dom\\"", "deep": true, "steps": [1, 2]}}\n</tool_call>',
        ),
        (
            GRANITE,
            MARKS + ["<|tool_call|>"],
            '<|tool_call|>[{"name": "dig", "arguments": {"place": "Köln, \\"Dom\\"", "deep": true, "steps": [1, 2]}}, '
            '{"name": "dig", "arguments": {"place": "Köln, \\"Dom\\"", "deep": true, "steps": [1, 2]}}]',
        ),
    ],
)
def test_calls_stand_in_the_content_where_the_template_shows_tools_only(template: str, marks: list[str], calls: str) -> None:
    learned = learn(template, marks)
    assert isinstance(learned.format, ToolFormat) and not learned.is_general
    text = learned.render(CONVERSATION, [TOOL], True)
    assert calls in text and "Digs a hole." in text and "a hole<|im_end|>" in text and "You can call" not in text
    said, read_back = read(learned.format, f"Yes. {calls}")
    expected = '{"place": "Köln, \\"Dom\\"", "deep": true, "steps": [1, 2]}'
    assert (said, read_back) == ("Yes. ", [("dig", expected), ("dig", expected)])


def test_special_tokens_of_a_call_belong_to_the_text_of_an_answer() -> None:
    format = learn(SHOWN, MARKS + LFM_MARKS).format
    assert isinstance(format, ToolFormat) and format.added_tokens.special == frozenset(MARKS)


def test_tools_are_told_where_the_template_writes_calls_only() -> None:
    learned = learn(DEEPSEEK)
    assert isinstance(learned.format, ToolFormat) and not learned.is_general
    assert (learned.format.before_name, learned.format.before_arguments) == (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>",
        ("<｜tool▁sep｜>",),
    )
    text = learned.render([{"role": "system", "content": "Be kind."}, *CONVERSATION], [TOOL], True)
    example = '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{"ARGUMENT": "VALUE"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    assert text.startswith("Be kind.\n\nYou can call these functions") and "Digs a hole." in text and example in text
    call = '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>dig<｜tool▁sep｜>{"'
    assert call in text and "<｜tool▁output▁begin｜>a hole<｜tool▁output▁end｜>" in text


@pytest.mark.parametrize(("template", "marks"), [(NO_RESULTS, MARKS + LFM_MARKS), (PLAIN, MARKS), (SHOWN, MARKS)])
def test_all_others_have_the_general_form(template: str, marks: list[str]) -> None:
    learned = learn(template, marks)
    assert isinstance(learned.format, ToolFormat) and learned.is_general
    assert "<tool_response>a hole</tool_response>" in learned.render(CONVERSATION, [TOOL], True)


def test_a_template_that_refuses_everything_has_no_tools() -> None:
    learned = learn("{{ raise_exception('never') }}")
    assert isinstance(learned.format, ToolsUnsupported) and "never" in learned.format.reason
