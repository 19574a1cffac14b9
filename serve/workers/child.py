"""The process that runs batches and fine-tuning jobs beside the server: started when there is work, and again when it dies, ended when
all is done.
"""

import asyncio
import contextlib
import logging
import os
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

from fastapi import FastAPI

from app.settings import JobSettings
from serve.desk import Desk

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at the process
IDLE_S = 60.0  # without work after which the process ends
MAX_PAUSE_S = 60.0
MARGIN_S = 6.0  # beyond the grace of the lines, for a process to end
STEADY_S = 30.0  # a process that ran so long did not fail at its start


class Draining(Protocol):
    @property
    def draining(self) -> bool:
        """Whether the server is about to end."""


class Child:
    """`called` is set when there may be work, and `has_work` says whether there is. `stop_s` is how long the process has to stop."""

    def __init__(self, command: Sequence[str], called: asyncio.Event, has_work: Callable[[], Awaitable[bool]], stop_s: float) -> None:
        self._command = command
        self._called, self._has_work = called, has_work
        self._stop_s = stop_s
        self.process: Process | None = None
        self._failures = 0

    async def watch(self, server: Draining) -> None:
        """Run as long as the server."""
        try:
            if await self._asks(server):
                self._called.set()
            while not server.draining:
                await self._look(server)
        finally:
            await self._stop()

    async def _look(self, server: Draining) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._called.wait(), LOOK_S)
        if not self._called.is_set():
            return
        started = time.monotonic()
        self.process = await asyncio.create_subprocess_exec(*self._command, start_new_session=True)
        log.info("a worker for batches and fine-tuning is started", extra={"fields": {"pid": self.process.pid}})
        await self._until_idle(server)
        if self.process is not None and self.process.returncode is not None and not server.draining:
            self._failures = 0 if time.monotonic() - started > STEADY_S else self._failures + 1
            pause_s = min(2.0 ** min(self._failures, 10), MAX_PAUSE_S)
            log.warning(
                "the worker for batches and fine-tuning ended with %d; another one starts in %.0f s", self.process.returncode, pause_s
            )
            await asyncio.sleep(pause_s)

    async def _until_idle(self, server: Draining) -> None:
        """Returns when the process has ended, also because there was nothing to do for a while."""
        assert self.process is not None
        idle_since = time.monotonic()
        while self.process.returncode is None and not server.draining:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), LOOK_S)
            if await self._asks(server):
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > IDLE_S:
                self._called.clear()
                await self._stop()
                return

    async def _asks(self, server: Draining) -> bool:
        """Whether there is work; no longer asked when the server ends, as a table may not answer."""
        answer = asyncio.ensure_future(self._has_work())
        try:
            while not server.draining:
                if (await asyncio.wait({answer}, timeout=LOOK_S))[0]:
                    return answer.result()
            return False
        finally:
            answer.cancel()

    async def _stop(self) -> None:
        process, self.process = self.process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._stop_s)
        except TimeoutError:
            process.kill()
            await process.wait()


def look_after_jobs(app: FastAPI, settings: JobSettings, server: Draining) -> list[Callable[[], Coroutine[Any, Any, None]]]:
    """Put the desk of files and batches into the application's state. Returns what runs as long as the server."""
    if not settings.enabled:
        return []
    desk = app.state.desk = Desk(settings)

    async def run_batches() -> None:
        await Child(worker_command(os.getpid()), desk.called, desk.has_work, settings.grace_s + MARGIN_S).watch(server)

    return [desk.clean, run_batches] if settings.worker else [desk.clean]


def worker_command(pid: int) -> list[str]:
    """The worker ends with the process `pid`, and reads the same settings."""
    return [sys.executable, "-m", "jobs", "--beside", str(pid), *sys.argv[1:]]
