"""A worker before it serves, and when it is to stop."""

import os
import queue
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from serve.workers import loop


class Left(Exception):
    """Instead of the end of the process."""


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[bytes]:
    """A process that stands for the main process, and waits."""

    def leave(code: int) -> None:
        raise Left

    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setattr("multiprocessing.parent_process", lambda: SimpleNamespace(pid=process.pid))
    monkeypatch.setattr(loop, "PARENT_CHECK_S", 0.01)
    monkeypatch.setattr(loop.os, "_exit", leave)
    return process


def test_a_worker_whose_main_process_went_before_it_began_to_load_ends(main: subprocess.Popen[bytes]) -> None:
    main.communicate()
    with pytest.raises(Left):
        loop._end_with_parent()


def test_a_worker_ends_when_its_main_process_was_killed_and_nobody_asked_for_its_exit_code(main: subprocess.Popen[bytes]) -> None:
    left = threading.Event()

    def wait() -> None:
        with pytest.raises(Left):
            loop._end_with_parent()
        left.set()

    threading.Thread(target=wait, daemon=True).start()
    assert not left.wait(0.3)
    main.kill()
    assert left.wait(60)
    main.communicate()


class Source:
    """The queue between the processes."""

    def __init__(self) -> None:
        self.messages = queue.Queue[Any]()

    def get(self, timeout: float) -> Any:
        return self.messages.get()


class Engine:
    """Answers a job in one step."""

    rows = 0

    def __init__(self) -> None:
        self.waiting: list[str] = []

    @property
    def idle(self) -> bool:
        return not self.waiting

    def submit(self, job: str) -> None:
        self.waiting.append(job)

    def step(self) -> list[str]:
        answered, self.waiting = self.waiting, []
        return answered


def test_a_worker_that_is_to_stop_answers_the_jobs_that_are_on_their_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    source, engine, pid = Source(), Engine(), os.getpid()
    jobs, answered = [SimpleNamespace(id="1"), SimpleNamespace(id="2")], []

    def send(message: Any) -> None:
        content = message[1][0]
        if isinstance(content, loop.Ready):
            os.kill(pid, signal.SIGTERM)
            for job in jobs:
                source.messages.put((pid, job))
        else:
            answered.extend(content.events)

    monkeypatch.setattr(loop, "start_watchdog", lambda *_: None)
    monkeypatch.setattr(loop, "Adaptation", lambda *_: SimpleNamespace(holds=lambda job: False))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            loop.EngineLoop().run(
                SimpleNamespace(engine=engine, number=0, facts=None), "cpu", 0, source, SimpleNamespace(send=send), {}, None
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert answered == jobs
