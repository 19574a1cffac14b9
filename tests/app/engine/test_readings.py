"""How the scheduler plans texts to score beside each other and beside prompts. No model takes part."""

import itertools

from planning import Clock, create, generate, run

from app.engine.request import Score, Window
from app.engine.scheduler import AGE_S


def test_a_long_text_shares_its_steps_with_short_ones() -> None:
    scheduler = create(1, 8)
    scheduler.add(Score("long", tuple(range(50)), tuple(Window(i * 8, i * 8 + 8, i * 8 + 1) for i in range(6))))
    run(scheduler)
    scheduler.add(Score("short", (1, 2), (Window(0, 2, 1),)))
    seen = [chunk.text.job.id for _ in range(2) for chunk in run(scheduler).score_chunks]
    assert "short" in seen


def test_a_window_larger_than_the_budget_is_computed_in_chunks_one_text_at_a_time() -> None:
    scheduler = create(1, 8)
    scheduler.add(Score("long", tuple(range(30)), (Window(0, 20, 1), Window(10, 30, 20))))
    scheduler.add(Score("other", tuple(range(20)), (Window(0, 20, 1),)))
    seen = []
    while not scheduler.idle:
        for chunk in run(scheduler).score_chunks:
            seen.append((chunk.text.job.id, chunk.start, chunk.end))
            assert chunk.cached or chunk.end - chunk.start == chunk.window.end - chunk.window.start
    for name, windows in (("long", [range(20), range(10, 30)]), ("other", [range(20)])):
        computed = [token for id, start, end in seen if id == name for token in range(start, end)]
        assert computed == [token for window in windows for token in window]
    changes = sum(before[0] != after[0] for before, after in itertools.pairwise(seen))
    assert changes == 2  # long's first window, other, long's second: never two at once


def test_a_stream_of_prompts_does_not_starve_texts_nor_texts_prompts() -> None:
    scheduler = create(64, 8)
    for index in range(40):
        scheduler.add(generate(f"g{index}", 8, index * 100))
        scheduler.add(Score(f"s{index}", tuple(range(8)), (Window(0, 8, 1),)))
    plans = [run(scheduler) for _ in range(20)]
    assert sum(len(plan.prefill_chunks) for plan in plans) >= 8
    assert sum(len(plan.score_chunks) for plan in plans) >= 8


def test_flex_texts_wait_behind_prompts_and_other_texts_but_not_for_ever() -> None:
    clock = Clock()
    scheduler = create(2, 8, clock)
    scheduler.add(Score("flex", tuple(range(40)), (Window(0, 40, 1),), tier="flex"))
    scheduler.add(generate("chat", 24))
    scheduler.add(Score("text", tuple(range(16)), (Window(0, 16, 1),)))
    seen = [[chunk.text.job.id for chunk in run(scheduler).score_chunks] for _ in range(4)]
    assert "flex" not in sum(seen, [])
    clock.now_s += AGE_S + 1
    assert any(chunk.text.job.id == "flex" for _ in range(6) for chunk in run(scheduler).score_chunks)


def test_a_flex_text_that_is_half_computed_does_not_block_the_others() -> None:
    scheduler = create(1, 8)
    scheduler.add(Score("flex", tuple(range(40)), (Window(0, 40, 1),), tier="flex"))
    run(scheduler)
    scheduler.add(Score("text", tuple(range(30)), (Window(0, 30, 1),)))
    for _ in range(20):
        if scheduler.idle:
            break
        assert not run(scheduler).empty
    assert scheduler.idle


def test_a_short_text_does_not_wait_for_a_whole_long_one() -> None:
    scheduler = create(1, 8)
    scheduler.add(Score("long", tuple(range(200)), (Window(0, 200, 1),)))
    run(scheduler)
    scheduler.add(Score("short", (1, 2, 3), (Window(0, 3, 1),)))
    assert any(chunk.text.job.id == "short" for _ in range(4) for chunk in run(scheduler).score_chunks)
