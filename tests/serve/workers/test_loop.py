"""A worker before it serves."""

import subprocess
import sys
import threading
from types import SimpleNamespace

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
