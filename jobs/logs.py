"""The log of a worker, in the form of the server's. No text of a user reaches it."""

import json
import logging
from datetime import UTC, datetime

from app.settings import ServerSettings


class Lines(logging.Formatter):
    """Time, level, logger and message, then the record's fields as `name=value`; or the same as a JSON object."""

    def __init__(self, as_json: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = getattr(record, "fields", {})
        if not self._as_json:
            return " ".join([super().format(record), *(f"{name}={value}" for name, value in fields.items())])
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(), **fields}
        return json.dumps(line)

    def formatException(self, ei: object) -> str:  # noqa: N802  (logging's name)
        """The types of exceptions only: a message may quote a request."""
        return " ".join(getattr(kind, "__name__", "") for kind in (ei[0],)) if isinstance(ei, tuple) else ""


def configure(settings: ServerSettings) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(settings.log_format == "json"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    for name in ("httpx", "celery", "kombu", "amqp"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("kombu.connection").setLevel(logging.ERROR)  # it wonders that the filesystem has no host
