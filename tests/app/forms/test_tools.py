"""Tool calls: what is learned from a chat template, what the grammar allows, what the parser takes out of the text.

The templates are short versions of those of well-known models, each with its own turn markers and way of writing calls.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from app.errors import InvalidRequest
from app.forms.learning import learn_tool_format
from app.forms.parser import ArgumentsDelta, TextDelta, ToolCallParser, ToolCallStart
from app.forms.tools import CALL_ID, CALL_NUMBER, AddedTokens, ToolFormat, ToolsUnsupported

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
XML = TURNS + (
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n<function={{ c.function.name }}>\n"
    "{% for k, v in c.function.arguments | items %}<parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}"
    "</function>\n</tool_call>{% endfor %}"
) + TURN_END  # fmt: skip
BACKWARD = HERMES.replace(
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}',
    '{"arguments": {{ c.function.arguments | tojson }}, "name": "{{ c.function.name }}"}',
)
ELSEWHERE = HERMES.replace("<|im_start|>{{ m.role }}", "<|im_start|>{{ 'caller' if m.tool_calls else m.role }}")
SILENT = TURNS + "{{ m.content }}" + TURN_END
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


@pytest.fixture(scope="module")
def vocabulary(bundled: Any) -> Vocabulary:
    base = AutoTokenizer.from_pretrained(bundled)
    base.add_tokens([AddedToken(text, special=False, normalized=False) for text in VISIBLE])
    base.add_special_tokens({"additional_special_tokens": [AddedToken(text, special=True, normalized=False) for text in SPECIAL]})
    return Vocabulary(base, from_tokenizer(base))


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


def parse(parser: ToolCallParser, chunks: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """The text outside calls, and the calls as (name, arguments)."""
    answer, calls = "", []
    for event in [*(event for chunk in chunks for event in parser.push(chunk)), *parser.flush()]:
        match event:
            case TextDelta(text):
                answer += text
            case ToolCallStart(index, name):
                assert index == len(calls)
                calls.append((name, ""))
            case ArgumentsDelta(index, arguments):
                calls[index] = (calls[index][0], calls[index][1] + arguments)
    return answer, calls


def cut(text: str, places: Sequence[int]) -> Iterator[str]:
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    yield from (text[start:end] for start, end in zip(borders, borders[1:], strict=False))


NAME = st.from_regex("[a-zA-Z0-9_-]{1,64}", fullmatch=True)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(['}"', '\\"{', CLOSE]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.tuples(NAME, st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), VALUE, max_size=3)), min_size=1, max_size=3
)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_written_calls_are_parsed(vocabulary: Vocabulary, name: str, data: st.DataObject) -> None:
    format = vocabulary.format(TEMPLATES[name])
    calls = [(tool, json.dumps(values, ensure_ascii=data.draw(st.booleans()))) for tool, values in data.draw(CALLS)]
    calls = calls if format.between_calls else calls[:1]
    text = data.draw(st.sampled_from(["", "I will. ", "<", "a < b\n", "<tool_cal", '{"name" ']))
    forced = data.draw(st.booleans())
    visible = ("" if forced else text) + write(format, calls)
    parser = ToolCallParser(format, forced)
    assert parse(parser, list(cut(visible, data.draw(st.lists(st.integers(0, 10_000)))))) == ("" if forced else text, calls)
    assert parser.complete


def without_added_tokens(values: Any) -> str:
    """As JSON, without the names of added tokens and without U+007F, which llguidance does not write."""
    return json.dumps(values, ensure_ascii=False).replace("_call>", "").replace("\x7f", "")


@settings(max_examples=30, deadline=None)
@given(calls=CALLS)
def test_written_calls_are_allowed(vocabulary: Vocabulary, calls: list[tuple[str, Any]]) -> None:
    """By the names of the tools and no others, with any arguments."""
    for name in TEMPLATES:
        format = vocabulary.format(TEMPLATES[name])
        written = [(tool, without_added_tokens(values)) for tool, values in (calls if format.between_calls else calls[:1])]
        tools = {tool: {"type": "object"} for tool, _ in written}
        assert vocabulary.allows(format.grammar(tools, True, True), write(format, written)) is True
        assert vocabulary.allows(format.grammar(tools, True, True), write(format, [(written[0][0] + ".", "{}"), *written[1:]])) is False


def random_answer(vocabulary: Vocabulary, grammar: str, rng: random.Random) -> list[int]:
    """Random tokens that the grammar allows, until the answer may end."""
    matcher, ids = LLMatcher(vocabulary.guidance, grammar, log_level=0), []
    while not (matcher.is_accepting() and ids):
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        ids.append(int(rng.choice(np.flatnonzero(bits))))
        assert matcher.consume_token(ids[-1]) and len(ids) < 2000
    return ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_the_grammar_allows_is_parsed(vocabulary: Vocabulary, name: str) -> None:
    format = vocabulary.format(TEMPLATES[name])
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}, "b": {"enum": [1, "}"]}}, "required": ["a", "b"]}
    tools = {"ring": {**schema, "additionalProperties": False}, "sing": {"type": "object", "properties": {}, "additionalProperties": False}}
    for seed in range(20):
        ids = random_answer(vocabulary, format.grammar(tools, True, True), random.Random(seed))
        parser = ToolCallParser(format, True)
        text, calls = parse(parser, [vocabulary.base.decode(ids)])
        assert parser.complete and not text and calls
        for tool, arguments in calls:
            assert set(json.loads(arguments)) == ({"a", "b"} if tool == "ring" else set())


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_truncated_answer_is_not_complete(vocabulary: Vocabulary, name: str) -> None:
    format = vocabulary.format(TEMPLATES[name])
    visible = write(format, [("ring", '{"times": 2}')])
    begin = len(format.before_name)
    for end in range(begin, len(visible)):
        parser = ToolCallParser(format, False)
        text, calls = parse(parser, [visible[:end]])
        assert not text and not parser.complete
        assert len(calls) <= 1
    for end in range(1, begin):
        assert parse(ToolCallParser(format, False), [visible[:end]]) == (visible[:end], [])
        assert parse(ToolCallParser(format, True), [visible[:end]]) == ("", [])


def test_arguments_are_reported_as_they_stream_in(vocabulary: Vocabulary) -> None:
    parser = ToolCallParser(vocabulary.format(HERMES), False)
    assert parser.push("So: <tool") == [TextDelta("So: ")]
    assert parser.push('_call>\n{"name": "ri') == []
    assert parser.push('ng"') == [ToolCallStart(0, "ring")]
    assert parser.push(', "arguments": {"a') == [ArgumentsDelta(0, '{"a')]
    assert parser.push('": "}"}}\n</tool_') == [ArgumentsDelta(0, '": "}"}')]
    assert not parser.complete
    assert parser.push("call>") == [] and parser.complete
    assert parser.flush() == []
