"""What the API process does when the main process is gone."""

import asyncio
import os

import psutil
import pytest

from app.settings import QueueSettings
from serve.workers.router import Router
from serve.workers.watch import watch


def test_the_process_that_ends_the_others_ends_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's numbers of processes start anew after the largest, so the youngest process may have the lowest number."""
    parent, killed = os.getppid(), []
    older = [psutil.Process(pid) for pid in (1, parent)]
    monkeypatch.setattr("serve.workers.watch.WATCH_INTERVAL_S", 0.001)
    monkeypatch.setattr(psutil.Process, "children", lambda self: [psutil.Process(), *older])
    monkeypatch.setattr(psutil.Process, "kill", lambda process: killed.append(process.pid))
    parents = iter([parent])
    monkeypatch.setattr(os, "getppid", lambda: next(parents, 1))

    async def main() -> None:
        watching = asyncio.create_task(watch(Router([], QueueSettings())))
        while os.getpid() not in killed:
            await asyncio.sleep(0.001)
        watching.cancel()

    asyncio.run(asyncio.wait_for(main(), 60))
    assert killed[:3] == [1, parent, os.getpid()]
