"""The limit of a thought's tokens: in scripted answers, and in a tiny model's, with and without a grammar, alone and beside others."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import answers_of, drain, run_all
from hypothesis import given, settings
from hypothesis import strategies as st
from tinymodels import CONTEXT, tiny

from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.detokenizer import Detokenizer
from app.engine.engine import Engine, EngineLimits
from app.engine.events import Delta, Failed
from app.engine.grammar import GrammarCompiler
from app.engine.notices import Waiting
from app.engine.request import BeamSearchParams, Generate, SamplingParams, ThoughtLimit
from app.engine.thought import LimitedThought
from app.forms.grammar import json_grammar
from app.forms.reasoning import ReasoningFormat, after_thought
from app.tokenizer import Tokenizer

THINK = ReasoningFormat("<think>", "</think>")
LIMITS = (0, 1, 2, 3, 5, 50)
CAT = "猫".encode()
FORM = json_grammar({"type": "object", "properties": {"a": {"enum": ["fox", "hen"]}}, "required": ["a"], "additionalProperties": False})


def decode(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def write(limit: int, answer: bytes, opened: bool = False, closing: bytes = b"</think>", allowed: Any = None, begun: str = "") -> str:
    """What becomes of an answer whose tokens, one a byte, a model would sample."""
    thought = LimitedThought(ThoughtLimit(limit, THINK.open, THINK.close, opened, tuple(closing), begun))
    detokenizer, text = Detokenizer(decode), ""
    for sampled in answer:
        piece = detokenizer.push(thought.steer(sampled, allowed, detokenizer))
        thought.push(piece)
        text += piece
    return text + detokenizer.flush()


@pytest.mark.parametrize(
    ("limit", "answer", "written"),
    [
        (3, b"<think>abcdefghijklmno", "<think>abc</think>lmno"),
        (3, b"\n<think>abcdefghijklmno", "\n<think>abc</think>lmno"),
        (3, b"<think>abc</think>yes", "<think>abc</think>yes"),
        (3, b"<think>ab</think>yes no maybe", "<think>ab</think>yes no maybe"),
        (3, b"<think>a</_________yes", "<think>a</think>___yes"),
        (0, b"<think>abcdefghijk", "<think></think>ijk"),
        (1, b"yes no maybe <think>abcdefgh", "yes no maybe <think>abcdefgh"),
        (1, b"<thing>abcdefgh", "<thing>abcdefgh"),
        (99, b"<think>abcdefgh", "<think>abcdefgh"),
    ],
)
def test_a_thought_is_closed_where_its_tokens_are_used_up(limit: int, answer: bytes, written: str) -> None:
    assert write(limit, answer) == written


def test_a_mark_that_the_prompt_has_begun_is_finished() -> None:
    assert write(3, b"k>yes no maybe", opened=True, begun="</thin") == "k>yes no maybe", "it closes the thought, and nothing else does"
    assert write(0, b"abcdef", opened=True, begun="so </thin") == "k>cdef"
    assert write(2, b"ink>abcdefghijklm", begun="<th") == "ink>ab</think>klm"
    assert write(2, b"ing abcdefghijk", begun="<th") == "ing abcdefghijk"


@pytest.mark.parametrize("limit", range(12))
@pytest.mark.parametrize("text", ["猫猫猫猫猫猫", "a😀b😀c😀d😀", "é" * 9, "naïve 猫 😀 so"])
def test_a_limit_within_a_character_leaves_the_text_whole(limit: int, text: str) -> None:
    written = write(limit, text.encode() + b"." * 20, opened=True)
    thought, mark, _ = written.partition("</think>")
    assert mark and "\ufffd" not in thought
    assert (text + "." * 20).startswith(thought) and limit - 3 <= len(thought.encode()) <= limit


def test_bytes_of_no_character_cannot_go_beyond_the_limit() -> None:
    assert len(write(5, b"\xff" * 40, opened=True).partition("</think>")[0]) <= 5


def test_a_grammar_that_does_not_allow_the_mark_is_obeyed() -> None:
    allowed = np.ones(256, dtype=np.bool_)
    assert write(2, b"abcdefghijkl", opened=True, allowed=allowed).startswith("ab</think>")
    allowed[ord("<")] = False
    assert write(2, b"abcdefghijkl", opened=True, allowed=allowed) == "abcdefghijkl"


@settings(max_examples=200, deadline=None)
@given(answer=st.text(st.sampled_from("ab <>/thinké猫😀\n"), max_size=60), limit=st.integers(0, 30), opened=st.booleans())
def test_any_answer_keeps_its_limit(answer: str, limit: int, opened: bool) -> None:
    prefix = "" if opened else "<think>"
    written = write(limit, f"{prefix}{answer}{'.' * 50}".encode(), opened)
    thought, mark, _ = written.removeprefix(prefix).partition(THINK.close)
    assert mark and len(thought.encode()) <= limit and "\ufffd" not in thought


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Tokenizer:
    return Tokenizer(str(tiny_folder))


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> Iterator[Engine]:
    performer = create_flat_model(tiny("Llama"), CacheLimits(4, CONTEXT))
    compiler = GrammarCompiler(tokenizer.base, performer.vocabulary, tokenizer.end_tokens())
    yield Engine(performer, tokenizer.decode, tokenizer.end_tokens(), EngineLimits(4, CONTEXT, 16), None, compiler)


def request(tokenizer: Tokenizer, limit: int | None, seed: int, grammar: str | None = None) -> Generate:
    closing = tokenizer.encode(THINK.close, "text", add_special_tokens=False)
    thought = None if limit is None else ThoughtLimit(limit, THINK.open, THINK.close, True, closing)
    prompt = tokenizer.encode(f"u:{seed}<think>", "text")
    id = f"{limit}/{seed}/{grammar is not None}"
    return Generate(
        id, prompt, 90, SamplingParams(seed=seed, temperature=1.2), ignore_eos=grammar is None, grammar=grammar, thought=thought
    )


def thought_tokens(engine: Engine, jobs: list[Generate]) -> list[tuple[int, str]]:
    """How many tokens of each answer came before its closing mark, and what came after it."""
    texts, tokens = dict.fromkeys((job.id for job in jobs), ""), Counter[str]()
    for event in run_all(engine, jobs, 0):
        if isinstance(event, Waiting):
            continue
        assert isinstance(event, Delta), event
        for part in event.parts():
            tokens[event.id] += THINK.close not in texts[event.id]
            texts[event.id] += part.text
    return [(tokens[id] - len(THINK.close), text.partition(THINK.close)[2].strip()) for id, text in texts.items()]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_model_keeps_the_limit_and_answers(engine: Engine, tokenizer: Tokenizer, limit: int) -> None:
    for tokens, answer in thought_tokens(engine, [request(tokenizer, limit, seed) for seed in range(6)]):
        assert limit - 3 <= tokens <= limit
        assert answer


def test_a_model_without_the_limit_does_not_close_its_thought(engine: Engine, tokenizer: Tokenizer) -> None:
    assert not any(answer for _, answer in thought_tokens(engine, [request(tokenizer, None, seed) for seed in range(6)]))


@pytest.mark.parametrize("limit", LIMITS)
def test_a_form_follows_the_limited_thought(engine: Engine, tokenizer: Tokenizer, limit: int) -> None:
    grammar = after_thought(FORM, THINK, tokenizer.added_tokens, opened=True, may_end=False)
    for tokens, answer in thought_tokens(engine, [request(tokenizer, limit, seed, grammar) for seed in range(6)]):
        assert tokens <= limit and json.loads(answer)["a"] in {"fox", "hen"}


def test_an_answer_is_the_same_alone_and_beside_others(engine: Engine, tokenizer: Tokenizer) -> None:
    grammar = after_thought(FORM, THINK, tokenizer.added_tokens, opened=True, may_end=False)
    jobs = [request(tokenizer, limit, seed, form) for limit in (None, 1, 5) for seed in (0, 1) for form in (None, grammar)]
    alone = {}
    for job in jobs:
        engine.submit(job)
        alone |= answers_of(drain(engine))
    for job in jobs:
        engine.submit(job)
    assert answers_of(drain(engine)) == alone


def test_a_search_cannot_limit_a_thought(engine: Engine, tokenizer: Tokenizer) -> None:
    job = request(tokenizer, 2, 0)
    engine.submit(Generate("b", job.prompt, 5, search=BeamSearchParams(2), thought=job.thought))
    (event,) = drain(engine)
    assert isinstance(event, Failed) and event.error.param == "thinking_token_budget"
