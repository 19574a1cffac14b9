"""The file of flags: one JSON line each, safe with many writers in many processes. Knows no HTTP and no browser.

A lock file beside it is held while a line is written, so lines never mix and the file is turned over only once. A line is there whole, or
not at all.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from app.errors import LitmusError, SetupError
from ui.flags.flag import Flag

OWNER_ONLY = 0o600
MAX_BYTES = 10_000_000  # of one file; then it is renamed to NAME.1, the older ones to NAME.2 and so on
OLDER_FILES = 4  # beyond these the oldest is deleted


class NotKept(LitmusError):
    """A flag could not be written. `message` is shown to the visitor."""

    code = "flag_not_kept"


def utc_now() -> datetime:
    return datetime.now(UTC)


class FlagFile:
    def __init__(self, path: Path, max_bytes: int = MAX_BYTES, clock: Callable[[], datetime] = utc_now) -> None:
        """Raises `SetupError` if the file cannot be written."""
        self.path = path
        self.max_bytes = max_bytes
        self._clock = clock
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                os.close(self._open())
        except OSError as error:
            raise SetupError(f"ui.flags: {path} cannot be written ({error.strerror}); name a file that can, or leave it out") from error

    def add(self, flag: Flag) -> None:
        """Append a line. Raises `NotKept`; the file then ends as it did before."""
        at = self._clock().isoformat(timespec="seconds")
        line = f'{{"time":"{at}",{flag.model_dump_json(exclude_none=True)[1:]}\n'.encode()
        try:
            with self._locked():
                self._append(line)
        except OSError as error:
            raise NotKept(f"This could not be kept: {error.strerror}. Tell whoever runs this server; nothing was written.") from error

    def _append(self, line: bytes) -> None:
        file = self._open()
        try:
            size = os.fstat(file).st_size
            if size and size + len(line) > self.max_bytes:
                self._turn_over()
                newer = self._open()  # before the other is closed: `finally` closes that one where this fails
                os.close(file)
                file, size = newer, 0
            self._write_whole(file, line, size)
        finally:
            os.close(file)

    def _write_whole(self, file: int, line: bytes, size: int) -> None:
        """Appends the line to a file of `size` bytes; a part of it that a full disk took is cut off again."""
        written = 0
        try:
            while written < len(line):
                written += os.write(file, line[written:])
        except OSError:
            if written:
                os.ftruncate(file, size)
            raise

    def _turn_over(self) -> None:
        """The file becomes NAME.1, NAME.1 becomes NAME.2, and so on; the last is replaced."""
        names = [self.path, *(self.path.with_name(f"{self.path.name}.{number}") for number in range(1, OLDER_FILES + 1))]
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            if newer.exists():
                newer.replace(older)

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, OWNER_ONLY)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, of all processes. The lock file stays: removing it would let two writers hold two locks."""
        lock = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, OWNER_ONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def flag_file(setting: str | None) -> FlagFile | None:
    """None where the setting is not set: then nothing is kept. Raises `SetupError`."""
    return None if setting is None else FlagFile(Path(setting))
