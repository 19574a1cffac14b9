"""Calls of tools: what is learned from a template, what the grammar lets through, what the reader takes out of the text.

The templates are small ones in the manner of well-known models, each with its marks of turns and its way of writing calls.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from app.errors import InvalidRequest
from app.forms.parser import CallPart, CallStart, Reader, Said
from app.forms.tools import Format, Marks, NoTools, learn

TURNS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
)
TURNED = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
HERMES = TURNS + (
    "{{ m.content }}{% for c in m.tool_calls or [] %}{% if not loop.first or m.content %}{{ '\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
) + TURNED  # fmt: skip
THINKING = TURNS + (
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{% if not loop.first %}{{ '\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}"
) + TURNED  # fmt: skip
SPELLED = HERMES.replace("c.function.arguments | tojson", "c.function.arguments")
DOUBLED = HERMES.replace("c.function.arguments | tojson", "c.function.arguments | tojson | tojson")
XML = TURNS + (
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n<function={{ c.function.name }}>\n"
    "{% for k, v in c.function.arguments | items %}<parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}"
    "</function>\n</tool_call>{% endfor %}"
) + TURNED  # fmt: skip
BACKWARD = HERMES.replace(
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}',
    '{"arguments": {{ c.function.arguments | tojson }}, "name": "{{ c.function.name }}"}',
)
ELSEWHERE = HERMES.replace("<|im_start|>{{ m.role }}", "<|im_start|>{{ 'caller' if m.tool_calls else m.role }}")
SILENT = TURNS + "{{ m.content }}" + TURNED
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
FENCED = (
    "<s>{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{% if loop.first %}<calls>{% endif %}<call>function<sep>{{ c.function.name }}\n```json\n"
    "{{ c.function.arguments | tojson }}\n```</call>{% if not loop.last %}{{ '\n' }}{% else %}</calls>{% endif %}{% endfor %}"
    "</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
SHOWN = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<calls>", "</calls>", "<call>", "</call>", "<sep>"]
HIDDEN = ["<|im_start|>", "<|im_end|>", "<|begin|>", "<|eot|>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]"]
ENDS = ["<|im_end|>", "<|eot|>", "</s>"]

OPEN = '<tool_call>\n{"name": "'
CLOSE = "}\n</tool_call>"
RING = {"type": "object", "properties": {"times": {"type": "integer"}, "why": {"type": "string"}}, "additionalProperties": False}
TOOLS = {"ring": RING, "ring_twice": {"type": "object", "properties": {}, "additionalProperties": False}}


@dataclass(frozen=True)
class Taught:
    """A vocabulary with all the marks, and its templates."""

    base: PreTrainedTokenizerFast
    low: LLTokenizer
    known: dict[str, Format] = field(default_factory=dict)

    def learn(self, template: str) -> Format | NoTools:
        def render(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], opened: bool) -> str:
            try:
                return str(
                    self.base.apply_chat_template(
                        list(messages), tools=list(tools), chat_template=template, tokenize=False, add_generation_prompt=opened
                    )
                )
            except (TemplateError, TypeError) as error:
                raise InvalidRequest(str(error)) from error

        controls = {token.content: id for id, token in self.base.added_tokens_decoder.items()}
        return learn(render, Marks(controls, frozenset(controls) - frozenset(SHOWN), frozenset(ENDS)))

    def format(self, template: str) -> Format:
        if template not in self.known:
            found = self.learn(template)
            assert isinstance(found, Format), found
            self.known[template] = found
        return self.known[template]

    def follows(self, grammar: str, text: str) -> bool | None:
        """Whether the grammar takes the text: whole, or as a beginning (None)."""
        matcher = LLMatcher(self.low, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = self.base.encode(text, add_special_tokens=False)
        if matcher.try_consume_tokens(ids) < len(ids):
            return False
        return True if matcher.is_accepting() else None


@pytest.fixture(scope="module")
def taught(bundled: Any) -> Taught:
    base = AutoTokenizer.from_pretrained(bundled)
    base.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in SHOWN])
    base.add_special_tokens({"additional_special_tokens": [AddedToken(mark, special=True, normalized=False) for mark in HIDDEN]})
    return Taught(base, from_tokenizer(base))


def write(format: Format, calls: Sequence[tuple[str, str]]) -> str:
    """As the template does, each id nine letters."""
    between = "abcdefghi".join(format.between or ())
    middle, close = "abcdefghi".join(format.middle), "abcdefghi".join(format.close)
    return format.begin + between.join(name + middle + arguments for name, arguments in calls) + close


CALLERS = {"hermes": HERMES, "thinking": THINKING, "spelled": SPELLED, "llama": LLAMA, "mistral": MISTRAL, "fenced": FENCED}
MANY = [name for name in CALLERS if name != "llama"]


@pytest.mark.parametrize("template", [HERMES, THINKING])
def test_calls_in_tags_are_learned_without_the_thoughts_before_them(taught: Taught, template: str) -> None:
    format = taught.format(template)
    assert (format.begin, format.middle, format.close) == (OPEN, ('", "arguments": ',), (CLOSE,))
    assert format.between == (f"{CLOSE}\n{OPEN}",)
    assert (format.trigger, format.spelled) == ("<tool_call>", False)


def test_a_template_that_takes_one_call_only_has_nothing_between(taught: Taught) -> None:
    format = taught.format(LLAMA)
    assert (format.begin, format.middle, format.close, format.between) == ('{"name": "', ('", "parameters": ',), ("}",), None)
    assert format.trigger == format.begin


def test_ids_of_calls_stand_between_the_pieces(taught: Taught) -> None:
    format = taught.format(MISTRAL)
    assert format.begin == '[TOOL_CALLS] [{"name": "'
    assert (format.between, format.close) == ((', "id": "', '"}, {"name": "'), (', "id": "', '"}]'))
    assert write(format, [("ring", "{}")]) == '[TOOL_CALLS] [{"name": "ring", "arguments": {}, "id": "abcdefghi"}]'


def test_arguments_that_the_template_takes_as_text_are_told(taught: Taught) -> None:
    assert taught.format(SPELLED) == Format(**{**fields(taught.format(HERMES)), "spelled": True})


def fields(format: Format) -> dict[str, Any]:
    return {name: getattr(format, name) for name in ("begin", "middle", "between", "close", "marks", "spelled")}


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (TURNS.replace("tools", "nothing") + "{{ m.content }}" + TURNED, "no place for tools"),
        (TURNS + "{{ m.content }}" + TURNED, "none for their calls"),
        (XML, "one JSON object"),
        (DOUBLED, "one JSON object"),
        (BACKWARD, "one JSON object behind"),
        (BARE, "no text"),
        (ELSEWHERE, "another place"),
        (HERMES.replace("{{ m.content }}", "{{ raise_exception('too long') if m.tool_calls }}{{ m.content }}"), "too long"),
        (HERMES.replace("<tool_call>\n{", "{{ c.function.name }}<tool_call>\n{"), "once"),
    ],
)
def test_what_cannot_be_held_to_is_told_with_its_reason(taught: Taught, template: str, says: str) -> None:
    found = taught.learn(template)
    assert isinstance(found, NoTools) and says in found.reason, found


@pytest.mark.parametrize("name", CALLERS)
@pytest.mark.parametrize("parallel", [True, False])
def test_forced_answers_are_calls(taught: Taught, name: str, parallel: bool) -> None:
    format = taught.format(CALLERS[name])
    grammar = format.grammar(TOOLS, True, parallel)
    one = write(format, [("ring", '{"times": 2}')])
    assert taught.follows(grammar, one) is True
    assert taught.follows(grammar, one.removesuffix(format.close[-1])) is None
    assert taught.follows(grammar, write(format, [("ring_twice", "{}")])) is True
    assert taught.follows(grammar, write(format, [("sing", "{}")])) is False
    assert taught.follows(grammar, write(format, [("ring", '{"times": "2"}')])) is False
    assert taught.follows(grammar, write(format, [("ring_twice", '{"times": 2}')])) is False
    assert taught.follows(grammar, "I will. " + one) is False
    assert taught.follows(grammar, one + " Done.") is False


@pytest.mark.parametrize("name", CALLERS)
@pytest.mark.parametrize("parallel", [True, False])
def test_free_answers_are_text_or_end_in_calls(taught: Taught, name: str, parallel: bool) -> None:
    format = taught.format(CALLERS[name])
    grammar = format.grammar(TOOLS, False, parallel)
    one = write(format, [("ring", '{"times": 2, "why": "a \\"b\\" }"}')])
    for text in ("", "It is late.\n\n", "a < b, {x}, [1] <tool", one, "I will: " + one):
        assert taught.follows(grammar, text) is True, text
    assert taught.follows(grammar, format.begin) is None
    for text in (format.begin + "sing", "I will: " + one + " Done."):
        assert taught.follows(grammar, text) is False, text


@pytest.mark.parametrize("name", MANY)
def test_several_calls_only_where_they_may_be(taught: Taught, name: str) -> None:
    format = taught.format(CALLERS[name])
    three = write(format, [("ring", '{"times": 2}'), ("ring_twice", "{}"), ("ring", "{}")])
    for forced in (True, False):
        assert taught.follows(format.grammar(TOOLS, forced, True), three) is True
        assert taught.follows(format.grammar(TOOLS, forced, False), three) is False


def test_marks_that_are_shown_may_stand_in_the_text(taught: Taught) -> None:
    """Those of thoughts, for example. They may not stand in for a call's own, nor help to hide one."""
    for name in CALLERS:
        format = taught.format(CALLERS[name])
        grammar = format.grammar(TOOLS, False, True)
        one = write(format, [("ring", "{}")])
        assert taught.follows(grammar, "<think>a<think>\nb</think> c") is True
        assert taught.follows(grammar, f"<think>a</think>{one}") is True
        assert taught.follows(grammar, f"<think>a</think>{one.replace('ring', 'sing')}") is False
        assert taught.follows(grammar, "a<s>b") is False


def test_what_looks_like_a_call_is_no_text(taught: Taught) -> None:
    """Letter by letter, too: the reader could not tell it from a call."""
    for name in ("hermes", "mistral"):
        format = taught.format(CALLERS[name])
        matcher = LLMatcher(taught.low, format.grammar(TOOLS, False, True), log_level=0)
        spelt = [id for letter in format.marks.shown(format.begin) for id in taught.base.encode(letter, add_special_tokens=False)]
        assert matcher.try_consume_tokens(spelt) < len(spelt)


def read(reader: Reader, pieces: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """The text, and the calls with their arguments put together."""
    said, calls = "", []
    for event in [*(event for piece in pieces for event in reader.push(piece)), *reader.flush()]:
        match event:
            case Said(text):
                said += text
            case CallStart(index, name):
                assert index == len(calls)
                calls.append((name, ""))
            case CallPart(index, arguments):
                calls[index] = (calls[index][0], calls[index][1] + arguments)
    return said, calls


def cut(text: str, places: Sequence[int]) -> Iterator[str]:
    marks = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    yield from (text[start:end] for start, end in zip(marks, marks[1:], strict=False))


NAME = st.from_regex("[a-zA-Z0-9_-]{1,64}", fullmatch=True)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(['}"', '\\"{', CLOSE]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.tuples(NAME, st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), VALUE, max_size=3)), min_size=1, max_size=3
)


@pytest.mark.parametrize("name", CALLERS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read(taught: Taught, name: str, data: st.DataObject) -> None:
    format = taught.format(CALLERS[name])
    calls = [(called, json.dumps(values, ensure_ascii=data.draw(st.booleans()))) for called, values in data.draw(CALLS)]
    calls = calls if format.between else calls[:1]
    text = data.draw(st.sampled_from(["", "I will. ", "<", "a < b\n", "<tool_cal", '{"name" ']))
    forced = data.draw(st.booleans())
    assume(not any(mark in values for mark in format.marks.hidden for _, values in calls))  # `shown` would take them out of arguments, too
    shown = ("" if forced else text) + format.marks.shown(write(format, calls))
    reader = Reader(format, forced)
    assert read(reader, list(cut(shown, data.draw(st.lists(st.integers(0, 10_000)))))) == ("" if forced else text, calls)
    assert reader.whole


def unmarked(values: Any) -> str:
    """Without texts that the tokenizer would read as marks, and without the one character beyond JSON's own that llguidance leaves out."""
    return json.dumps(values, ensure_ascii=False).replace("_call>", "").replace("\x7f", "")


@settings(max_examples=30, deadline=None)
@given(calls=CALLS)
def test_what_is_written_is_let_through(taught: Taught, calls: list[tuple[str, Any]]) -> None:
    """Under any schema, by any name. No other name is."""
    for name in CALLERS:
        format = taught.format(CALLERS[name])
        some = [(called, unmarked(values)) for called, values in (calls if format.between else calls[:1])]
        tools = {called: {"type": "object"} for called, _ in some}
        assert taught.follows(format.grammar(tools, True, True), write(format, some)) is True
        assert taught.follows(format.grammar(tools, True, True), write(format, [(some[0][0] + ".", "{}"), *some[1:]])) is False


def wander(taught: Taught, grammar: str, rng: random.Random) -> list[int]:
    """An answer by a model that knows nothing but the grammar; it ends where it may."""
    matcher, ids = LLMatcher(taught.low, grammar, log_level=0), []
    while not (matcher.is_accepting() and ids):
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        ids.append(int(rng.choice(np.flatnonzero(bits))))
        assert matcher.consume_token(ids[-1]) and len(ids) < 2000
    return ids


@pytest.mark.parametrize("name", CALLERS)
def test_what_the_grammar_lets_through_is_read(taught: Taught, name: str) -> None:
    format = taught.format(CALLERS[name])
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}, "b": {"enum": [1, "}"]}}, "required": ["a", "b"]}
    tools = {"ring": {**schema, "additionalProperties": False}, "sing": {"type": "object", "properties": {}, "additionalProperties": False}}
    for seed in range(20):
        ids = wander(taught, format.grammar(tools, True, True), random.Random(seed))
        reader = Reader(format, True)
        said, calls = read(reader, [taught.base.decode(ids, skip_special_tokens=True)])
        assert reader.whole and not said and calls
        for called, arguments in calls:
            assert set(json.loads(arguments)) == ({"a", "b"} if called == "ring" else set())


@pytest.mark.parametrize("name", CALLERS)
def test_a_cut_answer_is_not_whole(taught: Taught, name: str) -> None:
    format = taught.format(CALLERS[name])
    shown = format.marks.shown(write(format, [("ring", '{"times": 2}')]))
    begin = len(format.marks.shown(format.begin))
    for end in range(begin, len(shown)):
        reader = Reader(format, False)
        said, calls = read(reader, [shown[:end]])
        assert not said and not reader.whole
        assert len(calls) <= 1
    for end in range(1, begin):
        assert read(Reader(format, False), [shown[:end]]) == (shown[:end], [])
        assert read(Reader(format, True), [shown[:end]]) == ("", [])


def test_arguments_come_as_they_are_written(taught: Taught) -> None:
    reader = Reader(taught.format(HERMES), False)
    assert reader.push("So: <tool") == [Said("So: ")]
    assert reader.push('_call>\n{"name": "ri') == []
    assert reader.push('ng"') == [CallStart(0, "ring")]
    assert reader.push(', "arguments": {"a') == [CallPart(0, '{"a')]
    assert reader.push('": "}"}}\n</tool_') == [CallPart(0, '": "}"}')]
    assert not reader.whole
    assert reader.push("call>") == [] and reader.whole
    assert reader.flush() == []
