"""Fine-tuning jobs and the lane that works on them. Shared by the tests of jobs and of what they make."""

import sqlite3
import threading
import time
from contextlib import contextmanager

from sqlalchemy.exc import OperationalError

from app.ledger.database import Database
from app.ledger.folder import Folder
from app.ledger.room import RESERVE
from jobs.lane import Lane
from jobs.leases import Leases
from jobs.runs import Runs


def upload(hosted, text="{}", name=None):
    return hosted.client(name).files.create(file=("t.jsonl", text.encode()), purpose="fine-tune").id


def start(hosted, text="{}", name=None, **more):
    return hosted.client(name).fine_tuning.jobs.create(model="fake", training_file=upload(hosted, text, name), **more)


@contextmanager
def working(hosted, name="w", lease_s=30.0):
    """A worker's lane, told to stop at the end."""
    stopping = threading.Event()
    runs = Runs(hosted.database, Leases(hosted.database, name, lease_s))
    lane = Lane(hosted.settings, runs, Folder(hosted.settings.jobs.folder).secret(), stopping)
    thread = threading.Thread(target=lane.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(60)
        assert not thread.is_alive()


def reached(hosted, job, *statuses, name=None):
    end = time.monotonic() + 60
    while (shown := hosted.client(name).fine_tuning.jobs.retrieve(job.id)).status not in statuses:
        assert time.monotonic() < end, shown
        time.sleep(0.02)
    return shown


def events(hosted, job):
    """From the first to the last."""
    return list(hosted.client().fine_tuning.jobs.list_events(job.id, limit=3))[::-1]  # in several pages


def steps(hosted, job):
    return [event.data["step"] for event in events(hosted, job) if event.type == "metrics"]


def run_folder(hosted, job):
    return Folder(hosted.settings.jobs.folder).run(job.id)


class FullDisk:
    """Between `fill` and the end of a file (the reserve), the table takes no change: SQLite's own error, as on a disk without room."""

    def __init__(self, hosted, monkeypatch):
        self.reserve, self._filled = hosted.folder / RESERVE, None
        error, whole = _sqlite_full(), Database.transaction

        @contextmanager
        def transaction(database):
            with whole(database) as connection:
                driver = connection.connection.driver_connection
                before = driver.total_changes
                yield connection
                if self._filled and not self._filled.exists():
                    self._filled = None
                if self._filled and driver.total_changes != before:
                    raise OperationalError("COMMIT", {}, error) from error

        monkeypatch.setattr(Database, "transaction", transaction)

    def fill(self, until_gone=None):
        self._filled = until_gone or self.reserve
        assert self._filled.stat().st_size > 0


def _sqlite_full():
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA max_page_count = 1")
    try:
        connection.execute("CREATE TABLE t (a)")
    except sqlite3.OperationalError as error:
        return error
    finally:
        connection.close()
