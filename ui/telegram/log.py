"""What the bot writes to its log: no text of a user, no name, no token. Libraries speak only of what goes wrong."""

import logging
from collections.abc import Iterable

LIBRARIES = ("telegram", "httpx", "httpcore")  # httpx writes each URL at level info, and the URL holds the token


class Discreet(logging.Formatter):
    """An error's kind without its words, a library's sentence without its values, as both may quote a message; and no secret."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        self._secrets = [secret for secret in secrets if secret]

    def format(self, record: logging.LogRecord) -> str:
        is_own = record.name.split(".")[0] == "ui"
        words = (record.getMessage() if is_own else str(record.msg)).splitlines() or [""]
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        line = f"{record.levelname} {record.name} {words[0]}{f' ({kind})' if kind else ''}"
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return line


def set_up(level: str, secrets: Iterable[str]) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(Discreet(secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
