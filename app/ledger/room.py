"""A full disk: how it is recognised and called, and a file that is given up where the end of a job has to be written all the same."""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from app.errors import StorageFull, first_line
from app.ledger.folder import owner_only

PRIMARY = 0xFF  # of SQLite's codes: the kind, without what it says more exactly
RESERVE = "reserve"
RESERVE_BYTES = 2**18  # a transaction of the table's log takes some pages of 4 KiB
CODES = {errno.ENOSPC, errno.EDQUOT}
UNUSABLE = "storage_unusable"  # the code where a folder cannot be written for another reason
FULL = "the disk of jobs.folder is full, so the run could not be saved: make room, and create the job again"


def is_full(error: BaseException) -> bool:
    """Whether Python, SQLite, torch or safetensors says by this that a disk has no room."""
    return any(
        getattr(each, "errno", 0) in CODES
        or getattr(each, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        or f"os error {errno.ENOSPC}" in str(each)
        for each in (error, error.__context__, error.__cause__)
    )


def refuses_writing(error: BaseException) -> str | None:
    """What SQLite says where it may not write, as in a folder that is mounted to be read only; None for anything else."""
    cause = error.__cause__
    is_readonly = getattr(cause, "sqlite_errorcode", 0) & PRIMARY in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
    return first_line(cause) if cause is not None and is_readonly else None


@contextlib.contextmanager
def says_full_disk() -> Iterator[None]:
    """Raises `StorageFull` instead of what says that a disk has no room."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise StorageFull(FULL) from error


class Reserve:
    """Bytes beside the table that nobody reads."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RESERVE

    def keep(self) -> None:
        """Fill it up, as far as there is room."""
        with contextlib.suppress(OSError), open(self._path, "ab", buffering=0, opener=owner_only) as file:
            file.write(os.urandom(max(RESERVE_BYTES - file.tell(), 0)))  # zeros would take no room on some disks

    def free(self) -> bool:
        """Whether that gave room."""
        with contextlib.suppress(OSError):
            was_bytes = self._path.stat().st_size
            self._path.unlink()
            return was_bytes > 0
        return False
