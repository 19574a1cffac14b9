"""Recorded decode steps, and those that are launched before the tokens of the step before are read, against steps that are not."""

import random

import pytest
from driving import answers_of, drain, run_all
from flash import as_on_cuda, use_flash
from tinymodels import VOCABULARY, letters, tiny

from app.engine import graphs
from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.engine import Engine, EngineLimits
from app.engine.events import Event, Failed
from app.engine.request import Generate, SamplingParams, Score
from app.engine.varlen import PAGE_TOKENS
from app.errors import EngineFailed
from app.scoring.windows import windows

CONTEXT, SLOTS, END = 512, 4, 7


def create(monkeypatch: pytest.MonkeyPatch, is_recorded: bool, cache_tokens: int | None = None, has_page_table: bool = True) -> Engine:
    use_flash(monkeypatch, has_page_table)
    flat = create_flat_model(tiny("Llama"), CacheLimits(SLOTS, CONTEXT, page_tokens=PAGE_TOKENS, cache_tokens=cache_tokens))
    engine = Engine(flat, letters, frozenset({END}), EngineLimits(SLOTS, CONTEXT, 64))
    if is_recorded:
        with as_on_cuda():
            engine.record_steps()
        assert engine.recorded is not None
    return engine


CHANGES = (
    {"repetition_penalty": 1.2},
    {"repetition_penalty": 0.9, "presence_penalty": 0.4, "min_tokens": 9},
    {"min_tokens": 30},
    {"logit_bias": ((3, 5.0), (END, -100.0)), "bad_words": ((5,), (3,))},
    {"frequency_penalty": 0.5, "bad_words": ((5,),)},
    {"frequency_penalty": -0.1, "presence_penalty": -0.2},
)
OF_THE_HOST = {"bad_words": ((5, 6),)}  # the device knows no sequences


def random_sampling(rng: random.Random, seed: int, is_short: bool) -> SamplingParams:
    """Of a long answer parameters that the device draws by."""
    plain = {
        "temperature": rng.choice([0.0, 0.7, 1.3]),
        "top_k": rng.choice([0, 5, 60]),
        "top_p": rng.choice([1.0, 0.9]),
        "min_p": rng.choice([0.0, 0.02]),
    }
    changes = rng.choice((*CHANGES, *[OF_THE_HOST] * is_short)) if rng.random() < 0.5 else {}
    return SamplingParams(**plain, **changes, seed=seed)


def random_job(rng: random.Random, index: int, prompts: list[tuple[int, ...]]) -> Generate:
    fresh = tuple(rng.randrange(VOCABULARY) for _ in range(rng.choice([3, 40, 250])))
    prompt = (rng.choice(prompts) + fresh)[: CONTEXT - 90] if prompts and rng.random() < 0.5 else fresh
    prompts.append(prompt)
    stop = (letters([rng.randrange(VOCABULARY)]),) if rng.random() < 0.5 else ()
    count = rng.choice([1, 9, 30, 60])
    logprobs = 2 if count < 10 and rng.random() < 0.3 else None
    return Generate(
        str(index), prompt, count, random_sampling(rng, index, count < 10), stop=stop, logprobs=logprobs, ignore_eos=rng.random() < 0.5
    )


@pytest.mark.parametrize(("seed", "has_page_table"), [(0, True), (1, False), (2, False), (3, True)])
def test_answers_are_those_of_steps_that_are_not_recorded(seed: int, has_page_table: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, prompts = random.Random(seed), []
    jobs = [random_job(rng, index, prompts) for index in range(12)]
    plain = create(monkeypatch, is_recorded=False)
    expected = answers_of(run_all(plain, jobs))
    monkeypatch.setattr(graphs, "NUCLEUS_TOKENS", (VOCABULARY, 40)[seed // 2])  # too few for some rows
    engine = create(monkeypatch, True, cache_tokens=1024 if seed % 2 else None, has_page_table=has_page_table)
    engine.drafter.is_on = seed != 3
    waiting, cancelled, events, by_host = list(jobs), set(), list[Event](), set()
    while waiting or not engine.idle:
        if waiting and rng.random() < 0.15:
            engine.submit(waiting.pop(0))
        if rng.random() < 0.02:
            text = tuple(rng.randrange(VOCABULARY) for _ in range(30))
            engine.submit(Score(f"text-{len(events)}", text, windows(len(text), CONTEXT)))
        if rng.random() < 0.02:
            cancelled |= {id for id in [str(rng.randrange(len(jobs)))] if engine.cancel(id)}
        events += engine.step()
        by_host |= {slot.request.id for slot in engine.scheduler.slots if slot.request is not None and slot.is_drawn_by_host}
    found = answers_of(events)
    assert not any(isinstance(event, Failed) for event in events)
    assert {id: text for id, text in found.items() if id not in cancelled} == {
        id: text for id, text in expected.items() if id not in cancelled
    }
    assert engine.recorded is not None and engine.recorded.followed > 10
    by_host -= {job.id for job in jobs if job.sampling.bad_words == OF_THE_HOST["bad_words"]}
    assert bool(by_host) == (seed >= 2)
    assert all(slot.request is None for slot in engine.scheduler.slots) and engine.scheduler.cache.pool.counts().used == 0


def test_a_step_whose_requests_were_all_cancelled_is_not_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create(monkeypatch, is_recorded=True)
    engine.submit(Generate("leaves", (3, 4, 5), 40, SamplingParams(temperature=0.0), ignore_eos=True))
    for _ in range(3):
        engine.step()
    assert engine._ahead is not None and engine.cancel("leaves") and engine.idle
    recorded: list[int] = []
    monkeypatch.setattr(engine.scheduler, "record", lambda plan, seconds: recorded.append(plan.decode_rows))
    engine.submit(Generate("comes", (3, 4, 5), 5, SamplingParams(temperature=0.0), ignore_eos=True))
    assert len(answers_of(drain(engine))["comes"]) == 5
    assert recorded == [0, 1, 1, 1, 1]  # the prompt's last token gives the first


def ahead(engine: Engine, *ids: str) -> None:
    """Submit long answers, and step until a step is launched ahead."""
    for number, id in enumerate(ids):
        engine.submit(Generate(id, (3, 4, 8 + number), 60, SamplingParams(temperature=0.0), ignore_eos=True))
    while engine._ahead is None:
        engine.step()


def test_what_drops_requests_drops_them_while_a_step_is_in_the_air(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, plain = create(monkeypatch, is_recorded=True), create(monkeypatch, is_recorded=False)
    ahead(engine, "a", "b")
    assert len(engine.fail_all(EngineFailed("the end"))) == 2 and engine.idle
    ahead(engine, "a", "b")
    engine.scheduler.reset()
    assert engine.idle
    ahead(engine, "a", "b")
    assert engine.cancel("a")
    jobs = [
        Generate("b", (3, 4, 9), 60, SamplingParams(temperature=0.0), ignore_eos=True),
        Generate("takes its slot", (5, 6), 20, SamplingParams(temperature=0.9, seed=4), ignore_eos=True),
    ]
    for job in jobs:
        plain.submit(job)
    engine.submit(jobs[1])
    found, expected = answers_of(drain(engine)), answers_of(drain(plain))
    assert found["takes its slot"] == expected["takes its slot"] and expected["b"].endswith(found["b"])


def test_a_pause_of_the_loop_and_work_that_gives_way_are_not_booked_as_steps_of_people(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create(monkeypatch, is_recorded=True)
    engine.drafter.is_on = False
    monkeypatch.setattr(engine.scheduler, "_flex_joins", lambda *_, **__: True)
    booked: list[tuple[bool, float]] = []
    monkeypatch.setattr(engine.scheduler, "record", lambda plan, seconds: booked.append((plan.with_flex, seconds)))
    engine.submit(Generate("flex", (3, 4), 4, SamplingParams(temperature=0.0), ignore_eos=True, tier="flex"))
    ahead(engine, "a")
    while any(slot.is_flex for slot in engine.scheduler.slots):
        engine.step()
    assert any(with_flex for with_flex, _ in booked)
    booked.clear()
    engine._ended_s -= 30  # the loop slept
    drain(engine)
    assert len(booked) > 20 and not any(with_flex for with_flex, _ in booked[1:]) and max(seconds for _, seconds in booked) < 20
