"""The process for batches beside the server, with a program that only sleeps in its place."""

import asyncio
import sys

import psutil
import pytest

from serve.workers import child
from serve.workers.child import Child

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
FAILS = [sys.executable, "-c", "raise SystemExit(3)"]


class Server:
    draining = False


class Beside:
    """Runs a child until the block ends, and notes the processes that it had."""

    def __init__(self, command, work=False, stop_s=5.0):
        self.server, self.called, self.work, self.pids = Server(), asyncio.Event(), work, []
        self.child = Child(command, self.called, self.has_work, stop_s)

    async def has_work(self):
        return self.work

    async def __aenter__(self):
        self.task = asyncio.create_task(self.child.watch(self.server))
        return self

    async def __aexit__(self, *error):
        self.server.draining = True
        await asyncio.wait_for(self.task, 60)

    async def until(self, condition):
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)

    async def started(self):
        await self.until(lambda: self.child.process is not None and self.child.process.pid not in self.pids)
        self.pids.append(self.child.process.pid)
        return self.pids[-1]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(child, "LOOK_S", 0.02)
    monkeypatch.setattr(child, "MAX_PAUSE_S", 0.02)


def test_nothing_is_started_without_work():
    async def run():
        async with Beside(SLEEPS) as beside:
            await asyncio.sleep(0.1)
            assert beside.child.process is None

    asyncio.run(run())


@pytest.mark.parametrize("works", [False, True], ids=["at the start", "later"])
def test_it_ends_with_the_server_while_the_table_does_not_answer(works):
    async def run():
        async with Beside(SLEEPS, work=works) as beside:
            if works:
                await beside.started()
            asked = asyncio.Event()

            async def never():
                asked.set()
                await asyncio.Event().wait()

            beside.child._has_work = never
            await asked.wait()

    asyncio.run(run())


@pytest.mark.parametrize("command", [SLEEPS, STUBBORN], ids=["ends when told", "is killed"])
def test_it_is_started_when_called_and_ends_with_the_server(command):
    async def run():
        async with Beside(command, stop_s=0.2) as beside:
            beside.work = True
            beside.called.set()
            pid = await beside.started()
            await asyncio.sleep(0.2)
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    asyncio.run(run())


def test_work_that_an_earlier_server_left_is_taken_up():
    async def run():
        async with Beside(SLEEPS, work=True) as beside:
            assert await beside.started()

    asyncio.run(run())


def test_it_is_started_again_when_it_dies():
    async def run():
        async with Beside(SLEEPS, work=True) as beside:
            first = await beside.started()
            psutil.Process(first).kill()
            assert await beside.started() != first

    asyncio.run(run())


def test_one_that_fails_at_its_start_is_tried_ever_more_slowly(monkeypatch):
    pauses = []
    sleep = asyncio.sleep

    async def note(seconds):
        pauses.append(seconds)
        await sleep(0.01)

    async def run():
        async with Beside(FAILS, work=True) as beside:
            await beside.until(lambda: len([pause for pause in pauses if pause >= 2]) >= 3)

    monkeypatch.setattr(child, "MAX_PAUSE_S", 60.0)
    monkeypatch.setattr(child.asyncio, "sleep", note)
    asyncio.run(run())
    assert [pause for pause in pauses if pause >= 2][:3] == [2, 4, 8]


def test_it_is_tried_again_however_often_it_failed():
    async def run():
        async with Beside(FAILS, work=True) as beside:
            beside.child._failures = 2000
            await beside.until(lambda: beside.child._failures > 2002 or beside.task.done())
            assert not beside.task.done()

    asyncio.run(run())


def test_it_ends_after_a_while_without_work(monkeypatch):
    async def run():
        async with Beside(SLEEPS, work=True) as beside:
            pid = await beside.started()
            beside.work = False
            await beside.until(lambda: beside.child.process is None and not psutil.pid_exists(pid))
            assert not beside.called.is_set()
            beside.work = True
            beside.called.set()
            assert await beside.started() != pid

    monkeypatch.setattr(child, "IDLE_S", 0.05)
    asyncio.run(run())
