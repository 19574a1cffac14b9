"""Channels of GPT-OSS: their headers are taken out of a stream in any pieces, and the grammars of forms and calls stand in them."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from app.engine.grammar import GrammarCompiler
from app.forms.channels import BETWEEN, CALL, FINAL, NEXT, START, Channels
from app.forms.grammar import json_grammar
from app.forms.parser import ArgumentsDelta, TextDelta, ToolCallParser, ToolCallStart
from app.forms.reasoning import learn_reasoning
from app.forms.splitter import Place
from app.forms.tools import AddedTokens, Calls, ToolFormat

CHANNELS = Channels()
ANALYSIS = f"{CHANNELS.open}so{NEXT}"
TEMPLATE_CALL = " to=functions.ring<|channel|>commentary json<|message|>{}"
OWN_CALL = "<|channel|>commentary to=functions.ring <|constrain|>json<|message|>{}"
TOLD_CALL = f"{CALL}ring<|message|>{{}}"
LONG = "mcp__a.b__" + "x" * 118
LONG_CALL = f"{START}assistant<|channel|>commentary to=functions.{LONG}<|channel|>commentary <|constrain|> json<|message|>{{}}"
CASES = [
    (f"{ANALYSIS}{FINAL}Yes.", "so", "Yes."),
    (f"{FINAL}Yes.<|end|>", "", "Yes."),
    (f"{ANALYSIS}<|channel|>commentary<|message|>Look.{NEXT}{ANALYSIS}{FINAL}Yes.", f"so{BETWEEN}so", f"Look.{BETWEEN}Yes."),
    (f"{ANALYSIS}{OWN_CALL}", "so", TOLD_CALL),
    (f"{ANALYSIS}{TEMPLATE_CALL}", "so", TOLD_CALL),
    (f"{ANALYSIS.removesuffix(NEXT)}<|end|>{LONG_CALL}", "so", f"{CALL}{LONG}<|message|>{{}}"),
    (f"<|channel|>commentary<|message|>Look.{NEXT}{OWN_CALL}", "", f"Look.{TOLD_CALL}"),
    (f"{OWN_CALL}{NEXT}{TEMPLATE_CALL}", "", TOLD_CALL * 2),
    (f"{ANALYSIS}<|channel|>final <|constrain|>json<|message|>{{}}", "so", "{}"),
    ("Yes. <|channel|>", "", "Yes. <|channel|>"),
    ("to= or not", "", "to= or not"),
    ("to=functions." + "x" * 300, "", "to=functions." + "x" * 300),
    (f"{ANALYSIS}<|channel|>fin", "so", ""),
    (f"{CHANNELS.open}so <|en", "so <|en", ""),
    ("", "", ""),
]


@pytest.mark.parametrize(("text", "thought", "answer"), CASES)
@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=8))
def test_messages_are_split_alike_in_any_pieces(text: str, thought: str, answer: str, cuts: list[int]) -> None:
    splitter = CHANNELS.splitter(Place.BEFORE_THOUGHT, has_calls=True)
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    parts = [splitter.push(text[start:end]) for start, end in zip(bounds, bounds[1:], strict=False)] + [splitter.flush()]
    assert ("".join(part.thought for part in parts), "".join(part.answer for part in parts)) == (thought, answer)


def test_what_a_prompt_has_begun_goes_on() -> None:
    for prompt, text, parts in (
        ("<|start|>assistant", f"{ANALYSIS}{FINAL}Yes.", ("so", "Yes.")),
        (f"<|start|>assistant{CHANNELS.open}", f"so{NEXT}{FINAL}Yes.", ("so", "Yes.")),
        (f"<|start|>assistant{FINAL}", "Yes.", ("", "Yes.")),
    ):
        part = CHANNELS.splitter(CHANNELS.place(prompt), has_calls=False).push(text)
        assert (part.thought, part.answer) == parts


@pytest.mark.parametrize(
    ("prompt", "continued", "place", "text", "parts"),
    [
        (FINAL, "Yes,", Place.AFTER_THOUGHT, " sir.", ("", " sir.")),
        ("", f"{CHANNELS.open}so", Place.IN_THOUGHT, f" it is{NEXT}{FINAL}Yes.", (" it is", "Yes.")),
        ("", f"{CHANNELS.open}so<|en", Place.IN_THOUGHT, f"d|>{START}assistant{FINAL}Yes.", ("", "Yes.")),
        ("", f"{ANALYSIS}{FINAL}Yes", Place.AFTER_THOUGHT, ", sir.", ("", ", sir.")),
    ],
)
def test_a_continued_message_goes_on_in_its_channel(prompt: str, continued: str, place: Place, text: str, parts: tuple[str, str]) -> None:
    splitter = CHANNELS.splitter(CHANNELS.place(prompt), has_calls=False)
    splitter.go_on(continued)
    assert splitter.place == place
    part = splitter.push(text)
    assert (part.thought, part.answer) == parts


def test_without_tools_a_call_is_shown_as_it_stands() -> None:
    assert CHANNELS.splitter(Place.BEFORE_THOUGHT, has_calls=False).push(OWN_CALL).answer == "{}"


def test_thinking_goes_on_between_messages() -> None:
    splitter, said = CHANNELS.splitter(Place.BEFORE_THOUGHT, False), []
    for token in (CHANNELS.open, "so", "<|end|>", "<|start|>", "assistant", "<|channel|>", "final", "<|message|>", "Yes"):
        splitter.push(token)
        said.append(splitter.is_thinking)
    assert said == [True] * 7 + [False] * 2


def test_a_template_with_channels_is_recognised() -> None:
    assert learn_reasoning("{{ '<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}") == CHANNELS


def test_a_thought_comes_back_where_the_template_has_a_place_for_it() -> None:
    said = {"role": "assistant", "content": "Look."}
    assert CHANNELS.with_thought(said, "so") == {**said, "thinking": "so"}
    calls = {**said, "tool_calls": [{}]}
    assert CHANNELS.with_thought(calls, "so") == {**calls, "content": "", "thinking": f"so{BETWEEN}Look."}


class Vocabulary:
    def __init__(self, folder: str) -> None:
        self.base: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
        marks = [*CHANNELS.marks, "<|call|>"]
        self.base.add_special_tokens({"additional_special_tokens": [AddedToken(mark, special=True, normalized=False) for mark in marks]})
        self.guidance: LLTokenizer = from_tokenizer(self.base, eos_token=self.base.convert_tokens_to_ids("<|call|>"))
        self.tokens = AddedTokens(dict(zip(marks, self.base.convert_tokens_to_ids(marks), strict=True)), frozenset(), frozenset())

    def fits(self, grammar: str, text: str) -> bool:
        matcher = LLMatcher(self.guidance, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = self.base.encode(text, add_special_tokens=False)
        return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@pytest.fixture(scope="module")
def vocabulary(bundled: Any) -> Vocabulary:
    return Vocabulary(bundled)


def test_a_form_is_the_message_in_the_final_channel(vocabulary: Vocabulary) -> None:
    form = json_grammar({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]})
    grammar = CHANNELS.form_grammar(form, vocabulary.tokens, Place.BEFORE_THOUGHT)
    for text, fits in (
        (f'{ANALYSIS}{FINAL}{{"a": true}}', True),
        (f'{FINAL}{{"a": true}}', True),
        (f'{ANALYSIS}<|channel|>commentary<|message|>Look.{NEXT}{ANALYSIS}{FINAL}{{"a": true}}', True),
        ('{"a": true}', False),
        (f"{ANALYSIS}{FINAL}Yes", False),
        (f'{CHANNELS.open}{{"a": true}}', False),
    ):
        assert vocabulary.fits(grammar, text) == fits, text
    opened, closed = (CHANNELS.form_grammar(form, vocabulary.tokens, place) for place in (Place.IN_THOUGHT, Place.AFTER_THOUGHT))
    assert vocabulary.fits(opened, f'so{NEXT}{FINAL}{{"a": true}}') and vocabulary.fits(closed, '{"a": true}')


RING: Mapping[str, Any] = {"type": "object", "properties": {"times": {"type": "integer"}}, "additionalProperties": False}
LEARNED = ToolFormat("to=functions.", ("<|channel|>commentary json<|message|>",), None, ("",), AddedTokens({}, frozenset(), frozenset()))


def test_a_call_may_be_written_in_either_way(vocabulary: Vocabulary) -> None:
    tools, format = {"ring": dict(RING), "sing": dict(RING)}, CHANNELS.tool_format(LEARNED)
    for forced in (True, False):
        grammar = CHANNELS.calls_grammar(Calls(format, tools, forced, True), vocabulary.tokens, Place.BEFORE_THOUGHT)
        for text, fits in (
            (f"{ANALYSIS}{OWN_CALL}", True),
            (TEMPLATE_CALL, True),
            (f"{ANALYSIS}<|channel|>commentary<|message|>Look.{NEXT}{TEMPLATE_CALL.replace('ring', 'sing')}", True),
            (TEMPLATE_CALL.replace("ring", "ding"), False),
            (TEMPLATE_CALL.replace("{}", '{"times": "2"}'), False),
            (f"{OWN_CALL}{NEXT}{OWN_CALL}", False),
            (f"{ANALYSIS}{FINAL}Yes.", not forced),
            (f"{CHANNELS.open}so", not forced),
        ):
            assert vocabulary.fits(grammar, text) == fits, (forced, text)
        opened = CHANNELS.calls_grammar(Calls(format, tools, forced, True), vocabulary.tokens, Place.IN_THOUGHT)
        assert vocabulary.fits(opened, f"so{NEXT}{OWN_CALL}") and vocabulary.fits(opened, "so") == (not forced)


def test_calls_or_a_form(vocabulary: Vocabulary) -> None:
    calls = Calls(CHANNELS.tool_format(LEARNED), {"ring": dict(RING)}, False, True, json_grammar(dict(RING)))
    grammar = CHANNELS.calls_grammar(calls, vocabulary.tokens, Place.BEFORE_THOUGHT)
    for text, fits in (
        (f"{ANALYSIS}{OWN_CALL}", True),
        (f'{ANALYSIS}{FINAL}{{"times": 2}}', True),
        (f"{ANALYSIS}{FINAL}Yes.", False),
        (f"{CHANNELS.open}so", False),
    ):
        assert vocabulary.fits(grammar, text) == fits, text


def test_several_calls_follow_each_other_where_the_template_writes_them(vocabulary: Vocabulary) -> None:
    """As LLM-jp's does."""
    learned = ToolFormat(**{name: getattr(LEARNED, name) for name in LEARNED.__slots__} | {"between_calls": (f"{NEXT} to=functions.",)})
    format = CHANNELS.tool_format(learned)
    for parallel in (True, False):
        grammar = CHANNELS.calls_grammar(Calls(format, {"ring": dict(RING)}, True, parallel), vocabulary.tokens, Place.BEFORE_THOUGHT)
        assert vocabulary.fits(grammar, f"{OWN_CALL}{NEXT}{OWN_CALL}") == parallel
    splitter, parser = CHANNELS.splitter(Place.BEFORE_THOUGHT, True), ToolCallParser(format, True)
    events = [event for letter in f"{OWN_CALL}{NEXT}{TEMPLATE_CALL}" for event in parser.push(splitter.push(letter).answer)]
    assert [event.name for event in events if isinstance(event, ToolCallStart)] == ["ring", "ring"] and parser.complete
    assert "".join(event.arguments for event in events if isinstance(event, ArgumentsDelta)) == "{}{}"
    assert not [event for event in events if isinstance(event, TextDelta)]


def test_an_answer_is_complete_within_its_tokens(vocabulary: Vocabulary) -> None:
    """However long the thoughts would go on: the header of the final channel is found, or that of a call."""
    end = vocabulary.base.convert_tokens_to_ids("<|call|>")
    compiler = GrammarCompiler(vocabulary.base, len(vocabulary.base), [end], CHANNELS.ends)
    calls = Calls(CHANNELS.tool_format(LEARNED), {"ring": dict(RING)}, forced=True, parallel=True)
    for place in (Place.BEFORE_THOUGHT, Place.IN_THOUGHT):
        form = CHANNELS.form_grammar(json_grammar(dict(RING)), vocabulary.tokens, place)
        for grammar in (form, CHANNELS.calls_grammar(calls, vocabulary.tokens, place)):
            state, rng, written, complete = compiler.compile(grammar, 60).result(), random.Random(3), list[int](), False
            while not complete and len(written) < 60:
                sampled = int(rng.choice(np.flatnonzero(state.allowed_tokens()).tolist()))
                written.append(state.steer(sampled, 59 - len(written)))
                complete = state.accept(written[-1])
            assert complete
