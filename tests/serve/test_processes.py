"""The main process ends, with a message, when a process ends that it cannot start again."""

import multiprocessing
import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from serve.processes import Server, end_of


@pytest.mark.parametrize(("killed", "said"), [("manager", "holds the queues"), ("api", "answers requests")])
def test_a_process_that_the_server_cannot_do_without_ends_it(killed: str, said: str) -> None:
    manager = multiprocessing.get_context("spawn").Manager()
    ended, alive = multiprocessing.Pipe(duplex=False)
    server: Any = Server.__new__(Server)
    server._manager, server._failure, server._shutdown_event = manager, None, threading.Event()
    watching = threading.Thread(
        target=server._watch, args=([SimpleNamespace(sentinel=ended, join=lambda timeout: None, exitcode=1)],), daemon=True
    )
    watching.start()
    if killed == "manager":
        os.kill(manager._process.pid, signal.SIGKILL)
    else:
        alive.close()
    assert server._shutdown_event.wait(60)
    watching.join(60)
    assert said in server._failure.message
    manager.shutdown()


def test_a_server_that_shuts_down_already_ends_without_an_error() -> None:
    server: Any = Server.__new__(Server)
    server._failure, server._shutdown_event = None, threading.Event()
    server._shutdown_event.set()
    server.lose()
    assert server._failure is None


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (1, "ended; the lines above say why"),
        (-signal.SIGKILL, "was ended by signal 9 (Killed); the system does so where memory runs out"),
        (-signal.SIGSEGV, "was ended by signal 11 (Segmentation fault)"),
        (-40, "was ended by signal 40 ("),
    ],
)
def test_a_signal_is_named_as_it_leaves_no_line(status: int, says: str) -> None:
    assert end_of(status).startswith(f"the process that answers requests {says}")


def test_a_cut_kills_the_processes_that_the_shutdown_waits_for() -> None:
    server: Any = Server.__new__(Server)
    fork = multiprocessing.get_context("fork")
    api, worker, gone = (fork.Process(target=time.sleep, args=(seconds,)) for seconds in (600, 600, 0))
    for process in (api, worker, gone):
        process.start()
    gone.join(60)
    server.was_cut, server._api_processes, server.inference_workers = False, [api], [worker, gone]
    server.cut()
    for process in (api, worker):
        process.join(60)
    assert (api.exitcode, worker.exitcode, gone.exitcode, server.was_cut) == (-signal.SIGKILL, -signal.SIGKILL, 0, True)
