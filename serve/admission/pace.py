"""How fast requests finish, and from that how long a refused client should wait. Knows no HTTP."""

import math
import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 60.0  # what finished longer ago says nothing about now
SAMPLES = 256
MIN_WAIT_S, MAX_WAIT_S = 1, 60


class Pace:
    """Tells each refused client another time to come back, at the rate at which requests finish, so that they do not all come at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._finished: deque[float] = deque(maxlen=SAMPLES)  # times, oldest first
        self._promised_until = 0.0  # when there is room for everyone who has been refused so far

    def finish(self) -> None:
        """One request was answered."""
        self._finished.append(self._clock())

    def rate(self) -> float | None:
        """Requests that finish in a second; None before two of them did within the window."""
        now = self._clock()
        while self._finished and self._finished[0] < now - WINDOW_S:
            self._finished.popleft()
        if len(self._finished) < 2:
            return None
        return (len(self._finished) - 1) / max(now - self._finished[0], 0.001)

    def retry_after_s(self) -> int:
        """Book the next place that becomes free for a client that is refused now, and say in how many seconds that is."""
        rate, now = self.rate(), self._clock()
        if rate is None:
            return MIN_WAIT_S
        self._promised_until = min(max(self._promised_until, now) + 1 / rate, now + MAX_WAIT_S)
        return min(max(math.ceil(self._promised_until - now), MIN_WAIT_S), MAX_WAIT_S)
