"""The adapters that are served again after a restart of the server: a JSON file. Knows no workers."""

import json
import logging
import os
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from app.errors import StorageFull

log = logging.getLogger(__name__)


class Entry(BaseModel):
    """`path` is the adapter's folder, `model` the name of its base."""

    path: str
    model: str


ENTRIES = TypeAdapter(dict[str, Entry])


class Register:
    """Made and written when there is something to remember."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> dict[str, Entry]:
        """By the adapter's name. What cannot be read is logged, and not served."""
        try:
            return ENTRIES.validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            log.error("%s cannot be read, so no adapter is served again: %s", self._file, type(error).__name__)
            return {}

    def write(self, name: str, entry: Entry | None) -> None:
        """Remember the adapter, or forget it. Raises `StorageFull`."""
        entries = self.read()
        if entries.get(name) == entry:
            return
        entries.pop(name, None)
        if entry is not None:
            entries[name] = entry
        whole = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            whole.write_text(json.dumps({each: found.model_dump() for each, found in entries.items()}, indent=1))
            os.replace(whole, self._file)
        except OSError as error:
            raise StorageFull(f"the adapter cannot be remembered: jobs.folder cannot be written ({error.strerror})") from error
