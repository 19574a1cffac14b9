"""What a search for the end of an answer may take, and what it finds all the same: numbers, traps, and room that is not used up."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
from llguidance import LLMatcher

from app.engine.completion import Completions, Walk
from app.engine.grammar import FAR_MORE, LONGEST_COMPLETION, STEPS, GrammarCompiler, GrammarState
from app.forms.grammar import Schema, json_grammar
from app.forms.lark import regex_grammar
from app.forms.trial import byte_tokenizer
from app.tokenizer import Tokenizer

POSITIVE: Schema = {"type": "number", "exclusiveMinimum": 0}
HARD: Schema = {"type": "string", "pattern": r"^(\w+ ){400}$"}  # each search for its end is longer than one within an answer may be


@pytest.fixture(scope="module")
def tokenizer(bundled: Path) -> Tokenizer:
    return Tokenizer(str(bundled))


def compiler_of(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer.base, len(tokenizer.base), tokenizer.end_tokens())


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return compiler_of(tokenizer)


@pytest.mark.parametrize(
    ("bounds", "begun", "most"),
    [
        (POSITIVE, b"", 1),
        (POSITIVE, b"0.0", 1),
        ({**POSITIVE, "exclusiveMaximum": 1}, b"", 3),
        ({"type": "number", "exclusiveMinimum": 1, "maximum": 2.5}, b"", 3),
        ({"type": "number", "exclusiveMinimum": 1000.5}, b"1000.", 1),
        ({"type": "number", "exclusiveMaximum": 0}, b"", 4),
        ({"type": "number", "multipleOf": 2.5, "minimum": 1}, b"1", 2),
        ({"type": "integer", "multipleOf": 7, "minimum": 1}, b"10", 1),
        ({"type": "integer", "multipleOf": 60, "minimum": 60}, b"1", 2),
        ({"type": "integer", "multipleOf": 9973, "minimum": 1}, b"1", 4),
        ({"type": "array", "items": POSITIVE, "minItems": 2}, b"[0", 7),
    ],
)
def test_a_number_comes_to_what_its_bounds_ask_for(bounds: Schema, begun: bytes, most: int) -> None:
    """By what closes most it would go on with zeros forever."""
    grammar = json_grammar(bounds)
    matcher = LLMatcher(byte_tokenizer(), grammar, log_level=0)
    assert matcher.try_consume_tokens(list(begun)) == len(begun)
    walk = Walk(begun.lstrip(b"["), steps=100)
    found = Completions(byte_tokenizer()).of_grammar(grammar).find(matcher, 50, walk)
    assert found is not None and len(found) <= most and matcher.validate_tokens(found) == len(found)


def write(state: GrammarState, tokenizer: Tokenizer, text: str, left: int) -> str:
    """What comes of a text that a model writes."""
    written = []
    for token in tokenizer.encode(text, "text", add_special_tokens=False):
        left -= 1
        assert state.allowed_tokens()[token]
        written.append(state.steer(token, left))
        if state.accept(written[-1]) or written[-1] != token:
            break
    return tokenizer.decode(written)


def optional(part: Schema) -> str:
    return json_grammar({"type": "object", "properties": {"name": {"type": "string"}, "part": part}, "required": ["name"]})


def test_a_part_whose_end_is_not_found_in_time_is_written_where_there_is_room(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    text = '{"name": "a", "part": "a b c'
    room = 2 * FAR_MORE
    assert write(compiler.compile(optional(HARD), room).result(), tokenizer, text, room) == text
    tight = compiler.compile(optional(HARD), 200).result()
    assert not write(tight, tokenizer, text, 200).endswith("c"), "the answer could not be completed"


def test_an_answer_is_steered_again_once_its_end_is_found(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    part: Schema = {"type": "object", "properties": {"a": HARD, "b": {"type": "string"}}, "required": ["a", "b"]}
    state, room = compiler.compile(optional(part), 4 * FAR_MORE).result(), 4 * FAR_MORE
    write(state, tokenizer, '{"name": "a", "part": {"a": "' + "a " * 200, room)
    assert state._sought
    write(state, tokenizer, "a " * 200 + '", "b": "' + "x " * 40, room - 1000)
    assert not state._sought
    token = next(iter(tokenizer.encode("x", "text", add_special_tokens=False)))
    assert state.steer(token, 1) != token, "no room is left"


def test_an_optional_number_above_0_is_not_kept_out(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    text = '{"name": "a", "part": 12.5}'
    assert write(compiler.compile(optional(POSITIVE), 200).result(), tokenizer, text, 200) == text


def test_one_search_serves_every_length(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation has less room at each turn."""
    limits, search = list[int](), Completions.search

    def counted(self: Completions, matcher: LLMatcher, limit: int) -> list[int] | None:
        limits.append(limit)
        return search(self, matcher, limit)

    monkeypatch.setattr(Completions, "search", counted)
    compiler = compiler_of(tokenizer)
    fits = [compiler.compile(optional(POSITIVE), limit).result()._completion is not None for limit in (8000, 7900, 100, 3, 2, 1)]
    assert fits == [True, True, True, False, False, False] and limits == [8000, 3]


def test_where_nothing_is_found_no_other_length_is_searched(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = list[int]()
    monkeypatch.setattr(Completions, "search", lambda self, matcher, limit: limits.append(limit))
    compiler = compiler_of(tokenizer)
    for max_tokens in (100, 101, 102, 50, 8000):
        assert compiler.compile(optional(POSITIVE), max_tokens).result()._completion is None
    assert limits == [100, LONGEST_COMPLETION]


def test_a_search_takes_as_long_for_many_tokens_as_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it finds nothing."""
    matcher, completions = LLMatcher(byte_tokenizer(), 'start: "a" x | "b" x\nx: "0" x', log_level=0), Completions(byte_tokenizer())
    taken = list[int]()
    following = Completions._next
    monkeypatch.setattr(Completions, "_next", lambda self, state, walk: taken.append(1) or following(self, state, walk))  # type: ignore[func-returns-value]
    counts = []
    for limit in (20_000, 200_000):
        taken.clear()
        assert completions.search(matcher, limit) is None
        counts.append(len(taken))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("limit", [60, 400, 8000])
def test_more_room_completes_as_much(limit: int) -> None:
    """By the way that closes most, no trial before the last place comes to an end."""
    ways = '"1" | "2" "3" | "4" "5"'
    grammar = f'start: t t t t t ("]" endless | "z")\nt: {ways}\nendless: /0+/ "," endless'
    matcher = LLMatcher(byte_tokenizer(), grammar, log_level=0)
    found = Completions(byte_tokenizer()).search(matcher, limit)
    assert found is not None and bytes(found).endswith(b"z")


def test_a_search_within_an_answer_has_few_steps(tokenizer: Tokenizer, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers wait for it."""
    state, left = compiler.compile(optional(HARD), 8000).result(), list[int]()
    find = Completions.find

    def watched(self: Completions, matcher: LLMatcher, limit: int, walk: Walk) -> list[int] | None:
        before = walk.steps
        found = find(self, matcher, limit, walk)
        left.append(before - walk.steps)
        return found

    monkeypatch.setattr(Completions, "find", watched)
    write(state, tokenizer, '{"name": "a", "part": "' + "a" * 60, 8000)
    assert max(left) <= STEPS + 20 and sum(left) < 10 * STEPS and len(left) > 20


@pytest.mark.parametrize("pattern", [r"\w+@\w+\.com", r"Answer: .+\. Done\.", r"(?:https?://)?[a-z]+/\d+/end", r"[^@]+@[^@]+"])
def test_a_regular_expression_is_ended(pattern: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    state = compiler.compile(regex_grammar(pattern), 30).result()
    rng, tokens = random.Random(1), list[int]()
    while not tokens or (not state.accept(tokens[-1]) and len(tokens) < 30):
        tokens.append(state.steer(rng.choice(np.flatnonzero(state.allowed_tokens()).tolist()), 29 - len(tokens)))
    answer = tokenizer.decode([token for token in tokens if token not in tokenizer.end_tokens()])
    assert re.fullmatch(pattern, answer, re.S)
