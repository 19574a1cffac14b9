"""The scheduler's policy, from lengths, limits and a clock. No model takes part."""

from dataclasses import replace

import pytest
from planning import Clock, create, detokenize, generate, request_in, run

from app.engine.budget import FLEX_TIME_SHARE
from app.engine.pages import PAGE_TOKENS, PageCopy
from app.engine.request import BeamSearchParams, Generate, Score, Tier, Window
from app.engine.scheduler import AGE_S, Scheduler


def test_nothing_to_do_is_an_empty_plan() -> None:
    scheduler = create(2, 8)
    assert scheduler.schedule(detokenize).empty
    assert scheduler.idle


def test_a_prompt_longer_than_the_budget_is_prefilled_in_chunks() -> None:
    scheduler = create(1, 8)
    scheduler.add(generate("a", 20))
    seen = []
    for _ in range(3):
        (chunk,) = scheduler.schedule(detokenize).prefill_chunks
        seen.append((chunk.start, chunk.end))
        chunk.slot.length = chunk.end
    assert seen == [(0, 8), (8, 16), (16, 20)]


def test_prompts_share_one_budget_in_the_order_they_came() -> None:
    scheduler = create(3, 8)
    for name in "abc":
        scheduler.add(generate(name, 5))
    prefill_chunks = scheduler.schedule(detokenize).prefill_chunks
    assert [(chunk.slot.request.id, chunk.end - chunk.start) for chunk in prefill_chunks if chunk.slot.request] == [("a", 5), ("b", 3)]


def test_a_long_prompt_is_not_overtaken_by_later_ones_in_lower_slots() -> None:
    scheduler = create(2, 4)
    scheduler.add(generate("short", 1))
    scheduler.add(generate("long", 12))
    run(scheduler)
    scheduler.release(scheduler.slots[0])
    scheduler.add(generate("late", 8))
    (chunk,) = run(scheduler).prefill_chunks
    assert chunk.slot.request and chunk.slot.request.id == "long"


def test_every_decoding_slot_runs_whatever_the_budget() -> None:
    scheduler = create(4, 1)
    for name in "abcd":
        scheduler.add(generate(name, 2))
    scheduler.schedule(detokenize)
    for slot in scheduler.slots:
        slot.length = 2
        slot.tokens.append(7)
    assert [slot.index for slot in scheduler.schedule(detokenize).decodes] == [0, 1, 2, 3]


def test_the_beginning_of_another_conversation_is_copied_to_a_page_of_its_own() -> None:
    scheduler = create(3, 256)
    for name, first in (("a", 0), ("b", 1000), ("c", 2000)):
        scheduler.add(generate(name, 40, first))
    run(scheduler)
    (page,) = scheduler.slots[0].pages
    for slot in scheduler.slots:
        scheduler.release(slot)
    scheduler.add(Generate("like a", (*range(18), *range(5000, 5040)), 8))
    plan = run(scheduler)
    assert plan.copies == [PageCopy(page, *scheduler.slots[0].pages, 18)]
    assert [(chunk.start, chunk.end) for chunk in plan.prefill_chunks] == [(18, 58)]
    assert scheduler.decisions[-1].reason == "the cache holds 18 of the prompt's 58 tokens"


def test_full_pages_of_a_beginning_are_shared_and_the_rest_is_copied() -> None:
    scheduler = create(2, 512)
    scheduler.add(generate("a", 2 * PAGE_TOKENS + 40))
    run(scheduler)
    scheduler.add(Generate("like a", (*range(2 * PAGE_TOKENS + 30), 5000, 5001), 8))
    plan = run(scheduler)
    first, second = (slot.pages for slot in scheduler.slots)
    assert first[:2] == second[:2] and plan.copies == [PageCopy(first[2], second[2], 30)]
    assert [chunk.end - chunk.start for chunk in plan.prefill_chunks] == [2]
    assert scheduler.decisions[-1].reason == f"slot 0 holds {2 * PAGE_TOKENS + 30} of the prompt's {2 * PAGE_TOKENS + 32} tokens"


def test_a_conversation_that_goes_on_copies_nothing() -> None:
    scheduler, prompt = create(2, 512), tuple(range(100))
    for turn in range(20):
        scheduler.add(Generate(str(turn), prompt, 8))
        plan = run(scheduler)
        assert plan.copies == [] and plan.prefill_tokens == (100 if turn == 0 else 31)
        for _ in range(9):
            assert run(scheduler).copies == []
        prompt = (*scheduler.slots[0].tokens, *range(1000 * turn, 1000 * turn + 30))
        scheduler.release(scheduler.slots[0])
    assert scheduler.cache.pool.counts().cached == -(-(100 + 19 * 40 + 9) // PAGE_TOKENS), "one copy of the conversation"


def test_equal_prompts_that_come_together_are_computed_once() -> None:
    scheduler = create(4, 32)
    for name in "abcd":
        scheduler.add(generate(name, 100))
    computed, copied = 0, 0
    while any(slot.stage != "decode" for slot in scheduler.slots):
        plan = run(scheduler)
        computed += plan.prefill_tokens
        copied += sum(copy.tokens for copy in plan.copies)
    assert (computed, copied) == (100 + 3, 3 * (99 - PAGE_TOKENS))
    assert scheduler.cache.pool.counts().used == 1 + 4, "the first page is shared"


def test_a_request_whose_donor_is_cancelled_takes_over_what_the_donor_has_computed() -> None:
    scheduler = create(2, 32)
    scheduler.add(generate("donor", 100))
    scheduler.add(generate("receiver", 100))
    run(scheduler)
    assert scheduler.cancel("donor")
    plan = run(scheduler)
    assert plan.copies == [] and plan.prefill_chunks[0].start == 32


def test_nothing_is_taken_from_a_donor_that_runs_another_request() -> None:
    scheduler = create(2, 32)
    scheduler.add(generate("donor", 100))
    scheduler.add(generate("receiver", 100))
    run(scheduler)
    scheduler.cancel("donor")
    scheduler.cache.pool.forget(None)  # its pages were needed
    scheduler.add(generate("other", 20, 3000))
    plan = run(scheduler)
    assert [request_in(slot) for slot in scheduler.slots] == ["other", "receiver"]
    assert plan.copies == []
    assert {request_in(chunk.slot): chunk.start for chunk in plan.prefill_chunks} == {"receiver": 0}


def test_decisions_are_the_last_hundred() -> None:
    scheduler = create(1, 64)
    for index in range(130):
        scheduler.add(generate(str(index), 4, index * 50))
        run(scheduler)
        scheduler.release(scheduler.slots[0])
    assert [decision.request for decision in scheduler.decisions] == [str(index) for index in range(30, 130)]
    assert scheduler.decisions[0].reason == "nothing of the prompt is in the cache"


def test_clear_returns_the_ids_of_all_jobs_in_flight() -> None:
    scheduler = create(1, 8)
    scheduler.add(generate("running", 2))
    scheduler.schedule(detokenize)
    scheduler.add(generate("waiting", 2))
    scheduler.add(Score("text", (1, 2), (Window(0, 2, 1),)))
    assert sorted(scheduler.clear()) == ["running", "text", "waiting"]
    assert scheduler.idle


@pytest.mark.parametrize(
    ("tier_of_prompt", "tier_of_text", "together"), [("default", "flex", False), ("flex", "flex", True), ("default", "default", True)]
)
def test_a_flex_text_does_not_lengthen_the_step_that_reads_the_prompt_of_a_person(
    tier_of_prompt: Tier, tier_of_text: Tier, together: bool
) -> None:
    clock = Clock()
    scheduler = create(2, 64, clock)
    scheduler.add(replace(generate("a", 4), tier=tier_of_prompt))
    scheduler.add(Score("text", (1, 2), (Window(0, 2, 1),), tier=tier_of_text))
    plan = run(scheduler)
    assert plan.prefill_chunks and bool(plan.score_chunks) is together
    scheduler.release(scheduler.slots[0])
    assert together or run(scheduler).score_chunks


def chats(*tiers: Tier) -> Scheduler:
    """A slot each that decodes, of these tiers; steps take a second for each of their rows."""
    scheduler = create(len(tiers), 64)
    for number, tier in enumerate(tiers):
        scheduler.add(replace(generate(str(number), 2, 1000), tier=tier))
    for _ in tiers:
        run(scheduler)
    return scheduler


def step(scheduler: Scheduler) -> set[str | None]:
    """The requests that decode in the next step."""
    plan = run(scheduler)
    scheduler.record(plan, float(len(plan.decodes)))
    return {request_in(slot) for slot in plan.decodes}


def test_flex_rows_join_the_steps_of_people_when_they_have_the_time() -> None:
    scheduler = chats("default", "flex", "flex", "default")
    steps = [step(scheduler) for _ in range(120)]
    assert all(requests >= {"0", "3"} for requests in steps)
    joined = [requests for requests in steps if len(requests) > 2]
    assert all(requests == {"0", "1", "2", "3"} for requests in joined)
    assert len(joined) == pytest.approx(FLEX_TIME_SHARE * len(steps), abs=8)


def test_flex_rows_alone_decode_in_every_step() -> None:
    scheduler = chats("flex", "flex")
    assert [step(scheduler) for _ in range(3)] == [{"0", "1"}] * 3


def test_flex_rows_wait_while_the_prompt_of_a_person_is_read_but_not_for_ever() -> None:
    clock = Clock()
    scheduler = create(2, 4, clock)
    scheduler.add(replace(generate("batch", 2, 1000), tier="flex"))
    run(scheduler)
    scheduler.add(generate("person", 400, 8))
    joined = []
    for _ in range(20):
        plan = run(scheduler)
        assert plan.prefill_chunks
        joined.append(bool(plan.decodes))
        clock.now_s += 1.0
    assert joined.index(True) == AGE_S + 1 and joined.count(True) == 3


def test_a_prefix_that_a_person_waits_for_is_read_whoever_reads_it() -> None:
    scheduler = create(3, 64)
    scheduler.add(replace(generate("batch", 200), tier="flex"))
    run(scheduler)
    scheduler.add(generate("other", 8))
    scheduler.add(generate("same", 200))
    assert [request_in(chunk.slot) for chunk in run(scheduler).prefill_chunks] == ["other", "batch"]
    assert [request_in(chunk.slot) for chunk in run(scheduler).prefill_chunks] == ["batch"]
    for _ in range(3):
        run(scheduler)
    assert {request_in(slot): slot.cached for slot in scheduler.slots}["same"] == 199 // PAGE_TOKENS * PAGE_TOKENS


def test_the_same_requests_again_compute_their_last_token_only() -> None:
    scheduler = create(4, 256)
    for name in "ab":
        scheduler.add(generate(name, 40))
    scheduler.add(generate("other", 40, 900))
    for _ in range(2):
        run(scheduler)
    for slot in scheduler.slots[:3]:
        scheduler.release(slot)
    for name in "cd":
        scheduler.add(generate(name, 40))
    plan = run(scheduler)
    assert (plan.prefill_tokens, [slot.cached for slot in scheduler.slots[:2]]) == (2, [39, 39])


def test_a_search_of_one_slot_is_a_search() -> None:
    scheduler = create(2, 64)
    scheduler.add(replace(generate("one", 4), search=BeamSearchParams(1)))
    run(scheduler)
    assert scheduler.slots[0].group == (scheduler.slots[0],)
