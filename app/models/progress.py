"""How far a long piece of work of a start has come: a line in the log now and then, and whoever else listens in this process.

A worker process sets the listener, so that `/ready` can tell it. Knows neither the hub nor the server.
"""

import logging
import time
from collections.abc import Callable
from typing import Literal

log = logging.getLogger(__name__)

Stage = Literal["downloading", "staging", "loading", "recording steps", "warming up"]
Listener = Callable[[Stage, int, int], None]  # the stage, bytes done, bytes in all; 0 of 0 where nothing is counted
LOG_INTERVAL_S = 5.0
MB = 1e6

_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """From now on `listener` is told of every step of this process. It must be quick."""
    _listeners[:] = [listener]


def tell(stage: Stage, done: int = 0, total: int = 0) -> None:
    for listener in _listeners:
        listener(stage, done, total)


class Transfer:
    """Counts bytes of one download or copy, from several threads or one."""

    def __init__(self, stage: Stage, what: str, total: int) -> None:
        self.stage, self.what, self.total, self.done = stage, what, total, 0
        self._started_s = self._logged_s = time.monotonic()
        tell(stage, 0, total)
        log.info("%s %s: %.1f MB", stage, what, total / MB)

    def advance(self, count: int) -> None:
        """`count` is negative when what was there has to be fetched again."""
        self.done += count
        tell(self.stage, self.done, self.total)
        now = time.monotonic()
        if now - self._logged_s >= LOG_INTERVAL_S:
            self._logged_s = now
            self._log(now)

    def finish(self) -> None:
        self._log(time.monotonic())

    def _log(self, now: float) -> None:
        speed = self.done / MB / max(1e-3, now - self._started_s)
        share = 100 * self.done / self.total if self.total else 100
        log.info("%s %s: %.1f of %.1f MB (%d%%), %.1f MB/s", self.stage, self.what, self.done / MB, self.total / MB, share, speed)
