"""Keeps requests and their answers in files, where the settings ask for it: one file a day, deleted after some days.

Off by default. `docs/privacy.md` says what is kept and how it is deleted.
"""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import SetupError
from app.settings import RetentionSettings
from serve.admission.gate import is_work
from serve.observe.record import current_record

log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 3600.0
OWNER_ONLY_FOLDER, OWNER_ONLY_FILE = 0o700, 0o600


def utc_now() -> datetime:
    return datetime.now(UTC)


class Archive:
    """The folder of the files. Their names are the dates of their lines, in UTC: `2026-11-28.jsonl`."""

    def __init__(self, settings: RetentionSettings, clock: Callable[[], datetime] = utc_now) -> None:
        """Raises `SetupError` if the folder cannot be made or written."""
        assert settings.folder is not None
        self.folder, self.days = Path(settings.folder), settings.days
        self._clock = clock
        self._has_failed = False  # the latest line could not be written
        try:
            self.folder.mkdir(mode=OWNER_ONLY_FOLDER, parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied", str(self.folder))
        except OSError as error:
            raise SetupError(
                f"retention.folder: {self.folder} cannot be used ({error.strerror}); name a folder that can be written"
            ) from error
        log.warning("requests and their answers are kept for %d days in %s (retention.folder)", self.days, self.folder)

    def add(self, entry: dict[str, Any]) -> None:
        """Append a line. A disk that is full costs the line, not the request."""
        now = self._clock()
        line = json.dumps({"time": now.isoformat(timespec="milliseconds"), **entry}) + "\n"
        try:
            file = os.open(self.folder / f"{now.date()}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, OWNER_ONLY_FILE)
            with os.fdopen(file, "wb") as opened:
                opened.write(line.encode())
        except OSError as error:
            if not self._has_failed:
                log.error(
                    "a request could not be kept in %s: %s; the next ones are tried without another message", self.folder, error.strerror
                )
            self._has_failed = True
        else:
            self._has_failed = False

    def sweep(self) -> None:
        """Delete the files whose last line is older than `days`. Other files in the folder are left alone."""
        oldest = self._clock().date() - timedelta(days=self.days)
        for path in self.folder.glob("????-??-??.jsonl"):
            with contextlib.suppress(ValueError):  # no date
                if date.fromisoformat(path.stem) < oldest:
                    _delete(path)

    async def watch(self) -> None:
        """Run as long as the server."""
        while True:
            self.sweep()
            await asyncio.sleep(SWEEP_INTERVAL_S)


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.error("%s is older than retention.days and could not be deleted: %s; delete it by hand", path, error.strerror)


class Retention:
    """Adds a line for each request that asks for jobs, when its answer has ended or its client has left.

    Wants the whole body in one message, as `serve.body.RequestBody` passes it on.
    """

    def __init__(self, app: ASGIApp, archive: Archive) -> None:
        self.app = app
        self.archive = archive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_work(scope):
            await self.app(scope, receive, send)
            return
        status, body, answer = 0, b"", bytearray()

        async def receive_and_note() -> Message:
            nonlocal body
            message = await receive()
            body = body or message.get("body", b"")
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            answer.extend(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive_and_note, send_and_note)
        finally:
            record = current_record()
            self.archive.add(
                {
                    "request_id": None if record is None else record.id,
                    "client": scope.get("state", {}).get("client"),
                    "path": scope["path"],
                    "status": status,
                    "request": body.decode(errors="replace"),
                    "answer": answer.decode(errors="replace"),
                }
            )
