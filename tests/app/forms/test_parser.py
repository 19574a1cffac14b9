"""Tool calls that are taken out of a text: as they were written, in any pieces, and as they stream in."""

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from tool_templates import (
    CLOSE,
    HERMES,
    TEMPLATES,
    Vocabulary,
    write,
)

from app.forms.parser import ArgumentsDelta, TextDelta, ToolCallParser, ToolCallStart


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


NAME = st.from_regex("[a-zA-Z0-9_.-]{1,128}", fullmatch=True)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(['}"', '\\"{', CLOSE]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.tuples(NAME, st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), VALUE, max_size=3)), min_size=1, max_size=3
)


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"llama"}))
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_form_is_told_from_calls(vocabulary: Vocabulary, name: str, data: st.DataObject) -> None:
    format = vocabulary.format(TEMPLATES[name])
    places = data.draw(st.lists(st.integers(0, 500), max_size=9))
    call = write(format, [("ring", "{}")])
    form = json.dumps([call, data.draw(VALUE)], ensure_ascii=False)
    assert parse(ToolCallParser(format, False, {}, or_form=True), list(cut(form, places))) == (form, [])
    assert parse(ToolCallParser(format, False, {}, or_form=True), list(cut(call, places))) == ("", [("ring", "{}")])
    begun = ToolCallParser(format, False, {}, or_form=True)
    assert begun.complete and begun.push(form[:1]) in ([], [TextDelta(form[:1])]) and begun.complete


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=30, deadline=None)
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


@settings(max_examples=12, deadline=None)
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
