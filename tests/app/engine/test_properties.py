"""Properties of the engine under random requests and arrivals, drawn by hypothesis, in float32, for every supported architecture."""

import gc
import random
from contextlib import nullcontext

import psutil
import pytest
from drafting import guided
from driving import answers_of, drain, flat_model, generated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinymodels import CONTEXT, VOCABULARY, letters

from app.engine.capacity import CacheLimits
from app.engine.engine import Engine, EngineLimits
from app.engine.events import Delta, Event, Failed, Scored
from app.engine.request import Generate, SamplingParams, Score
from app.scoring.windows import windows

SERVED = ["Llama", "Qwen2", "Qwen3", "GPT2", "GPTNeoX", "OPT", "Phi", "Mistral", "Gemma2", "GptOss"]
SLOTS = 4
LIMITS = CacheLimits(SLOTS, CONTEXT, page_tokens=16)  # most requests have several pages
GREEDY = SamplingParams(temperature=0.0)
few_examples = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))


def create_engine(name: str, step_tokens: int = 16) -> Engine:
    return Engine(flat_model(name, LIMITS), letters, frozenset(), EngineLimits(SLOTS, CONTEXT, step_tokens))


def tokens_of(events: list[Event]) -> dict[str, tuple[int, ...]]:
    return {id: tuple(ord(letter) - 0x4E00 for letter in text) for id, text in answers_of(events).items()}


def draw_prompt(rng: random.Random, name: str, earlier: list[tuple[tuple[int, ...], int]]) -> tuple[int, ...]:
    """A random prompt, or one that continues an earlier prompt and its answer, or shares only a prefix with them."""
    fresh = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 40)))
    if not earlier or rng.random() < 0.4:
        return fresh
    prompt, count = rng.choice(earlier)
    conversation = prompt + generated(name, prompt, count)
    prefix = conversation if rng.random() < 0.6 else conversation[: rng.randint(1, len(conversation))]
    return (prefix + fresh)[: CONTEXT - 20]


@pytest.mark.parametrize("name", SERVED)
@few_examples
@given(seed=st.integers(0, 2**32), step_tokens=st.integers(1, 64))
def test_greedy_equals_generate_under_arrivals_cancellations_and_prefix_reuse(name: str, seed: int, step_tokens: int) -> None:
    rng, engine = random.Random(seed), create_engine(name, step_tokens)
    sent: list[tuple[tuple[int, ...], int]] = []
    cancelled: set[str] = set()
    events: list[Event] = []
    expected: list[list[int]] = []  # with their prompts
    with guided(engine.drafter, expected, seed) if rng.random() < 0.7 else nullcontext():  # also wrong drafts
        while len(sent) < 9 or not engine.idle:
            if len(sent) < 9 and rng.random() < 0.5:
                prompt, count = draw_prompt(rng, name, sent), rng.randint(1, 10)
                engine.submit(Generate(str(len(sent)), prompt, count, GREEDY, tier=rng.choice(["default", "flex"])))
                sent.append((prompt, count))
                expected.append([*prompt, *generated(name, prompt, count)])
                if rng.random() < 0.4:
                    text = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(2, min(200, 20 + 8 * step_tokens))))
                    engine.submit(Score(f"text-{len(sent)}", text, windows(len(text), CONTEXT)))
            if sent and rng.random() < 0.05:
                cancelled |= {id for id in [str(rng.randrange(len(sent)))] if engine.cancel(id)}
            events += engine.step()
    answers = tokens_of(events)
    assert {id: answers[id] for id in answers if id not in cancelled} == {
        str(index): generated(name, prompt, count) for index, (prompt, count) in enumerate(sent) if str(index) not in cancelled
    }
    assert not any(isinstance(event, Failed) for event in events)
    assert all(slot.request is None and not slot.group for slot in engine.scheduler.slots)


@pytest.mark.parametrize("name", SERVED)
def test_a_continued_conversation_computes_only_its_new_tokens(name: str) -> None:
    engine, rng = create_engine(name), random.Random(name)
    first = tuple(rng.randrange(VOCABULARY) for _ in range(40))
    engine.submit(Generate("first", first, 8, GREEDY))
    second = first + tokens_of(drain(engine))["first"] + (5, 6, 7)
    engine.submit(Generate("second", second, 8, GREEDY))
    events = drain(engine)
    assert tokens_of(events)["second"] == generated(name, second, 8)
    assert (
        next(event.cached for event in events if isinstance(event, Delta)) == 47
    )  # all but the last sampled token, which never was an input


@few_examples
@given(seed=st.integers(0, 2**32))
def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(seed: int) -> None:
    rng = random.Random(seed)
    jobs = []
    for index in range(8):
        sampling = SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.3]),
            top_k=rng.choice([0, 5, 60]),
            top_p=rng.choice([1.0, 0.9]),
            min_p=rng.choice([0.0, 0.02]),
            seed=rng.getrandbits(63),
            repetition_penalty=rng.choice([1.0, 1.2]),
            presence_penalty=rng.choice([0.0, 0.5]),
            frequency_penalty=rng.choice([0.0, 0.3]),
            logit_bias=rng.choice([(), ((3, 4.0), (9, -100.0))]),
        )
        prompt = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 30)))
        jobs.append(Generate(str(index), prompt, 12, sampling))
    alone: dict[str, tuple[int, ...]] = {}
    for job in jobs:
        engine = create_engine("Llama")
        engine.submit(job)
        alone |= tokens_of(drain(engine))
    batched, events = create_engine("Llama", rng.randint(1, 64)), []
    for job in jobs:
        batched.submit(job)
        events += batched.step()
    assert tokens_of(events + drain(batched)) == alone


def test_memory_is_flat_over_a_thousand_requests() -> None:
    engine, rng = create_engine("Llama", 64), random.Random(0)
    process, resident_bytes, answered = psutil.Process(), [], 0
    for batch in range(20):
        for index in range(50):
            prompt = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 40)))
            if index % 10 == 0:
                engine.submit(Score(f"{batch}/{index}", prompt + (1,), windows(len(prompt) + 1, CONTEXT)))
            else:
                engine.submit(Generate(f"{batch}/{index}", prompt, rng.randint(1, 6), SamplingParams(seed=index), logprobs=index % 3))
        answered += sum(isinstance(event, Scored) or (isinstance(event, Delta) and event.finish is not None) for event in drain(engine))
        gc.collect()
        resident_bytes.append(process.memory_info().rss)
    assert answered == 1000
    assert resident_bytes[-1] - resident_bytes[4] < 4 * 2**20
