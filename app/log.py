"""How a log looks: lines of text, or a JSON object a line. Neither ever holds what a request said.

The message of an exception may quote a request, so a traceback has the types of its exceptions and the lines of code, and no messages.
"""

import json
import logging
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:{}*")
Form = Literal["text", "json"]
Context = Callable[[], Mapping[str, str]]  # fields that every line has, such as the id of the request that is being served
ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure(level: str, form: Form, context: Context = dict) -> None:
    """Sends the log of this process to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter(context) if form == "json" else TextFormatter(context))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("asyncio").addFilter(_without_values)
    for library in ("httpx", "httpx2"):  # they would log each call of the page to this server, and each question to a model hub
        logging.getLogger(library).setLevel(logging.WARNING)


class TextFormatter(logging.Formatter):
    """Time, level, logger and message, then the record's fields as `name=value`."""

    def __init__(self, context: Context = dict) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._context = context

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        fields = _fields(record, self._context).items()
        return " ".join([super().formatMessage(record), *(f"{name}={_quoted(value)}" for name, value in fields)])

    def formatException(self, ei: ExceptionInfo) -> str:  # noqa: N802  (logging's name)
        return _without_messages(ei)


class JSONFormatter(logging.Formatter):
    def __init__(self, context: Context = dict) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record, self._context),
        }
        if record.exc_info:
            line["exception"] = _without_messages(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line)


def _fields(record: logging.LogRecord, context: Context) -> dict[str, object]:
    """What was given as `extra={"fields": ...}`, and the context."""
    return {**getattr(record, "fields", {}), **context()}


def _quoted(value: object) -> str:
    """A value that cannot be mistaken for two: in quotes unless it is plain."""
    text = str(value)
    return text if text and PLAIN.issuperset(text) else json.dumps(text)


def _without_messages(info: ExceptionInfo) -> str:
    """The traceback of an exception, of those that it groups, and of those before it, each once."""
    lines, seen = list[str](), set[int]()
    ahead: list[BaseException | None] = [info[1]]
    while ahead:
        error = ahead.pop(0)
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        lines += traceback.format_tb(error.__traceback__)
        lines.append(f"{type(error).__module__}.{type(error).__qualname__} (its message is not logged)\n")
        ahead += error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        ahead.append(error.__cause__ or (None if error.__suppress_context__ else error.__context__))
    return "".join(lines).rstrip()


def _without_values(record: logging.LogRecord) -> bool:
    """Of a message of asyncio what it says, without the exception, the task or the arguments that it quotes."""
    record.msg = record.getMessage().partition("\n")[0].partition("(")[0]
    record.args = None
    return True
