"""How long a refused client is told to wait: the measured rate, shared out among all who were refused."""

from serve.admission.pace import MAX_WAIT_S, WINDOW_S, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def paced(per_s: float, count: int = 21) -> tuple[Pace, Clock]:
    clock = Clock()
    pace = Pace(clock)
    for index in range(count):
        if index:
            clock.now += 1 / per_s
        pace.finish()
    return pace, clock


def test_the_rate_is_that_of_what_finished() -> None:
    pace, clock = paced(per_s=4)
    assert pace.rate() == 4
    clock.now += 5  # nothing finishes any more: 20 gaps in 10 s
    assert pace.rate() == 2


def test_a_rate_is_unknown_until_two_requests_have_finished_and_after_a_window_without_any() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert (pace.rate(), pace.retry_after_s()) == (None, 1)
    pace.finish()
    assert pace.rate() is None
    pace, clock = paced(per_s=4)
    clock.now += WINDOW_S + 1
    assert (pace.rate(), pace.retry_after_s()) == (None, 1)


def test_clients_that_are_refused_at_once_are_told_to_come_back_one_after_the_other() -> None:
    pace, clock = paced(per_s=2)
    assert [pace.retry_after_s() for _ in range(6)] == [1, 1, 2, 2, 3, 3]
    clock.now += 2.5  # five of them have been served meanwhile; the window still holds 20 gaps in 12.5 s
    assert pace.retry_after_s() == 2


def test_the_wait_is_bounded_however_many_were_refused() -> None:
    pace, clock = paced(per_s=2)
    waits = [pace.retry_after_s() for _ in range(1000)]
    assert waits == sorted(waits) and (waits[0], waits[-1]) == (1, MAX_WAIT_S)
    clock.now += 20  # beyond the bound nothing was booked
    assert MAX_WAIT_S - 20 <= pace.retry_after_s() <= MAX_WAIT_S - 18  # one more, at 20 requests in 30 s
