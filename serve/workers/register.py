"""The adapters that are served again after a restart of the server: a JSON file. Knows no workers."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from app.errors import StorageFull

log = logging.getLogger(__name__)


class Entry(BaseModel):
    """`path` is the adapter's folder, `model` the name of its base."""

    path: str
    model: str


class Register:
    """Made and written when there is something to remember. An entry that cannot be read stays in the file as it is."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> dict[str, Entry]:
        """By the adapter's name. What cannot be read is logged, and not served."""
        found = {}
        try:
            content = self._content()
        except OSError as error:
            log.error("%s cannot be read, so no adapter is served again: %s", self._file, error.strerror)
            return {}
        for name, value in content.items():
            try:
                found[name] = Entry.model_validate(value)
            except ValidationError:
                log.error("%s: the entry of the adapter %r cannot be read, so it is not served again", self._file, name)
        return found

    def write(self, name: str, entry: Entry | None) -> None:
        """Remember the adapter, or forget it. Raises `StorageFull`."""
        try:
            content = self._content()
            wanted = {each: value for each, value in content.items() if each != name}
            if entry is not None:
                wanted[name] = entry.model_dump()
            if wanted != content:
                self._save(wanted)
        except OSError as error:
            raise StorageFull(f"the adapter cannot be remembered: jobs.folder cannot be used ({error.strerror})") from error

    def _content(self) -> dict[str, Any]:
        """By the adapter's name. A file that is damaged as a whole is moved aside, so that none is written over it. Raises `OSError`."""
        try:
            content = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            return content
        aside = self._file.with_name(f"{self._file.name}.damaged-{time.time_ns()}")
        os.replace(self._file, aside)
        log.error("%s is damaged, so no adapter is served again: it is now %s, for an administrator to mend", self._file, aside)
        return {}

    def _save(self, content: dict[str, Any]) -> None:
        """Whole on the disk before it takes the old one's place. Raises `OSError`."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        whole = self._file.with_suffix(".new")
        with whole.open("w") as file:
            file.write(json.dumps(content, indent=1))
            file.flush()
            os.fsync(file.fileno())
        os.replace(whole, self._file)
