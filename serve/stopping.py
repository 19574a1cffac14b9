"""The second stop signal, which ends the server at once. The first one lets it finish what is in flight. Knows no process of the server."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable

import psutil

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last one when a terminal is closed
SAME_STOP_S = 0.5  # a signal so soon after the first belongs to it: `timeout` sends one to the process and one to its group
CUT_EXIT_CODE = 1  # of a server that a second signal ended


def stop_signals() -> list[signal.Signals]:
    """Those that stop this process: `nohup` has it ignore SIGHUP, and so it stays."""
    return [each for each in STOP_SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]


def end_at_next_signal(end: Callable[[], None]) -> None:
    """Call it when the first stop signal has come: the next one calls `end`, and those after it do nothing."""
    first_s = time.monotonic()

    def end_at_once(number: int, frame: object) -> None:
        if time.monotonic() - first_s < SAME_STOP_S:
            return
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        log.warning("a second stop signal: the server ends at once, and what is in flight is cut off")
        end()

    for each in stop_signals():
        signal.signal(each, end_at_once)


def kill_with_children(pid: int) -> None:
    """Kill a process and those that it has started, which would be left behind."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        started = process.children(recursive=True)
        if pid != os.getpid():
            process.kill()
        for child in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
