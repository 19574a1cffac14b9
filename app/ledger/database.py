"""The connection to the tables: a SQLite file in WAL for one machine, PostgreSQL for several. Every transaction is durable when it ends."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, event, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from app.errors import SetupError, first_line
from app.ledger.folder import OWNER_ONLY_FILE, OWNER_ONLY_FOLDER
from app.ledger.room import Reserve, is_full
from app.ledger.tables import metadata

T = TypeVar("T")

BUSY_S = 10  # how long a transaction waits for another process's
STATEMENT_S = 10  # how long PostgreSQL may take for a statement, before it ends it itself
SILENCE_S = 12.0  # and for an answer, also to a new connection, before this side gives up
CLOCK_S = 60.0  # between two looks at the database's clock
SQLITE = ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_S * 1000}", "secure_delete=ON", "foreign_keys=ON")

POSTGRESQL: dict[str, Any] = {"pool_pre_ping": True, "pool_size": 2, "pool_timeout": SILENCE_S, "connect_args": {"timeout": SILENCE_S}}


class Database:
    def __init__(self, url: str) -> None:
        """`url` is SQLAlchemy's. Makes the file and the tables where they are missing. Raises `SetupError`."""
        self.is_sqlite = url.startswith("sqlite")
        self._offset_s, self._looked_at = 0.0, float("-inf")
        self._reserve = Reserve(Path(url.removeprefix("sqlite:///")).parent) if self.is_sqlite else None
        try:
            if self.is_sqlite:
                make_file(Path(url.removeprefix("sqlite:///")))
            self._engine = create_engine(url, **({} if self.is_sqlite else POSTGRESQL))
            if not self.is_sqlite:
                event.listen(self._engine, "connect", _set_up_postgresql)
            else:
                event.listen(self._engine, "connect", _set_up_sqlite)
                event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
            self._make_tables()
            self.keep_reserve()
        except (OSError, DBAPIError) as error:
            where = "jobs.folder" if self.is_sqlite else "jobs.database"
            raise SetupError(f"{where}: the table of jobs cannot be opened ({type(error).__name__}: {first_line(error)})") from error

    def _make_tables(self) -> None:
        """Several processes may start at once: the one that is second finds the tables made."""
        try:
            metadata.create_all(self._engine)
        except (IntegrityError, DBAPIError):
            metadata.create_all(self._engine)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Raises `DBAPIError`, also where PostgreSQL does not answer in time."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except TimeoutError as error:  # of the socket, which pg8000 does not always put into an error of its own
            raise OperationalError(None, None, error) from error

    def even_if_full(self, change: Callable[[], T]) -> T:
        """Make a change that ends something, and so gives room: where the disk of the SQLite file is full, at the cost of the reserve,
        which at once takes what is left of its room.
        """
        try:
            return change()
        except DBAPIError as error:
            if self._reserve is None or not is_full(error) or not self._reserve.free():
                raise
        try:
            return change()
        finally:
            self.keep_reserve()

    def keep_reserve(self) -> None:
        """Take the room again that `even_if_full` gave up, as far as there is any."""
        if self._reserve is not None:
            self._reserve.keep()

    def hold(self, connection: Connection, name: str) -> None:
        """Until the transaction ends, no other one holds the same name: what it counts stays true. SQLite has one at a time anyway."""
        if not self.is_sqlite:
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))

    def now(self) -> float:
        """Unix time in seconds by the clock of the database, so that workers on several machines agree on it."""
        if not self.is_sqlite and time.monotonic() - self._looked_at > CLOCK_S:
            with self.transaction() as connection:
                theirs = connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one()
            self._offset_s, self._looked_at = float(theirs) - time.time(), time.monotonic()
        return time.time() + self._offset_s

    def forget_deleted(self) -> None:
        """Write the log of SQLite into its file, so that what was deleted is in neither. Another process's transaction may prevent it."""
        if self.is_sqlite:
            with contextlib.closing(self._engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self._engine.dispose()


def make_file(path: Path) -> None:
    """A file that is there is not opened: to close it would drop every lock of this process on it, those of SQLite's connections too."""
    path.parent.mkdir(mode=OWNER_ONLY_FOLDER, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, OWNER_ONLY_FILE))


def _set_up_postgresql(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET statement_timeout = {STATEMENT_S * 1000}")
    cursor.close()
    connection.commit()


def _set_up_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `Database.transaction` says
    cursor = connection.cursor()
    for pragma in SQLITE:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
