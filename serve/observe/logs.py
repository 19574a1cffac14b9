"""How the log looks: lines of text, or a JSON object a line. Neither ever holds what a request said.

The message of an exception may quote a request, so a traceback has the types of its exceptions and the lines of code, and no messages.
"""

import json
import logging
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

from serve.observe.record import current_record

PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:{}*")
LIBRARIES = ("litserve", "uvicorn", "uvicorn.error")  # they bring handlers of their own
ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


@dataclass(frozen=True, slots=True)
class LogSettings:
    level: str = "info"
    format: Literal["text", "json"] = "text"

    def configure(self) -> None:
        """Send the log of this process to stderr in this form."""
        handler = logging.StreamHandler()
        handler.setFormatter(JSONFormatter() if self.format == "json" else TextFormatter())
        logging.basicConfig(level=self.level.upper(), handlers=[handler])
        for library in ("httpx", "httpx2"):  # they would log each call of the page to this server, and each question to a model hub
            logging.getLogger(library).setLevel(logging.WARNING)

    @staticmethod
    def adopt_libraries() -> None:
        """Let the libraries' lines go through our handler, after they have added theirs."""
        for name in LIBRARIES:
            library = logging.getLogger(name)
            library.handlers.clear()
            library.propagate = True


class TextFormatter(logging.Formatter):
    """Time, level, logger and message, then the record's fields as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        return " ".join([super().formatMessage(record), *(f"{name}={_quoted(value)}" for name, value in _fields(record).items())])

    def formatException(self, ei: ExceptionInfo) -> str:  # noqa: N802  (logging's name)
        return _without_messages(ei)


class JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = _without_messages(record.exc_info)
        return json.dumps(line)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What was given as `extra={"fields": ...}`, and the id of the request that is being served."""
    request, fields = current_record(), getattr(record, "fields", {})
    return fields if request is None else {**fields, "request_id": request.id}


def _quoted(value: object) -> str:
    """A value that cannot be mistaken for two: in quotes unless it is plain."""
    text = str(value)
    return text if text and PLAIN.issuperset(text) else json.dumps(text)


def _without_messages(info: ExceptionInfo) -> str:
    lines, error = [], info[1]
    while error is not None:
        lines += [
            *traceback.format_tb(error.__traceback__),
            f"{type(error).__module__}.{type(error).__qualname__} (its message is not logged)\n",
        ]
        error = error.__cause__ or error.__context__
    return "".join(lines).rstrip()
