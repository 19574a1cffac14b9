"""The order in which waiting requests get slots, and the wait that they are told. No model takes part."""

from dataclasses import replace

from planning import Clock, create, detokenize, generate, request_in, run

from app.engine.request import BeamSearchParams
from app.engine.textqueue import AGE_S


def test_requests_without_a_free_slot_wait() -> None:
    scheduler = create(1, 8)
    scheduler.add(generate("a", 2))
    scheduler.add(generate("b", 2))
    scheduler.schedule(detokenize)
    assert scheduler.slots[0].request and scheduler.slots[0].request.id == "a"
    scheduler.release(scheduler.slots[0])
    scheduler.schedule(detokenize)
    assert scheduler.slots[0].request and scheduler.slots[0].request.id == "b"


def test_a_conversation_that_goes_on_comes_before_new_ones_and_those_before_flex() -> None:
    scheduler = create(1, 64)
    scheduler.add(generate("first", 20))
    run(scheduler)
    scheduler.add(replace(generate("batch", 20, 500), tier="flex"))
    scheduler.add(generate("new", 20, 900))
    scheduler.add(generate("goes on", 30))
    assert [(waiting.id, waiting.position) for waiting in scheduler.waiting.report()] == [("new", 1), ("goes on", 2), ("batch", 3)]
    scheduler.release(scheduler.slots[0])
    assert [waiting.id for waiting in scheduler.waiting.report()] == ["goes on", "new", "batch"]
    run(scheduler)
    assert request_in(scheduler.slots[0]) == "goes on"
    assert scheduler.slots[0].cached == 20
    assert scheduler.decisions[-1].reason == "the cache holds 20 of the prompt's 30 tokens"


def test_a_flex_request_does_not_wait_for_ever() -> None:
    clock = Clock()
    scheduler = create(1, 64, clock)
    scheduler.add(generate("first", 20))
    run(scheduler)
    scheduler.add(replace(generate("batch", 20, 500), tier="flex"))
    served = []
    for index in range(12):
        clock.now_s += 1.0
        scheduler.add(generate(f"goes on {index}", 30))
        scheduler.release(scheduler.slots[0])
        run(scheduler)
        served.append(request_in(scheduler.slots[0]))
    assert served[0] == "goes on 0"
    assert served.index("batch") == 2 * AGE_S - 1  # its age outweighs two priority classes


def test_a_search_waits_for_all_its_slots_and_holds_up_those_behind_it() -> None:
    scheduler = create(3, 64)
    scheduler.add(generate("a", 4))
    run(scheduler)
    scheduler.add(replace(generate("search", 4, 50), search=BeamSearchParams(3)))
    scheduler.add(generate("behind", 4, 90))
    run(scheduler)
    assert [request_in(slot) for slot in scheduler.slots] == ["a", None, None]
    scheduler.release(scheduler.slots[0])
    plan = run(scheduler)
    assert [request_in(slot) for slot in scheduler.slots] == ["search"] * 3
    assert len(plan.prefill_chunks) == 1
    assert scheduler.cancel("search")
    assert [request_in(slot) for slot in scheduler.slots] == [None] * 3


def test_the_expected_wait_follows_from_recent_releases() -> None:
    clock = Clock()
    scheduler = create(1, 64, clock)
    for index in range(6):
        scheduler.add(generate(str(index), 4, index * 50))
    run(scheduler)
    assert [waiting.wait_s for waiting in scheduler.waiting.report()] == [None] * 5
    for _ in range(3):
        clock.now_s += 2.0
        scheduler.release(scheduler.slots[0])
        run(scheduler)
    assert [(waiting.id, waiting.wait_s) for waiting in scheduler.waiting.report()] == [("4", 2.0), ("5", 4.0)]


def test_idle_hours_do_not_count_in_the_expected_wait() -> None:
    clock = Clock()
    scheduler = create(1, 64, clock)
    for pause_s in (1.0, 1.0, 3600.0):
        scheduler.add(generate("a", 4))
        run(scheduler)
        scheduler.release(scheduler.slots[0])
        clock.now_s += pause_s
    for name in "bcd":
        scheduler.add(generate(name, 4))
    run(scheduler)
    clock.now_s += 1.0
    scheduler.release(scheduler.slots[0])
    run(scheduler)
    assert [waiting.wait_s for waiting in scheduler.waiting.report()] == [None]
