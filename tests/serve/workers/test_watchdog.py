"""How long a step of the engine may take before its process ends, by a clock of the test."""

from serve.workers.watchdog import FIRST_LIMIT_S, SHORTEST_LIMIT_S, Watchdog


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def run_step(watchdog: Watchdog, clock: Clock, rows: int, seconds: float) -> None:
    with watchdog.step(lambda: rows):
        clock.now_s += seconds


def overdue_after(watchdog: Watchdog, clock: Clock, rows: int, seconds: int) -> bool:
    """Whether a step that takes so long was overdue at a look, one a second."""
    with watchdog.step(lambda: rows):
        return any(look_later(watchdog, clock) for _ in range(seconds + 1))


def look_later(watchdog: Watchdog, clock: Clock, seconds: float = 1) -> bool:
    clock.now_s += seconds
    return watchdog.look() is not None


def test_between_steps_nothing_is_overdue() -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    assert watchdog.look() is None
    run_step(watchdog, clock, 1, 1)
    assert not any(look_later(watchdog, clock) for _ in range(1000))


def test_the_first_step_may_take_minutes() -> None:
    clock = Clock()
    assert not overdue_after(Watchdog(clock), clock, 1, int(FIRST_LIMIT_S) - 1)
    assert overdue_after(Watchdog(clock), clock, 1, int(FIRST_LIMIT_S) + 1)


def test_a_fast_model_is_stuck_after_the_shortest_limit() -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    run_step(watchdog, clock, 1, 0.01)
    assert not overdue_after(watchdog, clock, 1, int(SHORTEST_LIMIT_S) - 1)
    watchdog = Watchdog(clock)
    run_step(watchdog, clock, 1, 0.01)
    assert overdue_after(watchdog, clock, 1, int(SHORTEST_LIMIT_S) + 1)


def test_a_slow_model_may_read_a_long_prompt() -> None:
    """A decode step of a second bounds what a prefill of 512 tokens takes: 512 decode steps at most."""
    clock = Clock()
    watchdog = Watchdog(clock)
    run_step(watchdog, clock, 1, 1)
    assert not overdue_after(watchdog, clock, 512, 500)
    assert overdue_after(watchdog, clock, 1, 500)


def test_the_rows_of_a_running_step_are_asked_for_late() -> None:
    clock, rows = Clock(), 0
    watchdog = Watchdog(clock)
    run_step(watchdog, clock, 1, 1)
    with watchdog.step(lambda: rows):
        assert any(look_later(watchdog, clock) for _ in range(60))
        rows = 100
        assert not look_later(watchdog, clock)


def test_a_pause_of_the_whole_process_is_not_the_steps_fault() -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    run_step(watchdog, clock, 1, 0.01)
    with watchdog.step(lambda: 1):
        assert not look_later(watchdog, clock)
        assert not look_later(watchdog, clock, 3600)
        assert any(look_later(watchdog, clock) for _ in range(10))


def test_many_short_steps_are_not_one_long_one() -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    for _ in range(100):
        with watchdog.step(lambda: 1):
            assert not look_later(watchdog, clock)
