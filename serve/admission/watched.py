"""A file that is read again when it changes. Knows nothing of what is in it.

A file that cannot be read or understood is an error at the start; later, what was read last stays, and the log says so.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from app.errors import SetupError

log = logging.getLogger(__name__)

T = TypeVar("T")
State = tuple[int, int, int]  # by which a change is noticed


class WatchedFile(Generic[T]):
    """`parse` makes a value of the file's text, and raises `SetupError` for a text that has none. `setting` names the file."""

    def __init__(self, path: str, parse: Callable[[str], T], setting: str) -> None:
        self._path, self._setting = Path(path), setting
        self._parse = parse
        self._state = self._look()
        self._value = self._read()

    def value(self) -> T:
        """Looks at the file each time, which takes microseconds, and reads it when it has changed."""
        try:
            state = self._look()
        except SetupError as error:
            self._keep(None, error)
            return self._value
        if state != self._state:
            try:
                self._value = self._read()
                log.info("read %s again, because it has changed", self._path)
                self._state = state
            except SetupError as error:
                self._keep(state, error)
        return self._value

    def _keep(self, state: State | None, error: SetupError) -> None:
        """Logs once a change."""
        if self._state != state:
            log.error("%s; until this is put right, what the file said before holds", error.message)
        self._state = state

    def _look(self) -> State | None:
        try:
            status = self._path.stat()
        except OSError as error:
            raise SetupError(f"setting {self._setting}: {self._path} cannot be read ({error.strerror})") from error
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> T:
        try:
            return self._parse(self._path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SetupError(f"setting {self._setting}: {self._path} cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise SetupError(f"setting {self._setting}: {self._path} is not text in UTF-8") from error
