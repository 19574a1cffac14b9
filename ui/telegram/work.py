"""The answers in the making: one at a time in a chat, so many at once for the server, so many of one user, so many in all.

Each is a task of its own, so that no answer keeps a command from being heard. Knows neither Telegram nor the server.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from weakref import WeakValueDictionary


class End(Enum):
    """Why an answer was ended before it was complete."""

    STOPPED = "its user stopped it"
    LEFT = "nobody can read it any more"
    CUT = "the bot ends"


class Busy(Exception):
    """No further answer is begun. The text is a sentence for the user."""


@dataclass(eq=False, slots=True)
class Job:
    """One answer in the making. `end` says why it was cancelled; None if it was not. `sorry` tells its user that it will not begin."""

    chat: int
    user: int
    sorry: Callable[[], Awaitable[None]]
    task: asyncio.Task[None] | None = None
    has_begun: bool = False
    is_closing: bool = False  # its last messages are being sent: it ends by itself, and half of a message cannot be sent
    end: End | None = None

    def cancel(self, end: End) -> None:
        if self.end is None and not self.is_closing and self.task is not None:
            self.end = end
            self.task.cancel()

    def go_on(self) -> None:
        """After it was cancelled: so that it can still send what there is."""
        self.is_closing = True
        if self.task is not None:
            self.task.uncancel()


Write = Callable[[Job], Awaitable[None]]


class Work:
    """`server` is to be held while the server works on a request of the bot."""

    def __init__(self, at_once: int, per_user: int, in_all: int) -> None:
        self.server = asyncio.Semaphore(at_once)
        self._per_user, self._in_all = per_user, in_all
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()  # by chat; one that nobody waits for vanishes
        self._jobs: set[Job] = set()

    def __len__(self) -> int:
        return len(self._jobs)

    def begin(self, chat: int, user: int, write: Write, sorry: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Starts a task that waits for the earlier answers of the chat and then writes this one. Raises `Busy`."""
        if sum(job.user == user for job in self._jobs) >= self._per_user:
            raise Busy("I am still busy with your last messages. Please wait for their answers, or send /stop.")
        if len(self._jobs) >= self._in_all:
            raise Busy("Too many people ask me at once. Please try again in a minute.")
        job = Job(chat, user, sorry)
        self._jobs.add(job)
        job.task = asyncio.create_task(self._run(job, write))
        job.task.add_done_callback(lambda _: self._jobs.discard(job))
        return job.task

    async def stop(self, chat: int, user: int | None, end: End) -> int:
        """Ends the answers of a chat, or those of one user there, waits until they have ended, and says how many there were."""
        jobs = [job for job in self._jobs if job.chat == chat and user in (None, job.user)]
        await self._end(jobs, end)
        return len(jobs)

    async def drain(self, timeout_s: float) -> int:
        """Waits for all answers, ends those that are not complete by then, and says how many these are."""
        tasks = [job.task for job in self._jobs if job.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        late = list(self._jobs)
        await self._end(late, End.CUT)
        await asyncio.gather(*(job.sorry() for job in late if not job.has_begun), return_exceptions=True)
        return len(late)

    async def _end(self, jobs: list[Job], end: End) -> None:
        for job in jobs:
            job.cancel(end)
        await asyncio.gather(*(job.task for job in jobs if job.task is not None), return_exceptions=True)

    async def _run(self, job: Job, write: Write) -> None:
        async with self._locks.setdefault(job.chat, asyncio.Lock()):
            job.has_begun = True
            await write(job)
