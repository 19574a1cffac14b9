"""Answers held to a grammar: alone and in a crowd, by seed; and what cannot be held to one."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONTEXT, letters, tiny
from driving import drain, texts
from llguidance import LLMatcher

from app.engine.engine import Engine, Limits
from app.engine.flat import Room, adopt
from app.engine.grammar import KEPT, Grammars
from app.engine.request import Beams, Delta, Failed, Generate, Sampling
from app.engine.sampler import Draw, process, sample
from app.errors import EngineFailed, InvalidRequest
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
    performer = adopt(tiny("Llama"), Room(4, CONTEXT))
    grammars = Grammars(tokenizer.base, performer.vocabulary, tokenizer.ends())
    yield Engine(performer, tokenizer.decode, tokenizer.ends(), Limits(4, CONTEXT, 16), None, grammars)


def asked(number: int, grammar: str | None = PAIR, temperature: float = 1.5) -> Generate:
    return Generate(f"g{number}", (0, 5, 9, number % 7), 60, Sampling(temperature=temperature, seed=number), grammar=grammar)


def test_every_answer_is_of_its_form_and_ends_by_itself(engine: Engine) -> None:
    for number in range(12):
        engine.submit(asked(number, temperature=1.5 if number else 0.0))
        engine.submit(asked(100 + number, WORD))
    events = drain(engine)
    found = texts(events)
    for number in range(12):
        made = json.loads(found[f"g{number}"])
        assert made["a"] in {"fox", "crow", "hen"} and 0 <= made["b"] <= 999 and list(made) == ["a", "b"]
        assert set(found[f"g{100 + number}"][:3]) <= {"a", "b"} and found[f"g{100 + number}"][3:] in {"", "cd"}
    assert {event.finish for event in events if isinstance(event, Delta) and event.finish} == {"stop"}
    assert len({found[f"g{number}"] for number in range(12)}) > 6
    assert not engine._forms and not engine._compiling


def test_the_same_seed_gives_the_same_answer_alone_and_beside_free_rows_which_do_not_notice(engine: Engine) -> None:
    engine.submit(asked(3))
    alone = texts(drain(engine))["g3"]
    engine.submit(asked(50, None))
    free = texts(drain(engine))["g50"]
    for number in (1, 2, 3):
        engine.submit(asked(number))
    engine.submit(asked(50, None))
    crowd = texts(drain(engine))
    assert (crowd["g3"], crowd["g50"]) == (alone, free)


def test_an_answer_that_is_cut_is_a_beginning_of_its_form(engine: Engine, tokenizer: Tokenizer) -> None:
    engine.submit(Generate("cut", (0, 5), 6, Sampling(temperature=0.0), grammar=PAIR))
    events = drain(engine)
    assert events[-1].finish == "length" and texts(events)["cut"] == '{"a":"'


def test_what_is_no_grammar_fails_alone(engine: Engine) -> None:
    engine.submit(asked(1, "start: ("))
    engine.submit(asked(2, None))
    failed = [event for event in drain(engine) if isinstance(event, Failed)]
    assert [event.id for event in failed] == ["g1"] and isinstance(failed[0].error, InvalidRequest)
    assert engine.idle


def test_cancelled_while_it_is_compiled_nothing_is_left(engine: Engine) -> None:
    engine.submit(asked(1))
    assert not engine.idle and engine.cancel("g1") and engine.idle
    engine.submit(asked(2))
    assert [event.id for event in engine.fail_all(EngineFailed("x"))] == ["g2"] and engine.idle
    engine.submit(asked(3))
    while not engine._forms:
        engine.step()
    assert engine.cancel("g3") and engine.idle and not engine._forms


@pytest.mark.parametrize(
    "more",
    [
        {"search": Beams(2)},
        {"sampling": Sampling(bad_words=((5,),))},
        {"sampling": Sampling(min_tokens=2)},
        {"ignore_eos": True},
        {"stop_tokens": frozenset({7})},
    ],
)
def test_what_decides_over_tokens_itself_does_not_go_with_a_grammar(engine: Engine, more: dict[str, object]) -> None:
    engine.submit(Generate("a", (0, 5), 8, grammar=PAIR, **more))  # type: ignore[arg-type]
    (event,) = engine.step()
    assert isinstance(event, Failed) and "grammar" in event.error.message


def test_without_a_tokenizer_there_is_no_grammar() -> None:
    engine = Engine(adopt(tiny("Llama"), Room(2, CONTEXT)), letters, frozenset(), Limits(2, CONTEXT, 16))
    engine.submit(asked(1))
    (event,) = engine.step()
    assert isinstance(event, Failed) and "tokenizer" in event.error.message


def test_an_answer_that_leaves_its_grammar_fails_alone_and_nothing_is_written(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.submit(asked(1))
    engine.submit(asked(2))
    events = []
    while len(engine._forms) < 2:
        events += engine.step()
    engine._forms["g1"]._matcher.consume_token(5)  # no answer of this form holds it
    events += drain(engine)
    assert [event.id for event in events if isinstance(event, Failed)] == ["g1"]
    assert json.loads(texts(events)["g2"])
    assert capfd.readouterr() == ("", "")


def test_a_grammar_is_compiled_once_and_forgotten_when_many_others_came(engine: Engine) -> None:
    grammars = engine._grammars
    assert grammars is not None
    grammars.start(WORD).result()
    for number in range(KEPT):
        grammars.start(LLMatcher.grammar_from_regex(f"x{{{number + 1}}}")).result()
    assert len(grammars._compiled) == KEPT and WORD not in grammars._compiled
    one, other = grammars.start(WORD).result(), grammars.start(WORD).result()
    one.take(int(np.flatnonzero(one.allowed())[0]))
    assert not np.array_equal(one.allowed(), np.zeros_like(one.allowed())) and len(np.flatnonzero(other.allowed())) == 2


def test_only_rows_with_a_grammar_are_confined() -> None:
    logits = torch.randn(3, 10)
    allowed = np.zeros(10, dtype=np.bool_)
    allowed[[2, 7]] = True
    free = Draw(Sampling(temperature=0.0), (), 0, frozenset())
    confined = Draw(Sampling(temperature=0.0), (), 0, frozenset(), allowed)
    made = process(logits, [free, confined, free])
    assert torch.equal(made[[0, 2]], logits[[0, 2]])
    assert made[1].isfinite().nonzero().flatten().tolist() == [2, 7]
    assert sample(logits, [free, confined, free])[1] == (2 if logits[1, 2] >= logits[1, 7] else 7)


@pytest.mark.parametrize("size", [8, 12])
def test_a_mask_of_another_size_than_the_logits(size: int) -> None:
    draw = Draw(Sampling(), (), 0, frozenset(), np.ones(size, dtype=np.bool_))
    made = process(torch.zeros(1, 10), [draw])
    assert made[0].isfinite().sum() == min(size, 10)
