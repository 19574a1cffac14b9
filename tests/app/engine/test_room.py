"""A cache with less room than the requests need: some wait, some are set back, and each is answered as if it were alone."""

import random
from dataclasses import replace
from functools import cache

import pytest
from driving import answers_of, drain, flat_model, random_prompt, run_all
from planning import Clock, detokenize, generate, request_in, run
from tinymodels import CONTEXT, VOCABULARY, letters

from app.engine.budget import StepBudget
from app.engine.cache import SlotCache
from app.engine.capacity import CacheLimits
from app.engine.engine import Engine, EngineLimits
from app.engine.events import Delta, Failed
from app.engine.notices import SetBack
from app.engine.pages import PagePool
from app.engine.request import BeamSearchParams, ContrastiveSearchParams, Generate, SamplingParams
from app.engine.scheduler import AGE_S, Scheduler
from app.engine.slot import Slot

PAGE, SLOTS = 16, 20  # tokens


def create(contexts: int, name: str = "Llama", step_tokens: int = 64) -> Engine:
    """The engine has twenty slots, and a cache for so many whole contexts."""
    limits = CacheLimits(SLOTS, CONTEXT, page_tokens=PAGE, cache_tokens=contexts * CONTEXT)
    return Engine(flat_model(name, limits), letters, frozenset(), EngineLimits(SLOTS, CONTEXT, step_tokens))


@cache
def alone(job: Generate) -> str:
    engine = create(SLOTS)
    engine.submit(job)
    return answers_of(drain(engine))[job.id]


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Mistral"])
def test_twenty_long_answers_in_room_for_five_are_all_given_as_if_each_were_alone(name: str) -> None:
    rng, engine = random.Random(name), create(5, name)
    jobs = [
        Generate(str(index), random_prompt(rng), 80, SamplingParams(temperature=0.9 * (index % 2), seed=index, repetition_penalty=1.1))
        for index in range(20)
    ]
    events = run_all(engine, jobs)
    whole = create(SLOTS, name)
    assert answers_of(events) == answers_of(run_all(whole, jobs)), "the same in a cache that has room for all"
    assert not any(isinstance(event, Failed) for event in events)
    assert sum(isinstance(event, SetBack) for event in events) == engine.report("").cache.set_back > 0
    assert whole.report("").cache.set_back == 0
    cache = engine.report("").cache
    assert (cache.pages.used, cache.pages.shared) == (0, 0) and cache.pages.cached + cache.pages.free == 5 * CONTEXT // PAGE


def test_a_prompt_that_fills_the_context_is_read_in_a_cache_of_one_context() -> None:
    """The one token that is sampled after it needs no room: two of them take turns, and a third is too long."""
    rng, engine = random.Random(3), create(1)
    prompts = [tuple(rng.randrange(VOCABULARY) for _ in range(CONTEXT + more)) for more in (0, 0, 1)]
    events = run_all(engine, [Generate(str(index), prompt, 1, prompt_logprobs=0) for index, prompt in enumerate(prompts)])
    read = {event.id: event.prompt_logprobs for event in events if isinstance(event, Delta)}
    short = run_all(create(SLOTS), [Generate("0", prompts[0][:-1], 1, prompt_logprobs=0)])
    assert {id: len(logprobs) for id, logprobs in read.items()} == {"0": CONTEXT - 1, "1": CONTEXT - 1}
    assert [event.id for event in events if isinstance(event, Failed)] == ["2"]
    expected = next(event.prompt_logprobs for event in short if isinstance(event, Delta))
    assert [each.logprob for each in read["0"][:-1]] == pytest.approx([each.logprob for each in expected], abs=1e-4)


def test_every_token_is_sent_once_with_its_log_probability_and_stop_strings_end_answers_that_were_set_back() -> None:
    rng = random.Random(2)
    plain = [Generate(str(index), random_prompt(rng), 90, SamplingParams(seed=index)) for index in range(6)]
    jobs = [replace(job, stop=(alone(job)[70:72],), logprobs=2) for job in plain]
    engine = create(2)
    events = run_all(engine, jobs)
    assert any(isinstance(event, SetBack) for event in events)
    for job, unstopped in zip(jobs, plain, strict=True):
        deltas = [event for event in events if isinstance(event, Delta) and event.id == job.id]
        tokens = [token for delta in deltas for token in delta.tokens]
        text = alone(unstopped)
        assert "".join(delta.text for delta in deltas) == text[: text.index(job.stop[0])]
        assert [each.token for delta in deltas for each in delta.logprobs] == tokens
        assert [delta.finish for delta in deltas if delta.finish] == ["stop"]


def test_a_request_that_was_set_back_finds_what_it_had_computed() -> None:
    rng, engine = random.Random(3), create(2)
    jobs = [Generate(str(index), random_prompt(rng), 60, SamplingParams(seed=index)) for index in range(4)]
    run_all(engine, jobs)
    back = [decision for decision in engine.report("").decisions if decision.reason.startswith("set back")]
    again = [decision for decision in engine.report("").decisions if decision.request in {each.request for each in back}]
    assert back and any(decision.reused_tokens > 16 for decision in again)


@pytest.mark.parametrize("search", [BeamSearchParams(3), ContrastiveSearchParams(3, 0.5)])
def test_a_search_keeps_its_pages_and_others_make_room(search: BeamSearchParams | ContrastiveSearchParams) -> None:
    rng, engine = random.Random(4), create(2)
    jobs = [Generate(str(index), random_prompt(rng), 60, SamplingParams(seed=index)) for index in range(5)]
    jobs.insert(2, Generate("search", tuple(rng.randrange(VOCABULARY) for _ in range(30)), 45, search=search))
    jobs.append(replace(jobs[2], id="second search"))
    answers = answers_of(run_all(engine, jobs, 3))
    assert answers == {job.id: alone(job) for job in jobs}


def test_an_answer_without_a_limit_has_what_the_context_leaves_also_where_it_is_shorter_than_it_was() -> None:
    """As after a start with less memory. What was asked for is refused, and so is what cannot go on."""
    engine = create(2)
    jobs = [Generate("open", (1,) * 30, 5000, unlimited=True), Generate("goes on", (1,) * 30, 5000, sampled=(5,) * 60, unlimited=True)]
    answers = answers_of(run_all(engine, jobs))
    assert {id: len(text) for id, text in answers.items()} == {"open": CONTEXT - 30, "goes on": CONTEXT - 90}
    refused = [Generate("asked", (1,) * 30, 5000), Generate("too far", (1,) * 30, 5000, sampled=(5,) * CONTEXT, unlimited=True)]
    events = run_all(engine, refused)
    said = {event.id: event.error.message for event in events if isinstance(event, Failed)}
    assert "lower max_tokens" in said["asked"] and f"with the {CONTEXT} of its answer so far" in said["too far"]


def test_a_search_that_never_fits_is_refused_at_once() -> None:
    engine = create(2)
    engine.submit(Generate("wide", (1,) * 30, 98, search=BeamSearchParams(5)))
    (event,) = engine.step()
    assert isinstance(event, Failed) and event.error.status == 400
    assert "may need 36 pages of 16 tokens, and the cache has 16: shorten the prompt" in event.error.message
    engine.submit(Generate("whole context", (1,) * 30, 98))
    assert len(answers_of(drain(engine))["whole context"]) == 98


def test_a_key_is_not_told_what_another_has_asked() -> None:
    prompt = tuple(range(60))
    engine = create(SLOTS)
    cached = {}
    for id, owner, private in (
        ("first", "a", True),
        ("other", "b", True),
        ("same", "a", True),
        ("open", "c", False),
        ("open too", None, False),
    ):
        job = Generate(id, prompt, 8, SamplingParams(temperature=0.0), owner=owner, private=private)
        cached[id] = next(event.cached for event in run_all(engine, [job]) if isinstance(event, Delta))
    assert cached == {"first": 0, "other": 0, "same": 48, "open": 0, "open too": 48}
    together = [Generate(f"{owner}{index}", (7, *prompt), 8, owner=owner, private=True) for index in range(2) for owner in "ab"]
    events = run_all(engine, together, 0)
    assert {event.id: event.cached for event in events if isinstance(event, Delta) and event.cached} == {"a1": 48, "b1": 48}


def test_an_owner_of_many_conversations_does_not_make_another_lose_its_own() -> None:
    rng, engine = random.Random(6), create(2)

    def cached_of(name: str, owner: str | None) -> int:
        job = Generate(name, (5,) * 50, 4, SamplingParams(temperature=0.0), owner=owner)
        return next(event.cached for event in run_all(engine, [job]) if isinstance(event, Delta))

    for crowd, found in (("crowd", 48), (None, 0)):
        cached_of("mine", "me")
        prompts = [tuple(rng.randrange(VOCABULARY) for _ in range(60)) for _ in range(10)]
        run_all(engine, [Generate(f"{crowd} {index}", prompt, 20, owner=crowd) for index, prompt in enumerate(prompts)], 30)
        assert cached_of("mine again", "me") == found


def small(slots: int, pages: int, clock: Clock | None = None) -> Scheduler:
    cache = SlotCache(PagePool(pages, PAGE))
    return Scheduler([Slot(index) for index in range(slots)], StepBudget(512, 2.0), cache, clock or Clock())


def test_a_prompt_waits_until_there_is_room_for_it_and_no_later_one_overtakes_it() -> None:
    scheduler = small(4, 8)
    scheduler.add(replace(generate("a", 60), max_tokens=60))
    run(scheduler)
    scheduler.add(generate("large", 70, 1000))
    scheduler.add(generate("small", 5, 2000))
    run(scheduler)
    assert [request_in(slot) for slot in scheduler.slots] == ["a", None, None, None]
    scheduler.release(scheduler.slots[0])
    run(scheduler)
    assert [request_in(slot) for slot in scheduler.slots] == ["large", "small", None, None]


@pytest.mark.parametrize(
    ("tiers", "order"),
    [
        (("default", "default", "default"), ["c", "b"]),
        (("default", "flex", "default"), ["b", "c"]),
        (("flex", "default", "default"), ["a", "c"]),
    ],
)
def test_flex_requests_are_set_back_first_and_then_the_latest(tiers: tuple[str, ...], order: list[str]) -> None:
    clock = Clock()
    scheduler = small(3, 9, clock)
    for index, (name, tier) in enumerate(zip("abc", tiers, strict=True)):
        scheduler.add(replace(generate(name, 30, 1000 * index), max_tokens=90, tier=tier))  # type: ignore[arg-type]
    notices: list[str] = []
    for _ in range(200):
        clock.now_s += AGE_S + 1  # flex work has waited long enough to join the steps of people
        run(scheduler)
        notices += [notice.id for notice in scheduler.take_notices()]
        if len(notices) >= 2:
            break
    assert notices[:2] == order


def test_a_request_that_is_set_back_after_its_prompt_was_planned_is_not_in_the_step() -> None:
    """While two prompts are read two tokens a step, an answer takes the room that both were admitted for. The prompt that came first is
    planned; then the search, which cannot be set back, takes its pages.
    """
    scheduler = Scheduler([Slot(index) for index in range(4)], StepBudget(2, 2.0), SlotCache(PagePool(10, PAGE)), Clock())
    scheduler.add(replace(generate("answer", 10), max_tokens=100))
    run(scheduler)
    scheduler.add(generate("prompt", 83, 1000))
    scheduler.add(replace(generate("search", 20, 2000), search=BeamSearchParams(2)))
    while not (notices := scheduler.take_notices()):
        plan = run(scheduler)
    assert [notice.id for notice in notices] == ["prompt"]
    assert [request_in(chunk.slot) for chunk in plan.prefill_chunks] == ["search"]


def test_equal_beginnings_are_admitted_as_soon_as_they_are_computed() -> None:
    """Ten requests of 65 tokens, of which 64 are the same: alone each needs five of the sixteen pages."""
    scheduler = small(10, 16)
    for name in "abcdefghij":
        scheduler.add(Generate(name, (*range(64), ord(name)), 8))
    for _ in range(3):
        plan = scheduler.schedule(detokenize)
        for chunk in plan.prefill_chunks:
            chunk.slot.length = chunk.end
            chunk.slot.tokens.append(7)
        for slot in plan.decodes:
            slot.length += 1
            slot.tokens.append(7)
    assert all(slot.request is not None for slot in scheduler.slots)
    assert scheduler.cache_report().pages.used == 4 + 10
