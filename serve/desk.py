"""Files, batches and fine-tuning jobs as the routes ask for them: in a thread, opened when they are first needed. Starts a worker while
there is work.

A server whose clients never upload anything opens no table, makes no folder and starts no worker.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from app.errors import LitmusError, NotReady, SetupError, StorageFull
from app.ledger.folder import Folder
from app.ledger.room import UNUSABLE, is_full, refuses_writing
from app.settings import JobSettings
from app.settings.jobs import SQLITE_FILE

if TYPE_CHECKING:
    from app.ledger.batches import Batches
    from app.ledger.database import Database
    from app.ledger.files import Files
    from app.ledger.tunings import Tunings

log = logging.getLogger(__name__)
T = TypeVar("T")

CLEAN_S = 60.0  # between two looks for files whose time is over
ANSWER_S = 30.0  # what a question to the table may take, with those before it; a single one ends earlier
SILENT = "the table of jobs did not answer in time; what was asked for may still be done, so look before you send it again"


@dataclass(frozen=True, slots=True)
class Tables:
    files: "Files"
    batches: "Batches"
    tunings: "Tunings"
    database: "Database"


class Clerk(Executor):
    """One thread, begun when it is first needed. The end of the process does not wait for it, as a table or a disk may never answer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable[..., T], /, *arguments: Any, **options: Any) -> Future[T]:
        future = Future[T]()
        self._calls.put((future, partial(function, *arguments, **options)))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name=self._name)
            self._thread.start()
        return future

    def _run(self) -> None:
        while True:
            future, call = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - whatever it is, who waits gets it
                future.set_exception(error)
            del future, call  # while it waits it holds nobody's file


class Desk:
    """One thread asks the table and writes the files, so that nobody else waits for a disk."""

    def __init__(self, settings: JobSettings) -> None:
        self.settings = settings
        self.folder = Folder(settings.folder)
        self.called = asyncio.Event()  # there may be work for a worker
        self._clerk = Clerk("files")
        self._asked: set[asyncio.Future[Any]] = set()
        self._tables: Tables | None = None

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever kept, so that there is nothing to look after."""
        return self._tables is None and self.settings.database is None and not (Path(self.settings.folder) / SQLITE_FILE).exists()

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Run what touches the disk. Raises `StorageFull`, with the code `storage_unusable` where it is not for want of room."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._clerk, function, *arguments)
        except OSError as error:
            log.error("jobs.folder cannot be used: %s", error.strerror)
            code = StorageFull.code if is_full(error) else UNUSABLE
            raise StorageFull(f"the server cannot use the folder of its files, jobs.folder: {error.strerror}", code=code) from error

    async def ask(self, question: Callable[[Tables], T]) -> T:
        """Ask the table. Raises `NotReady` where it cannot be reached or does not answer in time, `StorageFull` where it cannot write."""
        answer = asyncio.ensure_future(self.run(lambda: self._ask(question)))
        self._asked.add(answer)
        try:
            await asyncio.wait({answer}, timeout=ANSWER_S)
            if answer.done() and not answer.cancelled():
                return answer.result()
            log.error("the table of jobs did not answer in time")
            answer.cancel()
            await asyncio.wait({answer})  # so that it is not asked any more when the client is told so
            raise NotReady(SILENT)
        finally:
            self._asked.discard(answer)
            answer.cancel()

    def end(self) -> None:
        """Answer those who still wait for the table: the server ends."""
        for answer in self._asked:
            answer.cancel()

    def _ask(self, question: Callable[[Tables], T]) -> T:
        from sqlalchemy.exc import DBAPIError, IntegrityError

        try:
            if self._tables is None:
                self._tables = self._open()
            return question(self._tables)
        except IntegrityError:
            raise
        except SetupError as error:
            log.error("%s", error.message)
            raise NotReady("files and batches cannot be served: the server's log says why") from error
        except DBAPIError as error:
            if is_full(error):
                log.error("the disk of jobs.folder is full")
                raise StorageFull("the server's disk is full, so nothing was changed; cancel jobs or delete files to make room") from error
            if (reason := refuses_writing(error)) is not None:
                log.error("the table of jobs in jobs.folder cannot be written: %s", reason)
                raise StorageFull(f"the server cannot write its table of jobs, in jobs.folder: {reason}", code=UNUSABLE) from error
            log.error("the table of jobs does not answer (%s)", type(error).__name__)
            raise NotReady("the table of jobs does not answer; try again") from error

    def _open(self) -> Tables:
        from app.ledger.batches import Batches
        from app.ledger.database import Database
        from app.ledger.files import Files
        from app.ledger.tunings import Tunings

        database = Database(self.settings.database_url)
        batches, tunings = Batches(database, self.settings.max_batches), Tunings(database, self.settings.max_tunings)
        return Tables(Files(database), batches, tunings, database)

    async def clean(self) -> None:
        """Delete expired files, and what processes that died have left. Runs as long as the server."""
        while True:
            with contextlib.suppress(LitmusError):
                if not self.is_new:
                    gone = await self.ask(lambda ledger: ledger.files.remove_expired() + ledger.files.unknown(self.folder.leftovers()))
                    for id in gone:
                        await self.run(self.folder.delete, id)
                    for id in await self.ask(lambda ledger: ledger.tunings.unwanted(self.folder.runs())):
                        await self.run(self.folder.delete_run, id)
                    await self.ask(lambda ledger: ledger.database.keep_reserve())
            await asyncio.sleep(CLEAN_S)

    async def has_work(self) -> bool:
        with contextlib.suppress(LitmusError):
            return not self.is_new and await self.ask(lambda ledger: ledger.batches.any_unfinished() or ledger.tunings.any_unfinished())
        return False
