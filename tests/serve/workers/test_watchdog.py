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


def overdue_after(watchdog: Watchdog, clock: Clock, rows: int, seconds: float) -> bool:
    with watchdog.step(lambda: rows):
        clock.now_s += seconds
        return watchdog.overdue_s() is not None


def test_between_steps_nothing_is_overdue() -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    assert watchdog.overdue_s() is None
    run_step(watchdog, clock, 1, 1)
    clock.now_s += 1000
    assert watchdog.overdue_s() is None


def test_the_first_step_may_take_minutes() -> None:
    clock = Clock()
    assert not overdue_after(Watchdog(clock), clock, 1, FIRST_LIMIT_S - 1)
    assert overdue_after(Watchdog(clock), clock, 1, FIRST_LIMIT_S + 1)


def test_a_fast_model_is_stuck_after_the_shortest_limit() -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    run_step(watchdog, clock, 1, 0.01)
    assert not overdue_after(watchdog, clock, 1, SHORTEST_LIMIT_S - 1)
    watchdog = Watchdog(clock)
    run_step(watchdog, clock, 1, 0.01)
    assert overdue_after(watchdog, clock, 1, SHORTEST_LIMIT_S + 1)


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
        clock.now_s += 60
        assert watchdog.overdue_s() == 60
        rows = 100
        assert watchdog.overdue_s() is None
