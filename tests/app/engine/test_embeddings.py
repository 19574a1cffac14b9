"""Embeddings by the engine against the hidden states that transformers itself returns."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from driving import answers_of, drain, flat_model, random_prompt, reference_model
from planning import create as create_scheduler
from planning import run
from tinymodels import CONTEXT, VOCABULARY, letters

from app.engine.capacity import CacheLimits
from app.engine.engine import Engine, EngineLimits
from app.engine.events import Embedded, Event, Failed, Scored
from app.engine.request import Embed, Generate, Pooling, SamplingParams, Score
from app.engine.texts import add_states, unit_vector
from app.scoring.windows import windows

SERVED = ["Llama", "Qwen2", "Qwen3", "GPT2", "GPTNeoX", "OPT", "Phi", "Mistral", "Lfm2", "Qwen3.5"]
POOLINGS: tuple[Pooling, ...] = ("mean", "last")
STEP_TOKENS = 16
GREEDY = SamplingParams(temperature=0.0)


def create(name: str = "Llama", step_tokens: int = STEP_TOKENS) -> Engine:
    return Engine(flat_model(name, CacheLimits(4, CONTEXT)), letters, frozenset(), EngineLimits(4, CONTEXT, step_tokens))


def expected(name: str, tokens: Sequence[int], pooling: Pooling) -> list[float]:
    """The last of the hidden states is after the last norm."""
    with torch.inference_mode():
        states = reference_model(name)(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0].double()
    pooled = states.mean(0) if pooling == "mean" else states[-1]
    values: list[float] = (pooled / pooled.norm()).tolist()
    return values


def vectors_of(events: Sequence[Event]) -> dict[str, list[float]]:
    return {event.id: np.frombuffer(event.vector, "<f4").tolist() for event in events if isinstance(event, Embedded)}


def random_tokens(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(VOCABULARY) for _ in range(count))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", SERVED)
def test_a_vector_is_the_pooled_states_of_the_models_own_forward(name: str, pooling: Pooling) -> None:
    """Texts of one token, of one step, and of as many steps as the context allows."""
    rng, engine = random.Random(name), create(name)
    for count in (1, STEP_TOKENS - 3, CONTEXT):
        tokens = random_tokens(rng, count)
        engine.submit(Embed("text", tokens, pooling))
        (vector,) = vectors_of(drain(engine)).values()
        assert vector == pytest.approx(expected(name, tokens, pooling), abs=2e-5), count
        assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Mistral"])
def test_vectors_do_not_depend_on_the_company_nor_answers_on_them(name: str) -> None:
    rng = random.Random(1)
    texts = [Embed(f"e{i}", random_tokens(rng, rng.choice([1, 5, 40, CONTEXT])), POOLINGS[i % 2]) for i in range(10)]
    scores = [Score(f"s{i}", tokens, windows(len(tokens), CONTEXT)) for i, tokens in enumerate(random_tokens(rng, 200) for _ in range(3))]
    chats = [Generate(f"c{i}", random_prompt(rng), 20, GREEDY) for i in range(6)]
    alone: list[Event] = []
    for job in (*scores, *chats):
        engine = create(name)
        engine.submit(job)
        alone += drain(engine)
    together, events = create(name), []
    for job in rng.sample([*texts, *scores, *chats], 19):
        together.submit(job)
        events += together.step()
    events += drain(together)
    vectors = vectors_of(events)
    assert set(vectors) == {job.id for job in texts}
    for job in texts:
        assert vectors[job.id] == pytest.approx(expected(name, job.tokens, job.pooling), abs=2e-5)
    assert answers_of(events) == answers_of(alone)
    logprobs = [{event.id: event.columns.logprob for event in each if isinstance(event, Scored)} for each in (events, alone)]
    assert len(logprobs[0]) == 3 and all(logprobs[0][id] == pytest.approx(logprobs[1][id], abs=1e-4) for id in logprobs[1])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_does_not_depend_on_the_chunks(pooling: Pooling) -> None:
    tokens = random_tokens(random.Random(2), 100)
    vectors = []
    for step_tokens in (7, 33, 128):
        engine = create(step_tokens=step_tokens)
        engine.submit(Embed("text", tokens, pooling))
        vectors += vectors_of(drain(engine)).values()
    assert len(vectors) == 3
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-5) and vectors[1] == pytest.approx(vectors[2], abs=1e-5)


def test_a_cancelled_text_leaves_nothing_for_the_next() -> None:
    rng, engine = random.Random(3), create()
    engine.submit(Embed("text", random_tokens(rng, CONTEXT)))
    assert engine.step() == [] and engine.cancel("text") and engine.idle
    tokens = random_tokens(rng, CONTEXT)
    engine.submit(Embed("text", tokens))
    assert vectors_of(drain(engine))["text"] == pytest.approx(expected("Llama", tokens, "mean"), abs=2e-5)


@pytest.mark.parametrize(
    ("tokens", "code"),
    [((), "invalid_value"), ((1, VOCABULARY), "invalid_value"), ((1,) * (CONTEXT + 1), "context_length_exceeded")],
)
def test_what_cannot_be_embedded_fails_by_name(tokens: tuple[int, ...], code: str) -> None:
    engine = create()
    engine.submit(Embed("text", tokens))
    (event,) = drain(engine)
    assert isinstance(event, Failed) and (event.error.code, event.error.param, event.error.status) == (code, "input", 400)


def test_flex_texts_wait_behind_others() -> None:
    scheduler = create_scheduler(1, 8)
    scheduler.add(Embed("flex", tuple(range(20)), tier="flex"))
    scheduler.add(Embed("text", tuple(range(20))))
    seen: list[str] = []
    while not scheduler.idle:
        seen += [chunk.text.job.id for chunk in run(scheduler).score_chunks]
    assert seen == ["text"] * 3 + ["flex"] * 3


def test_a_sum_of_many_low_precision_states_is_exact() -> None:
    """bfloat16 itself would round 301 to 302."""
    states = torch.ones(301, 2, dtype=torch.bfloat16)
    states[:, 1] = -3
    assert add_states(add_states([], states, "mean"), states, "mean") == [602.0, -1806.0]
    assert add_states([7.0, 7.0], states, "last") == [1.0, -3.0]


def test_a_unit_vector_is_little_endian_float32_and_zeros_stay_zeros() -> None:
    assert unit_vector([3.0, -4.0]) == np.array([0.6, -0.8], "<f4").tobytes()
    assert unit_vector([0.0, 0.0]) == bytes(8)
