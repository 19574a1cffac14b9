"""In the worker: says that the process lives, and ends it when a step of the engine takes far longer than any step should."""

import contextlib
import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

BEAT_S = 1.0
LONGEST_LOOK_S = 2 * BEAT_S  # more time between two looks was a pause of the whole process, not of the step
SHORTEST_LIMIT_S = 10.0  # a step may always take so long
FIRST_LIMIT_S = 300.0  # and the first one so long: libraries prepare themselves
SLACK = 4.0  # a step may take so many times what its rows would take at the slowest rate so far
STUCK_EXIT_CODE = 3


class Watchdog:
    """Knows how long the running step may take. A step of many rows takes at most as long as its rows would in steps of their own."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._slowest_row_s: float | None = None
        self._running: tuple[float, Callable[[], int]] | None = None  # when the step began, and how many rows it has
        self._looked_at: object = None  # the step that ran at the last look
        self._looked_s = clock_s()
        self._spent_s = 0.0  # by the step between looks at it

    @contextlib.contextmanager
    def step(self, rows: Callable[[], int]) -> Iterator[None]:
        """Around a step. `rows` is asked for the number of its rows, while it runs and at its end."""
        start_s = self._clock_s()
        self._running = start_s, rows
        yield
        self._running = None
        if rows():
            self._slowest_row_s = max(self._slowest_row_s or 0.0, (self._clock_s() - start_s) / rows())

    def look(self) -> float | None:
        """Call it every `BEAT_S` seconds. How long the running step has taken, if that is longer than it may."""
        running, now_s = self._running, self._clock_s()
        since_s, self._looked_s = min(now_s - self._looked_s, LONGEST_LOOK_S), now_s
        self._spent_s = self._spent_s + since_s if running is not None and running is self._looked_at else 0.0
        self._looked_at = running
        if running is None:
            return None
        rows = running[1]
        limit_s = FIRST_LIMIT_S if self._slowest_row_s is None else max(SHORTEST_LIMIT_S, SLACK * rows() * self._slowest_row_s)
        return self._spent_s if self._spent_s > limit_s else None


def start(watchdog: Watchdog, beat: Callable[[], None]) -> None:
    """Call `beat` every `BEAT_S` seconds in a thread, and end the process when a step is overdue."""
    threading.Thread(target=_run, args=(watchdog, beat), daemon=True, name="watchdog").start()


def _run(watchdog: Watchdog, beat: Callable[[], None]) -> None:
    while True:
        time.sleep(BEAT_S)
        beat()
        overdue_s = watchdog.look()
        if overdue_s is not None:
            log.error("a step of the engine has taken %.0f s: it is stuck, and this process ends; where its threads are:", overdue_s)
            faulthandler.dump_traceback(all_threads=True)
            os._exit(STUCK_EXIT_CODE)
