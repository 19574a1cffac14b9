"""Tasks in the table: taken for a while, renewed, written to, completed. Only the last who took a task may write to it (the fence)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from app.ledger.batches import CHECK, FINISH, LINES
from app.ledger.database import Database
from app.ledger.tables import NEVER, batches, results, tasks, turns
from app.schemas.batches import BatchProblem, BatchProblems, BatchUsage
from jobs import policy

WANTED = {CHECK: {"validating"}, LINES: {"in_progress"}, FINISH: {"finalizing", "cancelling"}}  # status of the batch, by kind of task


class LeaseLost(Exception):
    """Another worker has the task, or the batch has ended: whatever this one has for it is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task that this worker took, and what its batch says."""

    batch: str
    kind: str
    n: int
    fence: int
    attempts: int
    part: policy.Part
    owner: str
    endpoint: str
    input_file: str
    status: str
    ending: str | None
    output_s: int | None


@dataclass(frozen=True, slots=True)
class Result:
    n: int  # number of the line in the file, from 0
    succeeded: bool
    line: str  # of the output or error file


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the finished files are, and what is in them."""

    output_file: str | None
    error_file: str | None
    completed: int
    failed: int
    usage: BatchUsage | None


class Leases:
    """All tasks, as one worker sees them. Every method is one transaction. Those that write raise `LeaseLost`."""

    def __init__(self, database: Database, worker: str, lease_s: float) -> None:
        self._database = database
        self.worker = worker
        self.lease_s = lease_s

    def take(self) -> Task | None:
        """The first of the tasks that are due."""
        now = self._database.now()
        query = select(tasks, *_BATCH).join(batches, batches.c.id == tasks.c.batch).where(policy.is_due(tasks.c.due, now))
        with self._database.transaction() as connection:
            query = query.order_by(tasks.c.rank).limit(1).with_for_update(of=tasks, skip_locked=True)
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            taken = {"due": policy.lease_end(now, self.lease_s), "worker": self.worker}
            counted = {"fence": row.fence + 1, "attempts": row.attempts + 1}
            connection.execute(update(tasks).where(*is_of(row)).values(**taken, **counted))
        return _task_of(row)

    def beat(self, task: Task) -> bool:
        """Renew the lease. False: the batch was cancelled or has expired, so that the task should end."""
        with self._database.transaction() as connection:
            self.write(connection, task)
            status = connection.execute(select(batches.c.status).where(batches.c.id == task.batch)).scalar_one()
        return status in WANTED[task.kind]

    def save(self, task: Task, finished: Sequence[Result]) -> None:
        """Commit lines, and renew the lease."""
        completed = sum(result.succeeded for result in finished)
        counts = {"completed": tasks.c.completed + completed, "failed": tasks.c.failed + len(finished) - completed}
        with self._database.transaction() as connection:
            self.write(connection, task, attempts=0, **counts)
            rows = [{"batch": task.batch, "n": result.n, "succeeded": result.succeeded, "line": result.line} for result in finished]
            if self._database.is_sqlite:
                connection.execute(insert(results), rows)
            else:  # one statement, as each is a way over the network and back
                connection.execute(insert(results).values(rows))

    def saved_lines(self, task: Task) -> set[int]:
        """Lines of the task that an earlier worker has committed."""
        first, end = task.part.first_line, task.part.first_line + task.part.lines
        query = select(results.c.n).where(results.c.batch == task.batch, results.c.n >= first, results.c.n < end)
        with self._database.transaction() as connection:
            return set(connection.execute(query).scalars())

    def release(self, task: Task, pause_s: float = 0.0, failed: bool = False) -> None:
        """Give the task back, to be taken after a pause. `failed`: it counts as an attempt."""
        attempts = {} if failed else {"attempts": 0}
        with self._database.transaction() as connection:
            self.write(connection, task, due=self._database.now() + pause_s, **attempts)

    def complete(self, task: Task) -> None:
        """The task is done, with or without all of its lines. After the last one of a batch its files are due."""
        with self._database.transaction() as connection:
            batch = _lock(connection, task.batch)
            self.write(connection, task, due=NEVER)
            advance(connection, batch, self._database.now())

    def divide(self, task: Task, parts: Sequence[policy.Part], model: str | None) -> None:
        """The input is right: its lines become tasks."""
        now, total = self._database.now(), sum(part.lines for part in parts)
        with self._database.transaction() as connection:
            batch = _lock(connection, task.batch)
            self.write(connection, task, due=NEVER)
            if batch.status != "validating":
                return
            rows = [_row_of(task.batch, n, part, policy.rank(batch.created, n), now) for n, part in enumerate(parts)]
            connection.execute(insert(tasks), rows)
            new = {"status": "in_progress", "in_progress_at": now, "total": total, "model": model}
            connection.execute(update(batches).where(batches.c.id == task.batch).values(**new))

    def fail(self, task: Task, problems: Sequence[BatchProblem]) -> None:
        """The batch has failed as a whole."""
        now, said = self._database.now(), BatchProblems(data=list(problems)).model_dump_json()
        self._end(task, {"status": "failed", "failed_at": now, "problems": said})

    def finish(self, task: Task, outcome: Outcome) -> None:
        """The files are made. The lines are in them, so that the table forgets them."""
        ending, now = task.ending or "completed", self._database.now()
        new = {"status": ending, f"{ending}_at": now, "output_file": outcome.output_file, "error_file": outcome.error_file}
        usage = None if outcome.usage is None else outcome.usage.model_dump_json()
        self._end(task, {**new, "completed": outcome.completed, "failed": outcome.failed, "usage": usage})
        self._database.forget_deleted()

    def _end(self, task: Task, new: dict[str, Any]) -> None:
        with self._database.transaction() as connection:
            _lock(connection, task.batch)
            self.write(connection, task)
            connection.execute(update(batches).where(batches.c.id == task.batch).values(**new))
            connection.execute(delete(results).where(results.c.batch == task.batch))
            connection.execute(delete(tasks).where(tasks.c.batch == task.batch))

    def write(self, connection: Connection, task: Any, **values: Any) -> None:
        """Renew the lease, and set `values`."""
        due = policy.lease_end(self._database.now(), self.lease_s)
        guarded = update(tasks).where(*is_of(task), tasks.c.fence == task.fence, tasks.c.due < NEVER)
        if connection.execute(guarded.values(**{"due": due, **values})).rowcount != 1:
            raise LeaseLost

    def results(self, batch: str, page: int = 500) -> Iterator[Row]:
        """Every committed line in the order of the input."""
        last = -1
        while True:
            query = select(results).where(results.c.batch == batch, results.c.n > last).order_by(results.c.n).limit(page)
            with self._database.transaction() as connection:
                rows = connection.execute(query).all()
            yield from rows
            if len(rows) < page:
                return
            last = rows[-1].n

    def has_lines(self, batch: str) -> bool:
        """Whether the input of a batch was checked and found right."""
        with self._database.transaction() as connection:
            return connection.execute(select(tasks.c.n).where(tasks.c.batch == batch, tasks.c.kind == LINES).limit(1)).first() is not None

    def has_results(self, batch: str) -> bool:
        """Whether a line of the batch is committed."""
        with self._database.transaction() as connection:
            return connection.execute(select(results.c.n).where(results.c.batch == batch).limit(1)).first() is not None

    def hold_turn(self, name: str, seconds: float) -> bool:
        """Take or keep a turn that one worker at a time has."""
        now = self._database.now()
        with self._database.transaction() as connection:
            free = (turns.c.holder == self.worker) | (turns.c.until < now)
            query = update(turns).where(turns.c.name == name, free).values(holder=self.worker, until=now + seconds)
            if connection.execute(query).rowcount == 1:
                return True
            if connection.execute(select(turns.c.name).where(turns.c.name == name)).first() is not None:
                return False
            connection.execute(insert(turns).values(name=name, holder=self.worker, until=now + seconds))
        return True


_BATCH = (batches.c.owner, batches.c.endpoint, batches.c.input_file, batches.c.status, batches.c.ending, batches.c.output_s)


def is_of(row: Any) -> tuple[Any, ...]:
    return tasks.c.batch == row.batch, tasks.c.kind == row.kind, tasks.c.n == row.n


def _task_of(row: Row) -> Task:
    """As it is after it was taken."""
    part = policy.Part(row.first_line, row.lines, row.first_byte, row.bytes)
    named = {name: getattr(row, name) for name in ("batch", "kind", "n", "owner", "endpoint", "input_file", "status", "ending", "output_s")}
    return Task(fence=row.fence + 1, attempts=row.attempts + 1, part=part, **named)


def _row_of(batch: str, n: int, part: policy.Part, rank: float, now: float) -> dict[str, Any]:
    place = {"first_line": part.first_line, "lines": part.lines, "first_byte": part.first_byte, "bytes": part.bytes}
    return {"batch": batch, "kind": LINES, "n": n, "rank": rank, "due": now, **place}


def _lock(connection: Connection, batch: str) -> Row:
    """The row of a batch, which no other transaction changes until this one ends."""
    return connection.execute(select(batches).where(batches.c.id == batch).with_for_update()).one()


def advance(connection: Connection, batch: Row, now: float) -> None:
    """If the last task of a batch is done, its files are due. Wants the batch locked."""
    opened = select(func.count()).select_from(tasks).where(tasks.c.batch == batch.id, (tasks.c.due < NEVER) | (tasks.c.kind == FINISH))
    if batch.status not in {"in_progress", "finalizing", "cancelling"} or connection.execute(opened).scalar_one():
        return
    connection.execute(insert(tasks).values(batch=batch.id, kind=FINISH, n=0, rank=policy.rank(batch.created, 0), due=now))
    if batch.status == "in_progress":
        new = {"status": "finalizing", "finalizing_at": now, "ending": "completed"}
        connection.execute(update(batches).where(batches.c.id == batch.id).values(**new))
