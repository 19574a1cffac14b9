"""A table that does not answer: who asks it is answered in time, and the process ends."""

import asyncio
import errno
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import ENVIRONMENT, ROOT

from app.errors import LitmusError, NotReady, StorageFull
from app.settings import JobSettings
from serve import desk as desks
from serve.desk import Desk, Tables

STUCK = """
import time
from serve.desk import Clerk
clerk = Clerk("stuck")
clerk.submit(print, "asked", flush=True).result()
clerk.submit(time.sleep, 3600)
"""


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """Which the table waits for."""
    event = threading.Event()
    yield event
    event.set()


def test_a_table_that_does_not_answer_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, go_on: threading.Event) -> None:
    monkeypatch.setattr(desks, "ANSWER_S", 0.05)
    asked: list[str] = []

    def question(name: str) -> str:
        go_on.wait()
        asked.append(name)
        return name

    async def run() -> None:
        desk = Desk(JobSettings(folder=str(tmp_path)))
        for name in ("first", "second"):
            with pytest.raises(NotReady, match="did not answer in time"):
                await desk.ask(lambda ledger, name=name: question(name))
        monkeypatch.setattr(desks, "ANSWER_S", 60)
        go_on.set()
        assert await desk.ask(lambda ledger: question("third")) == "third"

    asyncio.run(run())
    assert asked == ["first", "third"], "who was told that it failed while it waited for its turn is not served behind his back"


def test_the_end_of_the_server_answers_who_waits(tmp_path: Path, go_on: threading.Event) -> None:
    async def run() -> None:
        desk = Desk(JobSettings(folder=str(tmp_path)))
        asking = asyncio.create_task(desk.ask(lambda ledger: go_on.wait()))
        await asyncio.sleep(0)
        desk.end()
        with pytest.raises(NotReady):
            await asyncio.wait_for(asking, 30)

    asyncio.run(run())


def test_the_end_of_a_process_does_not_wait_for_the_table() -> None:
    done = subprocess.run([sys.executable, "-c", STUCK], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "asked\n"), done.stderr


@pytest.mark.parametrize(("number", "code"), [(errno.EROFS, "storage_unusable"), (errno.ENOSPC, "storage_full")])
def test_a_folder_that_cannot_be_written_is_not_called_full(tmp_path: Path, number: int, code: str) -> None:
    def write() -> None:
        raise OSError(number, "it says")

    with pytest.raises(StorageFull, match="jobs.folder: it says") as raised:
        asyncio.run(Desk(JobSettings(folder=str(tmp_path))).run(write))
    assert raised.value.code == code


def test_a_table_that_may_only_be_read_is_said(tmp_path: Path) -> None:
    def ask(question: object) -> LitmusError | None:
        try:
            asyncio.run(Desk(JobSettings(folder=str(tmp_path))).ask(question))  # type: ignore[arg-type]
        except LitmusError as error:
            return error
        return None

    def read_only(ledger: Tables) -> None:
        with ledger.database.transaction() as connection:
            connection.exec_driver_sql("PRAGMA query_only=ON")
            connection.exec_driver_sql("DELETE FROM files")

    assert ask(lambda ledger: ledger.files.stored_bytes("")) is None
    error = ask(read_only)
    assert isinstance(error, StorageFull) and error.code == "storage_unusable" and "attempt to write a readonly database" in error.message
