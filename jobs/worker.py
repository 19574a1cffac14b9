"""What a worker does once it is woken: take tasks until none is due, and tell by a beat that it lives while it works on one."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy.exc import DBAPIError

from app.errors import first_line
from app.ledger.batches import CHECK, FINISH, LINES
from app.schemas.batches import BatchProblem
from app.settings import Settings
from jobs import policy
from jobs.check import Check, check_input
from jobs.finish import Finish
from jobs.leases import LeaseLost, Leases, Task
from jobs.lines import Lines
from jobs.server import Refused, Server, Unavailable

log = logging.getLogger(__name__)

LOOK_S = 0.2  # between two looks whether to stop
LONG_PAUSE_S = 600.0  # before the files of a batch are made that ended every worker which tried
PAUSE_S = 5.0  # before a task is taken again that met a server, a table or a disk that did not answer


class Worker:
    """`stopping` is set when the process was told to stop."""

    def __init__(self, settings: Settings, leases: Leases, secret: str, stopping: threading.Event) -> None:
        self._settings, self._jobs = settings, settings.jobs
        self._leases = leases
        self._secret = secret
        self._stopping = stopping

    def run(self) -> None:
        """Work on whatever is due. Raises nothing of what a server, a table or a disk may do."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        async with Server(self._settings, self._secret) as server:
            while not self._stopping.is_set():
                try:
                    task = await asyncio.to_thread(self._leases.take)
                    if task is None:
                        return
                    await self._work(task, server)
                except LeaseLost:
                    log.info("a task went to another worker, or its batch has ended")
                except DBAPIError as error:
                    log.warning(
                        "the table of jobs does not answer (%s: %s); the sweeper tries again", type(error).__name__, first_line(error)
                    )
                    return

    async def _work(self, task: Task, server: Server) -> None:
        where = {"fields": {"batch": task.batch, "task": f"{task.kind}-{task.n}", "fence": task.fence}}
        if policy.gives_up(task.attempts):
            await self._lose(task, where)
            return
        try:
            await self._run_kind(task, server)
        except Refused as error:
            log.warning("the server refuses what a task needs (%s): it ends", error, extra=where)
            await self._give_up(task, "input_unavailable", "the input file, or the key that uploaded it, is gone")
        except (Unavailable, OSError) as error:
            log.warning("a task waits %.0f s: %s", PAUSE_S, error if isinstance(error, Unavailable) else type(error).__name__, extra=where)
            await asyncio.to_thread(self._leases.release, task, PAUSE_S)
        except (LeaseLost, DBAPIError):
            raise
        except Exception as error:  # whatever one task meets, those of others go on
            log.error("a task was ended by %s, and waits %.0f s", type(error).__name__, PAUSE_S, exc_info=error, extra=where)
            await asyncio.to_thread(self._leases.release, task, PAUSE_S, failed=True)

    async def _lose(self, task: Task, where: dict[str, Any]) -> None:
        """What every worker that took it was lost over. Answers that are committed are kept, until somebody can make the files of them."""
        lost = "a task ended %d tries of workers one after the other: it %s"
        if task.kind == FINISH and await asyncio.to_thread(self._leases.has_results, task.batch):
            log.error(lost, task.attempts - 1, f"is tried again in {LONG_PAUSE_S:.0f} s, as its batch has answers", extra=where)
            await asyncio.to_thread(self._leases.release, task, LONG_PAUSE_S)
        else:
            log.error(lost, task.attempts - 1, "is not tried again", extra=where)
            await self._give_up(
                task, "worker_lost", "every worker that took this batch was lost or met an error; the server's log says more"
            )

    async def _run_kind(self, task: Task, server: Server) -> None:
        if task.kind == CHECK:
            check = Check(task.endpoint, self._jobs.max_lines, self._settings.server.max_body_bytes)
            await self._keep_alive(task, check_input(task, server, self._leases, check, self._jobs.lines_per_task))
        elif task.kind == LINES:
            lines = Lines(task, server, self._leases, self._jobs.lines_at_once)
            await self._keep_alive(task, self._run_lines(task, lines), lines)
        else:
            await self._keep_alive(task, Finish(task, server, self._leases).run())

    async def _run_lines(self, task: Task, lines: Lines) -> None:
        answered = await lines.run()
        if answered or not self._stopping.is_set():  # dropped lines belong to a batch that was cancelled or has expired
            await asyncio.to_thread(self._leases.complete, task)
        else:
            await asyncio.to_thread(self._leases.release, task)

    async def _keep_alive(self, task: Task, work: Coroutine[None, None, None], lines: Lines | None = None) -> None:
        """Run `work` and renew its lease meanwhile. Ends it when the lease is lost, when it is not wanted, and on a stop signal."""
        running = asyncio.create_task(work)
        drop = running.cancel if lines is None else lines.drop
        beat = asyncio.create_task(self._beat(task, drop))
        stop = asyncio.create_task(self._stop_in_time(drop, lines))
        try:
            await asyncio.wait({running, beat}, return_when=asyncio.FIRST_COMPLETED)
            if beat.done():
                beat.result()
        finally:
            for each in (running, beat, stop):
                each.cancel()
            await asyncio.wait({running, beat, stop})
        if running.cancelled():
            raise Unavailable("it was ended before it was done")
        running.result()

    async def _beat(self, task: Task, drop: Callable[[], object]) -> None:
        """Raises `LeaseLost`. While the table does not answer the lease runs on, and somebody else may take the task when it has ended."""
        while True:
            await asyncio.sleep(policy.beat_s(self._leases.lease_s))
            try:
                if not await asyncio.to_thread(self._leases.beat, task):
                    drop()
            except DBAPIError as error:
                log.warning("the table of jobs does not answer (%s); trying again", type(error).__name__)

    async def _stop_in_time(self, drop: Callable[[], object], lines: Lines | None) -> None:
        while not self._stopping.is_set():
            await asyncio.sleep(LOOK_S)
        if lines is not None:
            lines.stop()
        await asyncio.sleep(self._jobs.grace_s)
        drop()

    async def _give_up(self, task: Task, code: str, message: str) -> None:
        """Lines that have no answer get an error when the files are made; without input or files there is nothing to make."""
        if task.kind == LINES:
            await asyncio.to_thread(self._leases.complete, task)
        else:
            await asyncio.to_thread(self._leases.fail, task, [BatchProblem(code=code, message=message)])
