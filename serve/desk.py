"""Files, batches and fine-tuning jobs as the routes ask for them: in a thread, opened when they are first needed. Starts a worker while
there is work.

A server whose clients never upload anything opens no table, makes no folder and starts no worker.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from app.errors import LitmusError, NotReady, SetupError, StorageFull
from app.ledger.folder import Folder
from app.ledger.room import is_full
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


@dataclass(frozen=True, slots=True)
class Tables:
    files: "Files"
    batches: "Batches"
    tunings: "Tunings"
    database: "Database"


class Desk:
    """One thread asks the table and writes the files, so that nobody else waits for a disk."""

    def __init__(self, settings: JobSettings) -> None:
        self.settings = settings
        self.folder = Folder(settings.folder)
        self.called = asyncio.Event()  # there may be work for a worker
        self._pool = ThreadPoolExecutor(1, "files")
        self._tables: Tables | None = None

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever kept, so that there is nothing to look after."""
        return self._tables is None and self.settings.database is None and not (Path(self.settings.folder) / SQLITE_FILE).exists()

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Run what touches the disk. Raises `StorageFull`."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        except OSError as error:
            log.error("jobs.folder cannot be used: %s", error.strerror)
            raise StorageFull(f"the server cannot use the folder of its files, jobs.folder: {error.strerror}") from error

    async def ask(self, question: Callable[[Tables], T]) -> T:
        """Ask the table. Raises `NotReady` where it cannot be reached, `StorageFull` where its disk has no room."""
        return await self.run(lambda: self._ask(question))

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
