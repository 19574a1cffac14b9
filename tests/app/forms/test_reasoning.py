"""Thoughts of reasoning models: how they are recognised, split off a stream in any pieces, and put before a grammar."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment
from llguidance import LLMatcher

from app.forms.grammar import json_grammar
from app.forms.reasoning import ReasoningFormat, ThoughtSplitter, after_thought, in_answer_marks, learn_reasoning
from app.forms.splitter import Place
from app.forms.tools import AddedTokens
from app.forms.trial import byte_tokenizer

THINK = ReasoningFormat("<think>", "</think>")
FORM = json_grammar({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]})


GRANITE = ReasoningFormat("<think>", "</think>", "<response>", "</response>")
COMMAND = ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", answers_alone=True)
GEMMA = ReasoningFormat("<|channel>thought", "<channel|>")


def split(splitter: ThoughtSplitter, text: str, cuts: list[int]) -> tuple[str, str]:
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    parts = [splitter.push(text[start:end]) for start, end in zip(bounds, bounds[1:], strict=False)] + [splitter.flush()]
    return "".join(part.thought for part in parts), "".join(part.answer for part in parts)


CASES = [
    ("<think>\nso\n</think>\n\nYes.", False, "so", "Yes."),
    ("<think></think>Yes.", False, "", "Yes."),
    ("\n<think>a < b </thin k</think> Yes </think>", False, "a < b </thin k", "Yes </think>"),
    ("Yes <think>no</think>", False, "", "Yes <think>no</think>"),
    ("<thing>", False, "", "<thing>"),
    ("<thi", False, "", "<thi"),
    ("", False, "", ""),
    ("so\n</think>\n\nYes.", True, "so", "Yes."),
    ("still thinking  ", True, "still thinking", ""),
    ("cut </thi", True, "cut </thi", ""),
    ("a\n\nb</think>  ", True, "a\n\nb", ""),
]


@pytest.mark.parametrize(("text", "opened", "thought", "answer"), CASES)
@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 100), max_size=8))
def test_a_text_is_split_alike_in_any_pieces(text: str, opened: bool, thought: str, answer: str, cuts: list[int]) -> None:
    assert split(ThoughtSplitter(THINK, Place.IN_THOUGHT if opened else Place.BEFORE_THOUGHT), text, cuts) == (thought, answer)


@pytest.mark.parametrize(
    ("format", "closed", "text", "thought", "answer"),
    [
        (GRANITE, False, "<think>\nso\n</think>\n<response>\nYes.\n</response>", "so", "Yes."),
        (GRANITE, False, "<think>so</think><response>Yes < no </resp", "so", "Yes < no </resp"),
        (GRANITE, False, "<think>so</think> Yes.</response>", "so", "Yes.</response>"),
        (GRANITE, False, "<response>a tag that was asked for</response>", "", "<response>a tag that was asked for</response>"),
        (COMMAND, False, "<|START_THINKING|>so<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>", "so", "Yes."),
        (COMMAND, False, "<|START_RESPONSE|>Yes.<|END_RESPONSE|>", "", "Yes."),
        (COMMAND, False, "<|START_THINKING|>so<|END_THINKING|><|START_ACTION|>[]<|END_ACTION|>", "so", "<|START_ACTION|>[]<|END_ACTION|>"),
        (COMMAND, True, "<|START_RESPONSE|>\nYes.<|END_RESPONSE|> And", "", "Yes. And"),
        (COMMAND, True, " Yes", "", "Yes"),
        (GEMMA, False, "<|channel>thought\nso<channel|>Yes.", "so", "Yes."),
    ],
)
@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 100), max_size=8))
def test_marks_around_an_answer_belong_to_neither(
    format: ReasoningFormat, closed: bool, text: str, thought: str, answer: str, cuts: list[int]
) -> None:
    assert split(ThoughtSplitter(format, Place.AFTER_THOUGHT if closed else Place.BEFORE_THOUGHT), text, cuts) == (thought, answer)


@pytest.mark.parametrize(
    ("format", "continued", "place", "text", "thought", "answer"),
    [
        (THINK, "<think>\nLet", Place.IN_THOUGHT, " me see.\n</think>\n\nYes.", " me see.", "Yes."),
        (THINK, "<think>\n", Place.IN_THOUGHT, "\nso</think>Yes.", "so", "Yes."),
        (THINK, "<think>so.\n", Place.IN_THOUGHT, "It is </think>Yes.", "It is", "Yes."),
        (THINK, "<think>so\n</think", Place.IN_THOUGHT, ">\nYes.", "", "Yes."),
        (THINK, "<think>so\n</think", Place.IN_THOUGHT, "ing> is </think>Yes.", "ing> is", "Yes."),
        (THINK, "<think>\n</", Place.IN_THOUGHT, "b>", "b>", ""),
        (THINK, "<think>a <", Place.IN_THOUGHT, "<</think>", "<", ""),
        (THINK, "<think>so</th", Place.IN_THOUGHT, "", "", ""),
        (THINK, "<think>so</think>\n\n<think>", Place.AFTER_THOUGHT, " is a tag", "", " is a tag"),
        (THINK, "Models write <think>", Place.AFTER_THOUGHT, " and </think>", "", " and </think>"),
        (THINK, " <th", Place.BEFORE_THOUGHT, "ink>so</think>Yes", "so", "Yes"),
        (THINK, "<th", Place.BEFORE_THOUGHT, "> is a cell", "", "> is a cell"),
        (GRANITE, "<think>so</think>\n<resp", Place.AFTER_THOUGHT, "onse>Yes </response>", "", "Yes"),
        (GRANITE, "<think>so</think>\n<resp", Place.AFTER_THOUGHT, "ond", "", "ond"),
        (COMMAND, "<|START_RESPONSE|>Yes,", Place.AFTER_THOUGHT, " sir.<|END_RESPONSE|>", "", " sir."),
    ],
)
@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 100), max_size=8))
def test_a_continued_text_decides_what_goes_on(
    format: ReasoningFormat, continued: str, place: Place, text: str, thought: str, answer: str, cuts: list[int]
) -> None:
    splitter = ThoughtSplitter(format, Place.BEFORE_THOUGHT)
    splitter.go_on(continued)
    assert splitter.place == place
    assert split(splitter, text, cuts) == (thought, answer)


def test_marks_of_an_answer_are_not_counted_as_thinking() -> None:
    splitter = ThoughtSplitter(COMMAND, Place.BEFORE_THOUGHT)
    said = []
    for token in ("<|START_THINKING|>", "so", "<|END_THINKING|>", "<|START_RESPONSE|>", "Yes"):
        splitter.push(token)
        said.append(splitter.is_thinking)
    assert said == [True, True, True, False, False]
    assert not ThoughtSplitter(COMMAND, Place.AFTER_THOUGHT).is_thinking


def test_a_thought_streams_while_it_is_thought() -> None:
    splitter = ThoughtSplitter(THINK, Place.BEFORE_THOUGHT)
    assert splitter.push("<think>one two").thought == "one two" and splitter.is_thinking
    assert splitter.push("</think>").answer == "" and splitter.is_thinking
    assert splitter.push("Yes").answer == "Yes" and not splitter.is_thinking


def test_marks_are_recognised_from_the_template() -> None:
    template = "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    assert learn_reasoning(template) == THINK
    assert learn_reasoning("{{ content }}") is None
    assert learn_reasoning(template + "Write your response between <response></response>.") == GRANITE
    assert learn_reasoning("<|END_THINKING|>{{ content }}<|END_RESPONSE|>") == COMMAND
    assert learn_reasoning("{{ '<|channel>thought\n<channel|>' }}") == GEMMA
    places = [THINK.place(prompt) for prompt in ("<|assistant|><think>\n", "<think>\n\n</think>\n\n", "<|assistant|>")]
    assert places == [Place.IN_THOUGHT, Place.AFTER_THOUGHT, Place.BEFORE_THOUGHT]


@pytest.mark.parametrize(
    ("opened", "text", "fits"),
    [
        (False, '{"a": true}', True),
        (False, '<think>so {"a" </think>\n\n{"a": true}', True),
        (False, 'so</think>{"a": true}', False),
        (True, 'so {"a": 1}</think>{"a": true}', True),
        (True, "so</think>Yes", False),
        (True, '</think>\n{"a": false}', True),
    ],
)
def test_a_form_begins_after_the_thought(opened: bool, text: str, fits: bool) -> None:
    grammar = after_thought(FORM, THINK, AddedTokens({}, frozenset(), frozenset()), opened, may_end=False)
    matcher = LLMatcher(byte_tokenizer(), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    taken = matcher.try_consume_tokens(list(text.encode()))
    assert (taken == len(text.encode()) and matcher.is_accepting()) == fits


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('<think>so</think>\n<response>\n{"a": true}\n</response>', True),
        ('<think>so</think>{"a": true}', True),
        ('{"a": true}', True),
        ('<think>so</think><response>{"a": true}', False),
        ('<think>so</think>{"a": true}</response>', False),
        ("<think>so</think><response>Yes</response>", False),
    ],
)
def test_a_form_stands_in_the_marks_of_an_answer(text: str, fits: bool) -> None:
    tokens = AddedTokens({}, frozenset(), frozenset())
    matcher = LLMatcher(byte_tokenizer(), after_thought(in_answer_marks(FORM, GRANITE, tokens), GRANITE, tokens, False, False), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    taken = matcher.try_consume_tokens(list(text.encode()))
    assert (taken == len(text.encode()) and matcher.is_accepting()) == fits


def test_marks_that_are_added_tokens_are_written_as_tokens() -> None:
    tokens = AddedTokens({"<think>": 7, "</think>": 8, "<tool>": 9, "<end>": 10}, frozenset({"<end>"}), frozenset({"<end>"}))
    grammar = after_thought(FORM, THINK, tokens, False, may_end=False)
    thought = "unclosed: (THOUGHT? <[9]>)* THOUGHT?\nthought: unclosed <[8]>\n"
    assert grammar.startswith(f"start: <[7]> thought GAP? answer | answer\n{thought}") and "\nanswer: %json" in grammar

    gemma = AddedTokens({"<|channel>": 7, "<channel|>": 8, "<tool>": 9}, frozenset(), frozenset())
    grammar = after_thought(FORM, GEMMA, gemma, False, may_end=False)
    assert grammar.startswith('start: <[7]> "thought" thought GAP? answer | answer\nunclosed: (THOUGHT? <[9]>)* THOUGHT?\n')


# How the templates of these models end a prompt, in short: by default, with `enable_thinking` (`thinking`) true, and with it false.
QWEN3 = "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
QWEN3_THINKING = "<|im_start|>assistant\n<think>\n{# ...</think> #}"
R1 = "{% if content is defined %}{{ content.split('</think>')[-1] }}{% endif %}<｜Assistant｜><think>\n"
V31 = "<｜Assistant｜>{% if thinking %}<think>{% else %}</think>{% endif %}"
SMOLLM3 = (
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}{% if '/no_think' in system %}"
    "{% set enable_thinking = false %}{% endif %}<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}"
)
MINISTRAL = "[INST]{# [THINK]...[/THINK] #}Hi?[/INST]"
GEMMA_4 = "<|turn>model\n{% if not enable_thinking | default(false) %}<|channel>thought\n<channel|>{% endif %}"
COMMAND_R7B = (
    "{# <|START_RESPONSE|><|END_RESPONSE|> #}<|CHATBOT_TOKEN|>{% if not enable_thinking %}<|START_THINKING|><|END_THINKING|>{% endif %}"
)
SEED = "<seed:bos>assistant\n{# <seed:think></seed:think> #}"


@pytest.mark.parametrize(
    ("template", "variables", "state"),
    [
        (QWEN3, {}, "may think"),
        (QWEN3, {"enable_thinking": True}, "may think"),
        (QWEN3, {"enable_thinking": False}, "closed"),
        (QWEN3_THINKING, {}, "opened"),
        (R1, {}, "opened"),
        (V31, {}, "closed"),
        (V31, {"thinking": True}, "opened"),
        (SMOLLM3, {}, "may think"),
        (SMOLLM3, {"enable_thinking": False}, "closed"),
        (SMOLLM3, {"system": "Be kind. /no_think"}, "closed"),
        (MINISTRAL, {}, "may think"),
        (SEED, {}, "may think"),
        (GEMMA_4, {}, "closed"),
        (GEMMA_4, {"enable_thinking": True}, "may think"),
        (COMMAND_R7B, {}, "closed"),
        (COMMAND_R7B, {"enable_thinking": True}, "may think"),
    ],
)
def test_what_a_prompt_says_of_the_thought(template: str, variables: dict[str, object], state: str) -> None:
    format = learn_reasoning(template)
    assert format is not None
    prompt = Environment(keep_trailing_newline=True).from_string(template).render({"system": "", **variables})
    place = format.place(prompt)
    assert place == {"opened": Place.IN_THOUGHT, "closed": Place.AFTER_THOUGHT, "may think": Place.BEFORE_THOUGHT}[state]
    thought = f"so it is\n{format.close}\n\nYes."
    splitter = format.splitter(Place.IN_THOUGHT if state == "opened" else Place.BEFORE_THOUGHT, False)
    parts = [splitter.push(letter) for letter in (thought if state == "opened" else f"{format.open}\n{thought}")] + [splitter.flush()]
    assert ("".join(part.thought for part in parts), "".join(part.answer for part in parts)) == ("so it is", "Yes.")
