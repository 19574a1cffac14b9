"""Whoever takes a task has it until the lease ends; whoever has lost it cannot write."""

import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from app.errors import RateLimited
from app.ledger.batches import Batches
from app.ledger.database import make_file
from app.ledger.tables import results
from app.schemas.batches import BatchProblem, BatchRequest
from jobs.leases import LeaseLost, Leases, Outcome, Result
from jobs.policy import Part
from jobs.sweeper import Sweeper

LEASE_S = 30.0


@pytest.fixture
def batches(table):
    return Batches(table.database, 100)


@pytest.fixture
def leases(table):
    return Leases(table.database, "first", LEASE_S)


@pytest.fixture
def other(table):
    return Leases(table.database, "second", LEASE_S)


def new_batch(table, batches):
    return batches.create("", BatchRequest(input_file_id=table.file, endpoint="/v1/score", completion_window="24h"), None)


def divided(table, batches, leases, parts=2, lines=2):
    """A batch in progress."""
    batch = new_batch(table, batches)
    leases.divide(leases.take(), [Part(n * lines, lines, 0, 1) for n in range(parts)], "m")
    return batch


def result(n, succeeded=True):
    return Result(n, succeeded, f'{{"n": {n}}}')


def test_a_new_batch_is_checked_first(table, batches, leases):
    batch = new_batch(table, batches)
    task = leases.take()
    assert (task.batch, task.kind, task.fence, task.endpoint) == (batch.id, "check", 1, "/v1/score")
    assert leases.take() is None


@pytest.mark.parametrize("key", [None, "same"])
def test_batches_that_are_made_at_the_same_time_are_no_more_than_may_be(table, key):
    """On PostgreSQL each would otherwise count before any other is there."""
    batches, together = Batches(table.database, 2), threading.Barrier(8)
    body = BatchRequest(input_file_id=table.file, endpoint="/v1/completions", completion_window="24h")

    def make(_: int) -> str | None:
        together.wait(60)
        try:
            return batches.create("", body, key).id
        except RateLimited:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(8)))
    assert len(set(filter(None, made))) == (2 if key is None else 1)
    assert made.count(None) == (6 if key is None else 0)


def test_a_task_is_anothers_only_after_its_lease(table, batches, leases, other):
    new_batch(table, batches)
    task = leases.take()
    table.time += LEASE_S - 1
    assert other.take() is None
    assert leases.beat(task)
    table.time += LEASE_S - 1
    assert other.take() is None
    table.time += 2
    assert other.take().fence == 2


def test_who_has_lost_a_task_cannot_write(table, batches, leases, other):
    divided(table, batches, leases)
    task = leases.take()
    leases.save(task, [result(0)])
    table.time += LEASE_S + 1
    taken = other.take()
    assert (taken.n, taken.fence) == (task.n, task.fence + 1)
    for write in (
        lambda: leases.save(task, [result(1)]),
        lambda: leases.beat(task),
        lambda: leases.complete(task),
        lambda: leases.release(task),
        lambda: leases.fail(task, []),
        lambda: leases.divide(task, [], None),
        lambda: leases.finish(task, Outcome(None, None, 0, 0, None)),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert other.saved_lines(taken) == {0}
    other.save(taken, [result(1)])
    assert [row.n for row in other.results(task.batch)] == [0, 1]


def test_a_worker_that_comes_back_after_its_lease_may_go_on_if_nobody_took_the_task(table, batches, leases):
    divided(table, batches, leases)
    task = leases.take()
    table.time += 2 * LEASE_S
    leases.save(task, [result(0)])
    table.time += LEASE_S - 1
    assert leases.take().n == task.n + 1


def test_the_files_are_due_after_the_last_task(table, batches, leases, other):
    batch = divided(table, batches, leases)
    first, second = leases.take(), other.take()
    leases.save(first, [result(0), result(1, succeeded=False)])
    leases.complete(first)
    shown = batches.get("", batch.id)
    assert (shown.status, shown.request_counts.model_dump()) == ("in_progress", {"total": 4, "completed": 1, "failed": 1})
    other.complete(second)
    assert batches.get("", batch.id).status == "finalizing"
    finish = leases.take()
    assert (finish.kind, finish.ending) == ("finish", "completed")
    leases.finish(finish, Outcome("file-1", None, 3, 1, None))
    shown = batches.get("", batch.id)
    assert (shown.status, shown.output_file_id, shown.completed_at) == ("completed", "file-1", 1000)
    assert shown.request_counts.model_dump() == {"total": 4, "completed": 3, "failed": 1}
    with table.database.transaction() as connection:
        assert connection.execute(select(results)).all() == []


@pytest.mark.skipif("TEST_POSTGRES" in os.environ, reason="of SQLite's files")
def test_what_is_forgotten_is_in_no_file(table, batches, leases, tmp_path):
    divided(table, batches, leases, parts=1)
    task = leases.take()
    leases.save(task, [Result(0, True, "a secret answer")])
    table.database.close()
    assert any(b"a secret answer" in path.read_bytes() for path in tmp_path.iterdir())
    leases.complete(task)
    leases.finish(leases.take(), Outcome(None, None, 1, 0, None))
    table.database.close()
    assert not any(b"a secret answer" in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.skipif("TEST_POSTGRES" in os.environ, reason="of SQLite's files")
def test_a_committed_line_is_on_the_disk(table, batches, leases, tmp_path):
    """Every connection asks SQLite to wait for the disk, and other processes see a line as soon as it is committed."""
    with table.database.transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    divided(table, batches, leases)
    leases.save(leases.take(), [result(0)])
    assert sqlite3.connect(tmp_path / "jobs.db").execute("SELECT n FROM results").fetchall() == [(0,)]


def test_a_line_is_never_there_twice(table, batches, leases):
    divided(table, batches, leases)
    task = leases.take()
    leases.save(task, [result(0)])
    with pytest.raises(Exception, match="UNIQUE|unique"):
        leases.save(task, [result(0)])
    assert len(list(leases.results(task.batch))) == 1


def test_a_released_task_waits_for_its_pause(table, batches, leases):
    new_batch(table, batches)
    leases.release(leases.take(), 5.0)
    assert leases.take() is None
    table.time += 5
    assert leases.take().attempts == 1  # to give a task back is no failure


def test_deaths_without_progress_are_counted(table, batches, leases):
    divided(table, batches, leases, parts=1)
    for attempts in (1, 2, 3):
        task = leases.take()
        assert task.attempts == attempts
        table.time += LEASE_S + 1
    leases.save(task, [result(0)])
    table.time += LEASE_S + 1
    assert leases.take().attempts == 1


def test_a_wrong_file_fails_its_batch(table, batches, leases):
    batch = new_batch(table, batches)
    leases.fail(leases.take(), [BatchProblem(code="empty_file", message="no lines")])
    shown = batches.get("", batch.id)
    assert (shown.status, shown.failed_at, shown.errors.data[0].code) == ("failed", 1000, "empty_file")
    assert leases.take() is None


def test_tasks_of_a_later_batch_are_taken_beside_those_of_a_long_one(table, batches, leases):
    long = divided(table, batches, leases, parts=5)
    table.time += 90
    short = new_batch(table, batches)
    assert [leases.take().batch for _ in range(4)] == [long.id, long.id, short.id, long.id]


def sweeper(table, leases, woken=None):
    return Sweeper(table.database, leases, (woken if woken is not None else []).append)


def test_an_expired_batch_is_closed_with_what_it_has(table, batches, leases):
    batch = divided(table, batches, leases)
    task = leases.take()
    leases.save(task, [result(0)])
    table.time += 24 * 3600 - 1
    sweeper(table, leases).sweep()
    assert batches.get("", batch.id).status == "in_progress"
    table.time += 2
    sweeper(table, leases).sweep()
    assert batches.get("", batch.id).status == "finalizing"
    finish = leases.take()
    assert (finish.kind, finish.ending) == ("finish", "expired")
    with pytest.raises(LeaseLost):
        leases.save(task, [result(1)])
    leases.finish(finish, Outcome("file-1", "file-2", 1, 3, None))
    assert batches.get("", batch.id).expired_at == 1000 + 24 * 3600 + 1


def test_a_cancelled_batch_waits_for_the_workers_that_are_at_it(table, batches, leases):
    batch = divided(table, batches, leases)
    task = leases.take()
    assert batches.cancel("", batch.id).status == "cancelling"
    assert leases.beat(task) is False  # tells the worker
    sweeper(table, leases).sweep()
    assert leases.take() is None  # nobody takes the other task any more, and the files are not made yet
    leases.complete(task)
    finish = leases.take()
    assert (finish.kind, finish.ending) == ("finish", "cancelled")
    leases.finish(finish, Outcome(None, "file-2", 0, 4, None))
    shown = batches.get("", batch.id)
    assert (shown.status, shown.cancelling_at, shown.cancelled_at, shown.finalizing_at) == ("cancelled", 1000, 1000, None)


def test_a_cancelled_batch_whose_worker_died_is_closed_after_the_lease(table, batches, leases):
    batch = divided(table, batches, leases)
    leases.take()
    batches.cancel("", batch.id)
    sweeper(table, leases).sweep()
    assert leases.take() is None
    table.time += LEASE_S + 1
    sweeper(table, leases).sweep()
    assert leases.take().kind == "finish"


def test_a_batch_that_is_cancelled_while_it_is_checked_has_no_tasks(table, batches, leases):
    batch = new_batch(table, batches)
    task = leases.take()
    batches.cancel("", batch.id)
    leases.divide(task, [Part(0, 2, 0, 1)], None)
    sweeper(table, leases).sweep()
    assert leases.take().kind == "finish" and batches.get("", batch.id).request_counts.total == 0


def test_idle_workers_are_woken_while_tasks_are_due(table, batches, leases):
    woken = []
    sweeper(table, leases, woken).sweep()
    divided(table, batches, leases, parts=3)
    sweeper(table, leases, woken).sweep()
    leases.take()
    sweeper(table, leases, woken).sweep()
    assert woken == [3, 2]


def test_one_worker_at_a_time_sweeps(table, leases, other):
    assert leases.hold_turn("sweep", 5) and leases.hold_turn("sweep", 5) and not other.hold_turn("sweep", 5)
    table.time += 6
    assert other.hold_turn("sweep", 5) and not leases.hold_turn("sweep", 5)


@pytest.mark.skipif("TEST_POSTGRES" in os.environ, reason="of SQLite's files")
def test_the_table_is_its_owners_alone(table, tmp_path):
    assert {path.stat().st_mode & 0o777 for path in Path(tmp_path).glob("jobs.db*")} == {0o600}


@pytest.mark.skipif("TEST_POSTGRES" in os.environ, reason="of SQLite's files")
def test_opening_the_table_again_drops_no_lock_of_this_process(table, tmp_path):
    """SQLite would let another process write, or delete the log, under a transaction that is still open."""
    with table.database.transaction():
        make_file(tmp_path / "jobs.db")
        code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0.1).execute('BEGIN IMMEDIATE')"
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "jobs.db")], capture_output=True, text=True)
    assert "database is locked" in done.stderr
