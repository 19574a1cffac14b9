"""Tool calls: what is learned from a chat template, and what the grammar allows."""

from typing import Any

import pytest
from llguidance import LLMatcher
from tool_templates import (
    ACTIONS,
    ACTIONS_AFTER_THOUGHT,
    BACKWARD,
    BARE,
    BELOW,
    BRACED,
    CLOSE,
    COUNTED,
    DOUBLED,
    ELSEWHERE,
    FENCED,
    HERMES,
    JOINED,
    LLAMA,
    MISTRAL,
    OPEN,
    SEVERAL_CALLS,
    SPELLED,
    TEMPLATES,
    THINKING,
    TOOLS,
    TURN_END,
    TURNS,
    Vocabulary,
    write,
)

from app.forms.grammar import json_grammar
from app.forms.tools import CALL_ID, CALL_NUMBER, Calls, ToolFormat, ToolsUnsupported


@pytest.mark.parametrize("template", [HERMES, THINKING])
def test_calls_in_tags_are_learned_without_the_thinking_block_before_them(vocabulary: Vocabulary, template: str) -> None:
    format = vocabulary.format(template)
    assert (format.before_name, format.before_arguments, format.after_calls) == (OPEN, ('", "arguments": ',), (CLOSE,))
    assert format.between_calls == (f"{CLOSE}\n{OPEN}",)
    assert (format.trigger, format.arguments_as_text) == ("<tool_call>", False)


def test_a_template_that_writes_one_call_at_most_has_no_between_calls(vocabulary: Vocabulary) -> None:
    format = vocabulary.format(LLAMA)
    assert (format.before_name, format.before_arguments, format.after_calls, format.between_calls) == (
        '{"name": "',
        ('", "parameters": ',),
        ("}",),
        None,
    )
    assert format.trigger == format.before_name


def test_segments_are_split_where_the_ids_of_calls_stand(vocabulary: Vocabulary) -> None:
    format = vocabulary.format(MISTRAL)
    assert format.before_name == '[TOOL_CALLS] [{"name": "'
    assert (format.between_calls, format.after_calls) == ((', "id": "', '"}, {"name": "'), (', "id": "', '"}]'))
    assert write(format, [("ring", "{}")]) == '[TOOL_CALLS] [{"name": "ring", "arguments": {}, "id": "abcdefghi"}]'


def test_the_numbers_of_calls_are_told_from_fixed_text(vocabulary: Vocabulary) -> None:
    format = vocabulary.format(COUNTED)
    assert (format.opening, format.before_arguments, format.call_id) == (("<calls><call>functions.",), (":", "<sep>"), CALL_NUMBER)
    assert (format.between_calls, format.after_calls) == (("</call><call>functions.",), ("</call></calls>",))
    from_one = vocabulary.format(COUNTED.replace("loop.index0", "loop.index"))
    assert (from_one.before_arguments, from_one.between_calls) == (format.before_arguments, format.between_calls)
    alike = vocabulary.format(COUNTED.replace("{{ loop.index0 }}", "0"))
    assert (alike.before_arguments, alike.call_id) == ((":0<sep>",), CALL_ID)


def test_a_call_may_stand_in_place_of_the_marks_of_an_answer(vocabulary: Vocabulary) -> None:
    for template in (ACTIONS, ACTIONS_AFTER_THOUGHT):
        format = vocabulary.format(template)
        assert (format.opening, format.trigger) == (('<calls>[\n    {"tool_call_id": "', '", "tool_name": "'), "<calls>")
        assert format.between_calls == ('},\n    {"tool_call_id": "', '", "tool_name": "')
        assert format.after_calls == ("}]</calls>",)


def test_a_template_that_expects_arguments_as_text_is_recognised(vocabulary: Vocabulary) -> None:
    assert vocabulary.format(SPELLED) == ToolFormat(**{**fields(vocabulary.format(HERMES)), "arguments_as_text": True})


def test_a_template_that_refuses_arguments_as_an_object_is_asked_with_text(vocabulary: Vocabulary) -> None:
    assert vocabulary.format(JOINED) == ToolFormat(**{**fields(vocabulary.format(FENCED)), "arguments_as_text": True})


def test_a_new_line_before_a_call_does_not_begin_it(vocabulary: Vocabulary) -> None:
    format = vocabulary.format(BELOW)
    assert (format.before_name, format.trigger) == (OPEN, "<tool_call>")
    grammar = format.grammar(TOOLS, False, True)
    assert vocabulary.allows(grammar, "It is late.\nSo be it.") is True
    assert vocabulary.allows(grammar, "So:\n" + write(format, [("ring", "{}")])) is True


def fields(format: ToolFormat) -> dict[str, Any]:
    return {
        name: getattr(format, name)
        for name in ("before_name", "before_arguments", "between_calls", "after_calls", "added_tokens", "arguments_as_text")
    }


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (TURNS.replace("tools", "nothing") + "{{ m.content }}" + TURN_END, "ignores tools"),
        (TURNS + "{{ m.content }}" + TURN_END, "does not write tool calls"),
        (DOUBLED, "one JSON object"),
        (BACKWARD, "one JSON object after"),
        (BRACED, "one JSON object"),
        (BARE.replace("[TOOL_CALLS]", ""), "does not mark tool calls"),
        (ELSEWHERE, "where it writes the assistant's answers"),
        (HERMES.replace("{{ m.content }}", "{{ raise_exception('too long') if m.tool_calls }}{{ m.content }}"), "too long"),
        (HERMES.replace("<tool_call>\n{", "{{ c.function.name }}<tool_call>\n{"), "exactly once"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_a_reason(vocabulary: Vocabulary, template: str, says: str) -> None:
    refusal = vocabulary.learn(template)
    assert isinstance(refusal, ToolsUnsupported) and says in refusal.reason, refusal


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("parallel", [True, False])
def test_forced_answers_are_nothing_but_calls(vocabulary: Vocabulary, name: str, parallel: bool) -> None:
    format = vocabulary.format(TEMPLATES[name])
    grammar = format.grammar(TOOLS, True, parallel)
    call = write(format, [("ring", '{"times": 2}')])
    assert vocabulary.allows(grammar, call) is True
    assert vocabulary.allows(grammar, call[: call.index("2}") + 1]) is None
    assert vocabulary.allows(grammar, write(format, [("ring_twice", "{}")])) is True
    assert vocabulary.allows(grammar, write(format, [("sing", "{}")])) is False
    assert vocabulary.allows(grammar, write(format, [("ring", '{"times": "2"}')])) is False
    assert vocabulary.allows(grammar, write(format, [("ring_twice", '{"times": 2}')])) is False
    assert vocabulary.allows(grammar, "I will. " + call) is False
    assert vocabulary.allows(grammar, call + " Done.") is False


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("parallel", [True, False])
def test_answers_that_are_not_forced_are_text_or_end_in_calls(vocabulary: Vocabulary, name: str, parallel: bool) -> None:
    format = vocabulary.format(TEMPLATES[name])
    grammar = format.grammar(TOOLS, False, parallel)
    call = write(format, [("ring", '{"times": 2, "why": "a \\"b\\" }"}')])
    for text in ("", "It is late.\n\n", "a < b, {x}, [1] <tool", call, "I will: " + call):
        assert vocabulary.allows(grammar, text) is True, text
    assert vocabulary.allows(grammar, format.before_name) is None
    for text in (format.before_name + "sing", "I will: " + call + " Done."):
        assert vocabulary.allows(grammar, text) is False, text


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_or_a_form(vocabulary: Vocabulary, name: str) -> None:
    format = vocabulary.format(TEMPLATES[name])
    form = json_grammar({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})
    assert format.begins_like_json is (name == "llama")
    if format.begins_like_json:
        return
    call, grammar = write(format, [("ring", '{"times": 2}')]), Calls(format, TOOLS, False, True, form).grammar()
    for text in ('{"a": "b"}', '{"a": "<tool> [1] {2}"}', call):
        assert vocabulary.allows(grammar, text) is True, text
    for text in ("It is late.", '{"b": 1}', '{"a": "b"}' + call, "I will: " + call):
        assert vocabulary.allows(grammar, text) is False, text
    assert vocabulary.allows(grammar, '{"a": "b"') is None
    assert Calls(format, TOOLS, True, True, form).grammar() == format.grammar(TOOLS, True, True)


@pytest.mark.parametrize("name", SEVERAL_CALLS)
def test_several_calls_only_if_parallel(vocabulary: Vocabulary, name: str) -> None:
    format = vocabulary.format(TEMPLATES[name])
    three = write(format, [("ring", '{"times": 2}'), ("ring_twice", "{}"), ("ring", "{}")])
    for forced in (True, False):
        assert vocabulary.allows(format.grammar(TOOLS, forced, True), three) is True
        assert vocabulary.allows(format.grammar(TOOLS, forced, False), three) is False


def test_visible_added_tokens_of_no_call_may_stand_in_the_text(vocabulary: Vocabulary) -> None:
    """Such as `<think>`. They cannot replace a call's own tokens, and no call can hide after one."""
    for name in TEMPLATES:
        format = vocabulary.format(TEMPLATES[name])
        grammar = format.grammar(TOOLS, False, True)
        call = write(format, [("ring", "{}")])
        assert vocabulary.allows(grammar, "<think>a<think>\nb</think> c") is True
        assert vocabulary.allows(grammar, f"<think>a</think>{call}") is True
        assert vocabulary.allows(grammar, f"<think>a</think>{call.replace('ring', 'sing')}") is False
        assert vocabulary.allows(grammar, "a<s>b") is False


def test_text_cannot_look_like_a_call(vocabulary: Vocabulary) -> None:
    """Not even letter by letter: the parser could not tell it from a call."""
    for name in ("hermes", "mistral"):
        format = vocabulary.format(TEMPLATES[name])
        matcher = LLMatcher(vocabulary.guidance, format.grammar(TOOLS, False, True), log_level=0)
        spelled = [id for letter in format.before_name for id in vocabulary.base.encode(letter, add_special_tokens=False)]
        assert matcher.try_consume_tokens(spelled) < len(spelled)
