"""A second stop signal ends the server at once; one that belongs to the first does not."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from serving import ENVIRONMENT, ROOT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve import stopping
from serve.server import DRAIN_POLL_S, _drain, with_requests
from serve.stopping import CUT_EXIT_CODE, SAME_STOP_S, STOP_SIGNALS, end_at_next_signal, kill_with_children, stop_signals


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("second", STOP_SIGNALS)
def test_the_second_signal_ends_the_server_once_and_says_so(
    second: signal.Signals, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s, ends = [100.0], []
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now_s[0])
    end_at_next_signal(lambda: ends.append(now_s[0]))
    now_s[0] += SAME_STOP_S / 2
    signal.raise_signal(second)  # as `timeout` sends it: to the process and to its group
    assert ends == [] and caplog.records == []
    now_s[0] += SAME_STOP_S
    for _ in range(2):
        signal.raise_signal(second)
    assert ends == [now_s[0]]
    assert [record.message for record in caplog.records] == [
        "a second stop signal: the server ends at once, and what is in flight is cut off"
    ]


def test_a_process_is_killed_with_what_it_has_started() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        sleeper = psutil.Process(int(shell.stdout.readline()))
        kill_with_children(shell.pid)
        assert shell.wait(60) == -signal.SIGKILL
        assert psutil.wait_procs([sleeper], timeout=60)[1] == []
    kill_with_children(shell.pid)  # it has gone


class Uvicorn:
    def __init__(self, *connections: Any) -> None:
        self.server_state = SimpleNamespace(connections=connections)

    def handle_exit(self, number: int, frame: object) -> None:
        """It drains."""


@pytest.mark.parametrize("alone", [True, False])
def test_the_process_that_answers_is_cut_by_a_second_signal_only_where_it_is_the_only_one(
    alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a service manager that signals every process would cut what the main process lets finish."""
    monkeypatch.setattr(stopping, "SAME_STOP_S", -1.0)
    signal.signal(signal.SIGTERM, Uvicorn().handle_exit)
    cuts: list[bool] = []
    router: Any = SimpleNamespace(draining=False, in_flight=1, fail_all=lambda error: None)

    async def stop_twice() -> None:
        draining = asyncio.create_task(_drain(router, 60, (lambda: cuts.append(True)) if alone else None))
        await asyncio.sleep(0)
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        router.in_flight = 0
        await draining

    asyncio.run(stop_twice())
    assert cuts == [True] * alone


def connection(method: str = "POST", path: str = "/v1/files", answered: bool = False) -> Any:
    """With a request, or with the last of those that were answered."""
    made = HttpToolsProtocol.__new__(HttpToolsProtocol)
    made.cycle = SimpleNamespace(scope={"method": method, "path": path}, response_complete=answered)  # type: ignore[assignment]
    made.transport = Transport()
    return made


class Transport(asyncio.Transport):
    closed = False

    def close(self) -> None:
        self.closed = True


def test_requests_that_are_no_jobs_are_waited_for_and_idle_connections_and_pages_are_not() -> None:
    upload, idle, page = connection(), connection(answered=True), connection("GET", "/ui/gradio_api/heartbeat/7")
    fresh = connection()
    fresh.cycle = None
    connections = (upload, idle, page, fresh)
    assert with_requests(connections) == 1
    assert with_requests([connection("GET", "/v1/files/file-1/content"), connection("POST", "/ui/jobs/files")]) == 2
    signal.signal(signal.SIGTERM, Uvicorn(*connections).handle_exit)
    router: Any = SimpleNamespace(draining=False, in_flight=0, fail_all=lambda error: None)

    async def stop() -> bool:
        draining = asyncio.create_task(_drain(router, 60, None))
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(5 * DRAIN_POLL_S)
        was_open = not any(each.transport.closed for each in connections)
        upload.cycle.response_complete = True
        await asyncio.wait_for(draining, 30)
        return was_open

    assert asyncio.run(stop()) and all(each.transport.closed for each in connections)


def test_a_closed_terminal_stops_a_server_like_sigterm_but_not_under_nohup() -> None:
    assert signal.SIGHUP in stop_signals()
    signal.signal(signal.SIGTERM, Uvicorn().handle_exit)
    router: Any = SimpleNamespace(draining=False, in_flight=0, fail_all=lambda error: None)

    async def hang_up() -> None:
        draining = asyncio.create_task(_drain(router, 60, None))
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGHUP)
        await asyncio.wait_for(draining, 30)

    asyncio.run(hang_up())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in stop_signals()


FRONT = """
import subprocess
from serve.upstream.front import Front
print(subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL).pid, flush=True)
Front.__new__(Front).cut()
"""


def test_a_server_without_workers_ends_with_what_it_has_started() -> None:
    result = subprocess.run([sys.executable, "-c", FRONT], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert result.returncode == CUT_EXIT_CODE, result.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.wait_procs([psutil.Process(int(result.stdout))], timeout=60)[1] == []
