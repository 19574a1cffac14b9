"""How many threads a step uses on a CPU: fewer while other processes want the same cores.

A layer is done when its slowest thread is. Where other processes keep `waiting` of its `threads` threads from running (on average), all of
them run together about `1 - waiting` of the time; with one thread less, the layer takes `threads / (threads - 1)` as long. So one less is
faster as soon as `waiting * threads` is above 1. Linux counts the time that each thread was ready to run and did not.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import torch

WINDOW_S = 0.1  # of steps; the time that threads waited is looked at once a window
WINDOWS_TO_SHRINK = 2  # crowded windows in a row before a thread is given up
FIRST_RETRY_S, LAST_RETRY_S = 2.0, 30.0  # after this long one more thread is tried; twice as long after each try that failed
SCHEDULER_STATISTICS = "schedstat"  # nanoseconds on a core, nanoseconds ready but not on a core, number of turns


class ThreadCount:
    """Set `threads` between 1 and `limit` by what `waiting_s` says: seconds that this process's threads have waited for a core, in all."""

    def __init__(
        self,
        limit: int,
        apply: Callable[[int], None],
        waiting_s: Callable[[], float],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.threads = self.limit = limit
        self._apply, self._waiting_s, self._clock_s = apply, waiting_s, clock_s
        self._busy_s = 0.0  # steps of this window
        self._waited_s = waiting_s()  # at its beginning
        self._crowded_windows = 0
        self._retry_after_s = FIRST_RETRY_S
        self._changed_s = 0.0  # when the number last changed
        self._is_trying = False  # in this window one more thread is tried

    def step_ended(self, seconds: float) -> None:
        """Account for a step of that duration; may change the number of threads of the next."""
        if self.limit == 1:
            return
        self._busy_s += seconds
        if self._busy_s < WINDOW_S:
            return
        waited_s = self._waiting_s()
        crowded = (waited_s - self._waited_s) / self._busy_s * self.threads > 1
        self._busy_s, self._waited_s = 0.0, waited_s
        self._window_ended(crowded)

    def _window_ended(self, crowded: bool) -> None:
        now_s = self._clock_s()
        self._crowded_windows = self._crowded_windows + 1 if crowded else 0
        if self._is_trying:
            self._is_trying = False
            self._retry_after_s = min(2 * self._retry_after_s, LAST_RETRY_S) if crowded else FIRST_RETRY_S
            if crowded:
                self._set(self.threads - 1, now_s)
        elif self._crowded_windows >= WINDOWS_TO_SHRINK and self.threads > 1:
            self._set(self.threads - 1, now_s)
        elif not crowded and self.threads < self.limit and now_s - self._changed_s >= self._retry_after_s:
            self._is_trying = True
            self._set(self.threads + 1, now_s)

    def _set(self, threads: int, now_s: float) -> None:
        self.threads, self._changed_s, self._crowded_windows = threads, now_s, 0
        self._apply(threads)


class WaitingTime:
    """The seconds that this process's threads have been ready to run without a core, by Linux's scheduler. 0 where it does not say."""

    def __init__(self, tasks: Path = Path("/proc/self/task")) -> None:
        self._tasks = tasks
        self._by_thread: dict[str, int] = {}  # nanoseconds at the last call
        self._total_ns = 0

    def __call__(self) -> float:
        current: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError, IndexError):  # no such file system, or not in this form
            for task in self._tasks.iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
                    current[task.name] = int((task / SCHEDULER_STATISTICS).read_text().split()[1])
        self._total_ns += sum(waited - self._by_thread.get(thread, waited) for thread, waited in current.items())
        self._by_thread = current
        return self._total_ns / 1e9


def create_thread_count() -> ThreadCount:
    """For torch's threads, which the compiled kernel uses too. Call it once the number of threads is what it may be at most."""
    return ThreadCount(torch.get_num_threads(), torch.set_num_threads, WaitingTime())
