"""What the bot writes to its log: no text of a user, no name, no token. Libraries speak only of what goes wrong."""

import json
import logging
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

Form = Literal["text", "json"]
LIBRARIES = ("telegram", "httpx", "httpcore")  # httpx writes each URL at level info, and the URL holds the token
VALUE = re.compile(r"%(%|(\(\w+\))?[-#0 +]*\d*(\.\d+)?[a-zA-Z])")  # a place for one in the sentence of a library


class Discreet(logging.Formatter):
    """An error's kind without its words, a library's sentence without its values, as both may quote a message; and no secret. Lines look
    like those of the server.
    """

    def __init__(self, form: Form, secrets: Iterable[str]) -> None:
        super().__init__()
        self._form = form
        self._secrets = [secret for secret in secrets if secret]

    def format(self, record: logging.LogRecord) -> str:
        is_own = record.name.split(".")[0] == "ui"
        words = (record.getMessage() if is_own else VALUE.sub(_hidden, str(record.msg))).splitlines() or [""]
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        said = f"{words[0]}{f' ({kind})' if kind else ''}"
        for secret in self._secrets:
            said = said.replace(secret, "***")
        if self._form == "text":
            return f"{self.formatTime(record)} {record.levelname} {record.name}: {said}"
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, "level": record.levelname.lower(), "logger": record.name, "message": said})


def _hidden(place: re.Match[str]) -> str:
    return "%" if place[0] == "%%" else "..."


def set_up(level: str, form: Form, secrets: Iterable[str]) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(Discreet(form, secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
