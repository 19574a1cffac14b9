"""Answers that follow a grammar, alone and beside others; and requests that cannot use a grammar."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from driving import answers_of, drain
from llguidance import LLMatcher
from tinymodels import CONTEXT, VOCABULARY, letters, tiny

from app.engine.capacity import CacheLimits
from app.engine.completion import Completions
from app.engine.conversion import create_flat_model
from app.engine.engine import Engine, EngineLimits
from app.engine.events import Delta, Failed
from app.engine.grammar import LONGEST_COMPLETION, MAX_CACHED_GRAMMARS, GrammarCompiler
from app.engine.request import BeamSearchParams, Generate, SamplingParams
from app.engine.sampler import SamplerRow, process_logits, sample
from app.errors import EngineFailed, InvalidRequest
from app.forms.grammar import Schema, json_grammar
from app.forms.lark import written_grammar
from app.tokenizer import Tokenizer

PAIR = LLMatcher.grammar_from_json_schema(
    {"type": "object", "properties": {"a": {"enum": ["fox", "crow", "hen"]}, "b": {"type": "integer", "minimum": 0, "maximum": 999}}}
    | {"required": ["a", "b"], "additionalProperties": False},
    overrides={"whitespace_flexible": False},
)
WORD = LLMatcher.grammar_from_regex("[ab]{3}(cd)?")


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Tokenizer:
    return Tokenizer(str(tiny_folder))


@pytest.fixture
def engine(tokenizer: Tokenizer) -> Iterator[Engine]:
    performer = create_flat_model(tiny("Llama"), CacheLimits(4, CONTEXT))
    compiler = GrammarCompiler(tokenizer.base, performer.vocabulary, tokenizer.end_tokens())
    yield Engine(performer, tokenizer.decode, tokenizer.end_tokens(), EngineLimits(4, CONTEXT, 16), None, compiler)


def request(number: int, grammar: str | None = PAIR, temperature: float = 1.5) -> Generate:
    return Generate(f"g{number}", (0, 5, 9, number % 7), 60, SamplingParams(temperature=temperature, seed=number), grammar=grammar)


def test_every_answer_follows_its_grammar_and_ends_by_itself(engine: Engine) -> None:
    for number in range(12):
        engine.submit(request(number, temperature=1.5 if number else 0.0))
        engine.submit(request(100 + number, WORD))
    events = drain(engine)
    answers = answers_of(events)
    for number in range(12):
        pair = json.loads(answers[f"g{number}"])
        assert pair["a"] in {"fox", "crow", "hen"} and 0 <= pair["b"] <= 999 and list(pair) == ["a", "b"]
        assert set(answers[f"g{100 + number}"][:3]) <= {"a", "b"} and answers[f"g{100 + number}"][3:] in {"", "cd"}
    assert {event.finish for event in events if isinstance(event, Delta) and event.finish} == {"stop"}
    assert len({answers[f"g{number}"] for number in range(12)}) > 6
    assert not engine._grammar_states and not engine._compiling


def test_a_seed_gives_the_same_answer_alone_and_beside_others_and_rows_without_a_grammar_are_unchanged(engine: Engine) -> None:
    engine.submit(request(3))
    alone = answers_of(drain(engine))["g3"]
    engine.submit(request(50, None))
    free = answers_of(drain(engine))["g50"]
    for number in (1, 2, 3):
        engine.submit(request(number))
    engine.submit(request(50, None))
    together = answers_of(drain(engine))
    assert (together["g3"], together["g50"]) == (alone, free)


def test_an_answer_cut_by_max_tokens_is_a_beginning_of_its_grammar(engine: Engine, tokenizer: Tokenizer) -> None:
    engine.submit(Generate("cut", (0, 5), 6, SamplingParams(temperature=0.0), grammar=PAIR))
    events = drain(engine)
    assert events[-1].finish == "length" and answers_of(events)["cut"] == '{"a":"'


ANY: Schema = {}
ENDLESS: tuple[Schema, ...] = (
    ANY,
    {"oneOf": [{"type": "integer"}, {"type": "string"}]},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "array", "items": {"type": "number"}, "minItems": 2},
    {"$defs": {"list": {"type": "array", "items": {"$ref": "#/$defs/list"}}}, "$ref": "#/$defs/list"},
    {"type": "object", "properties": {"name": {"type": "string"}, "more": {"$ref": "#"}}, "required": ["name"]},
)


def test_what_json_leaves_open_is_brought_to_an_end(engine: Engine) -> None:
    """A random model never stops by itself: without bounds, nearly all of these answers would be cut."""
    ids = {f"{place}-{seed}": schema for place, schema in enumerate(ENDLESS) for seed in range(4)}
    for id, schema in ids.items():
        params = SamplingParams(temperature=1.0, seed=int(id[-1]))
        engine.submit(Generate(id, (0, 5, 9), 40, params, grammar=json_grammar(schema)))
    answers = answers_of(drain(engine))
    for id, schema in ids.items():
        jsonschema.validate(json.loads(answers[id]), {**schema})
    assert max(map(len, answers.values())) >= 30  # the grammar ends them, not before it has to


def test_a_number_is_ended_at_its_bounds(engine: Engine, tokenizer: Tokenizer) -> None:
    """With all weight on the digit 1, a number would go on until max_tokens."""
    (one,) = tokenizer.base.encode("1", add_special_tokens=False)
    params = SamplingParams(temperature=0.0, logit_bias=((one, 100.0),))
    for id, type in (("integer", "integer"), ("list", "number")):
        schema: Schema = {"type": "array", "items": {"type": type}, "minItems": 1, "maxItems": 1}
        engine.submit(Generate(id, (0, 5, 9), 60, params, grammar=json_grammar(schema)))
    answers = answers_of(drain(engine))
    assert answers["integer"] == f"[{'1' * 19}]" and answers["list"] == f"[{'1' * 19}]"


def test_a_call_that_no_longer_fits_ends_the_text(engine: Engine, tokenizer: Tokenizer) -> None:
    """Tokens that open what cannot be closed in time are not taken; text that may end anywhere is not shortened otherwise."""
    (begin,) = tokenizer.base.encode("<", add_special_tokens=False)
    grammar = 'start: TEXT | TEXT? "<" "a long call that has to end" ">"\nTEXT: /[^<]+/'
    params = SamplingParams(temperature=0.0, logit_bias=((begin, 100.0),))
    engine.submit(Generate("short", (0, 5), 8, params, grammar=grammar))
    engine.submit(Generate("long", (0, 5), 40, params, grammar=grammar))
    never = SamplingParams(temperature=0.0, logit_bias=tuple((token, -100.0) for token in (begin, *tokenizer.end_tokens())))
    engine.submit(Generate("text", (0, 5), 8, never, grammar=grammar))
    events = drain(engine)
    finishes = {event.id: event.finish for event in events if isinstance(event, Delta) and event.finish}
    assert "<" not in answers_of(events)["short"] and answers_of(events)["long"] == "<a long call that has to end>"
    assert finishes == {"short": "stop", "long": "stop", "text": "length"}


def test_an_invalid_grammar_fails_only_its_request(engine: Engine) -> None:
    engine.submit(request(1, "start: ("))
    engine.submit(request(2, None))
    failed = [event for event in drain(engine) if isinstance(event, Failed)]
    assert [event.id for event in failed] == ["g1"] and isinstance(failed[0].error, InvalidRequest)
    assert engine.idle


def test_nothing_is_left_of_a_request_cancelled_while_its_grammar_is_compiled(engine: Engine) -> None:
    engine.submit(request(1))
    assert not engine.idle and engine.cancel("g1") and engine.idle
    engine.submit(request(2))
    assert [event.id for event in engine.fail_all(EngineFailed("x"))] == ["g2"] and engine.idle
    engine.submit(request(3))
    while not engine._grammar_states:
        engine.step()
    assert engine.cancel("g3") and engine.idle and not engine._grammar_states


@pytest.mark.parametrize(
    "fields",
    [
        {"search": BeamSearchParams(2)},
        {"sampling": SamplingParams(bad_words=((5,),))},
        {"sampling": SamplingParams(min_tokens=2)},
        {"ignore_eos": True},
        {"stop_tokens": frozenset({7})},
    ],
)
def test_options_that_choose_tokens_themselves_are_refused_with_a_grammar(engine: Engine, fields: dict[str, object]) -> None:
    engine.submit(Generate("a", (0, 5), 8, grammar=PAIR, **fields))  # type: ignore[arg-type]
    (event,) = engine.step()
    assert isinstance(event, Failed) and "grammar" in event.error.message


def test_without_a_grammar_compiler_a_grammar_is_refused() -> None:
    engine = Engine(create_flat_model(tiny("Llama"), CacheLimits(2, CONTEXT)), letters, frozenset(), EngineLimits(2, CONTEXT, 16))
    engine.submit(request(1))
    (event,) = engine.step()
    assert isinstance(event, Failed) and "tokenizer" in event.error.message


def test_an_answer_that_leaves_its_grammar_fails_alone_and_nothing_is_printed(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.submit(request(1))
    engine.submit(request(2))
    wait([future for _, future in engine._compiling.values()])  # so that neither is answered before the other has begun
    events = []
    while len(engine._grammar_states) < 2:
        events += engine.step()
    engine._grammar_states["g1"]._matcher.consume_token(5)  # the grammar does not allow this token
    events += drain(engine)
    assert [event.id for event in events if isinstance(event, Failed)] == ["g1"]
    assert json.loads(answers_of(events)["g2"])
    assert capfd.readouterr() == ("", "")


def test_a_grammar_is_compiled_once_and_dropped_when_the_cache_is_full(engine: Engine) -> None:
    compiler = engine._grammar_compiler
    assert compiler is not None
    compiler.compile(WORD, 9).result()
    for number in range(MAX_CACHED_GRAMMARS):
        compiler.compile(LLMatcher.grammar_from_regex(f"x{{{number + 1}}}"), 9).result()
    assert len(compiler._compiled) == MAX_CACHED_GRAMMARS and WORD not in compiler._compiled
    one, other = compiler.compile(WORD, 9).result(), compiler.compile(WORD, 9).result()
    one.accept(int(np.flatnonzero(one.allowed_tokens())[0]))
    assert (
        not np.array_equal(one.allowed_tokens(), np.zeros_like(one.allowed_tokens())) and len(np.flatnonzero(other.allowed_tokens())) == 2
    )


def test_only_rows_with_a_grammar_are_masked() -> None:
    logits = torch.randn(3, 10)
    allowed = np.zeros(10, dtype=np.bool_)
    allowed[[2, 7]] = True
    free = SamplerRow(SamplingParams(temperature=0.0), (), 0, frozenset())
    masked = SamplerRow(SamplingParams(temperature=0.0), (), 0, frozenset(), allowed)
    scores = process_logits(logits, [free, masked, free])
    assert torch.equal(scores[[0, 2]], logits[[0, 2]])
    assert scores[1].isfinite().nonzero().flatten().tolist() == [2, 7]
    assert sample(logits, [free, masked, free])[1] == (2 if logits[1, 2] >= logits[1, 7] else 7)


@pytest.mark.parametrize("size", [8, 12])
def test_a_mask_of_another_size_than_the_logits(size: int) -> None:
    row = SamplerRow(SamplingParams(), (), 0, frozenset(), np.ones(size, dtype=np.bool_))
    scores = process_logits(torch.zeros(1, 10), [row])
    assert scores[0].isfinite().sum() == min(size, 10)


def test_a_grammar_looks_ahead_as_it_goes_on_itself(tokenizer: Tokenizer) -> None:
    """What is certain ahead, and what may come there, is what the state itself says after the same tokens."""
    compiler = GrammarCompiler(tokenizer.base, VOCABULARY, tokenizer.end_tokens())
    state, rng, certain = compiler.compile(PAIR, 60).result(), random.Random(1), 0
    for left in range(59, -1, -1):
        ahead = state.look_ahead()
        ahead.follow_certain(40)
        np.testing.assert_array_equal(ahead.choices[0].allowed, state.allowed_tokens())
        token = rng.choice(np.flatnonzero(state.allowed_tokens()).tolist())
        if ahead.choices[0].certain is not None:
            assert token == ahead.choices[0].certain
            certain += 1
        assert state.steer(token, left) == token
        if state.accept(token):
            break
        if ahead.tokens:
            assert ahead.tokens[0] == token
            np.testing.assert_array_equal(ahead.choices[1].allowed, state.allowed_tokens())
    assert certain >= len('{"a":"","b":}') - 1


def test_a_grammar_looks_ahead_only_along_what_it_allows(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer.base, VOCABULARY, tokenizer.end_tokens())
    a, b, c, d = (tokenizer.encode(letter, "text", add_special_tokens=False)[0] for letter in "abcd")
    state = compiler.compile(WORD, 60).result()
    ahead = state.look_ahead()
    assert not ahead.follow(c) and all(ahead.follow(token) for token in (a, b, a, c))
    assert ahead.choices[-1].certain == d and not ahead.follow(d), "the answer ends with it"
    assert ahead.tokens == [a, b, a, c] and len(ahead.choices) == 5
    assert not state.allowed_tokens()[c], "the answer itself has not begun"


def test_the_completion_of_an_answer_is_searched_once_and_for_fewer_tokens_once_more(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where none fits, and the search has to try much before it says so."""
    searched: list[int] = []
    search = Completions.search

    def counted(self: Completions, matcher: LLMatcher, limit: int) -> list[int] | None:
        searched.append(limit)
        return search(self, matcher, limit)

    monkeypatch.setattr(Completions, "search", counted)
    compiler = GrammarCompiler(tokenizer.base, VOCABULARY, tokenizer.end_tokens())
    ends = [
        compiler.compile(WORD, limit).result().steer(tokenizer.encode("a", "text", add_special_tokens=False)[0], 1)
        for limit in (2, 9, 2, 9)
    ]
    assert searched == [2, LONGEST_COMPLETION] and ends[:2] == ends[2:]


def test_a_grammar_of_a_client_that_becomes_ambiguous_ends_its_own_answer(tokenizer: Tokenizer) -> None:
    """Tried out before, it took its other way. With the limits of other grammars each token would take longer than the one before."""
    compiler = GrammarCompiler(tokenizer.base, VOCABULARY, tokenizer.end_tokens())
    grammar = written_grammar('start: "[" | e\ne: e e | /[a-z]/')
    state, (letter,) = compiler.compile(grammar, 900).result(), tokenizer.encode("a", "text", add_special_tokens=False)[:1]
    with pytest.raises(InvalidRequest, match="500"):
        for _ in range(900):
            assert state.allowed_tokens()[letter]
            state.accept(letter)
    assert compiler.compile(written_grammar('start: "ab" /[0-9]{2}/'), 9).result()._completion is not None
