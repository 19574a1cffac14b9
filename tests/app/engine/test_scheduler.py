"""Policy from lengths and limits alone: no model takes part."""

from app.engine.request import Generate, Score, Window
from app.engine.scheduler import Scheduler
from app.engine.slot import Slot


def decode(ids: list[int]) -> str:
    return "x" * len(ids)


def create(slots: int, step_tokens: int) -> Scheduler:
    return Scheduler([Slot(index) for index in range(slots)], step_tokens)


def generate(name: str, length: int) -> Generate:
    return Generate(name, tuple(range(length)), 8)


def test_nothing_to_do_is_an_empty_plan() -> None:
    scheduler = create(2, 8)
    assert scheduler.schedule(decode).empty
    assert scheduler.idle


def test_a_prompt_longer_than_the_budget_comes_in_chunks() -> None:
    scheduler = create(1, 8)
    scheduler.add(generate("a", 20))
    seen = []
    for _ in range(3):
        (chunk,) = scheduler.schedule(decode).chunks
        seen.append((chunk.start, chunk.end))
        chunk.slot.length = chunk.end
    assert seen == [(0, 8), (8, 16), (16, 20)]


def test_prompts_share_one_budget_in_the_order_they_came() -> None:
    scheduler = create(3, 8)
    for name in "abc":
        scheduler.add(generate(name, 5))
    chunks = scheduler.schedule(decode).chunks
    assert [(chunk.slot.request.id, chunk.end - chunk.start) for chunk in chunks if chunk.slot.request] == [("a", 5), ("b", 3)]


def test_a_long_prompt_is_not_overtaken_by_later_ones_in_lower_slots() -> None:
    scheduler = create(2, 4)
    scheduler.add(generate("short", 1))
    scheduler.add(generate("long", 12))
    scheduler.schedule(decode)
    scheduler.slots[0].release()
    scheduler.add(generate("late", 8))
    (chunk,) = scheduler.schedule(decode).chunks
    assert chunk.slot.request and chunk.slot.request.id == "long"


def test_a_long_text_shares_its_steps_with_short_ones() -> None:
    scheduler = create(1, 8)
    scheduler.add(Score("long", tuple(range(50)), tuple(Window(i * 8, i * 8 + 8, i * 8 + 1) for i in range(6))))
    scheduler.schedule(decode)
    scheduler.add(Score("short", (1, 2), (Window(0, 2, 1),)))
    seen = [reading.job.id for _ in range(2) for reading, _ in scheduler.schedule(decode).windows]
    assert "short" in seen


def test_every_decoding_slot_runs_whatever_the_budget() -> None:
    scheduler = create(4, 1)
    for name in "abcd":
        scheduler.add(generate(name, 2))
    scheduler.schedule(decode)
    for slot in scheduler.slots:
        slot.length = 2
        slot.tokens.append(7)
    assert [slot.index for slot in scheduler.schedule(decode).decodes] == [0, 1, 2, 3]


def test_more_requests_than_slots_wait_their_turn() -> None:
    scheduler = create(1, 8)
    scheduler.add(generate("a", 2))
    scheduler.add(generate("b", 2))
    scheduler.schedule(decode)
    assert scheduler.slots[0].request and scheduler.slots[0].request.id == "a"
    scheduler.slots[0].release()
    scheduler.schedule(decode)
    assert scheduler.slots[0].request and scheduler.slots[0].request.id == "b"


def test_a_stream_of_prompts_does_not_starve_texts_nor_texts_prompts() -> None:
    scheduler = create(64, 8)
    for index in range(40):
        scheduler.add(generate(f"g{index}", 8))
        scheduler.add(Score(f"s{index}", tuple(range(8)), (Window(0, 8, 1),)))
    prompts = texts = 0
    for _ in range(20):
        plan = scheduler.schedule(decode)
        prompts += len(plan.chunks)
        texts += len(plan.windows)
        for chunk in plan.chunks:
            chunk.slot.length = chunk.end
            chunk.slot.tokens.append(0)
        for reading, _ in plan.windows:
            scheduler.finish(reading)
    assert prompts == texts == 10


def test_a_window_larger_than_the_budget_runs_alone() -> None:
    scheduler = create(1, 8)
    scheduler.add(Score("long", tuple(range(30)), (Window(0, 20, 1), Window(10, 30, 20))))
    plan = scheduler.schedule(decode)
    assert [window for _, window in plan.windows] == [Window(0, 20, 1)]


def test_clear_names_everything_that_was_in_flight() -> None:
    scheduler = create(1, 8)
    scheduler.add(generate("running", 2))
    scheduler.schedule(decode)
    scheduler.add(generate("waiting", 2))
    scheduler.add(Score("text", (1, 2), (Window(0, 2, 1),)))
    assert sorted(scheduler.clear()) == ["running", "text", "waiting"]
    assert scheduler.idle
