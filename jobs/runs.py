"""Fine-tuning jobs in the table: taken for a while, told of, ended. The lease and the fence are those of every task (`jobs.leases`)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from app.ledger.database import Database
from app.ledger.recipe import KEPT, Recipe
from app.ledger.tables import checkpoints, tasks, tuning_events, tunings
from app.ledger.tunings import EXAMINE, TUNE, note
from app.schemas.tuning import Hyperparameters, JobError
from jobs import policy
from jobs.leases import LeaseLost, Leases, is_of

Message = dict[str, Any]  # of a process that trains: `kind` and values


@dataclass(frozen=True, slots=True)
class Claim:
    """A task of a fine-tuning job that this worker took."""

    batch: str  # the job's id; tasks of every kind name what they belong to so
    kind: str
    n: int
    fence: int
    attempts: int
    owner: str
    recipe: Recipe
    training_file: str
    validation_file: str | None


class Runs:
    """As one worker sees them. Every method is one transaction. Those that write raise `LeaseLost`, also where the job was cancelled or
    paused.
    """

    def __init__(self, database: Database, leases: Leases) -> None:
        self._database, self._leases = database, leases

    @property
    def lease_s(self) -> float:
        return self._leases.lease_s

    def take(self, kind: str) -> Claim | None:
        """The first task of this kind that is due."""
        now = self._database.now()
        query = (
            select(tasks, *_JOB).join(tunings, tunings.c.id == tasks.c.batch).where(tasks.c.kind == kind, policy.is_due(tasks.c.due, now))
        )
        with self._database.transaction() as connection:
            query = query.order_by(tasks.c.rank).limit(1).with_for_update(of=tasks, skip_locked=True)
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            taken = {"due": policy.lease_end(now, self.lease_s), "fence": row.fence + 1, "attempts": row.attempts + 1}
            connection.execute(update(tasks).where(*is_of(row)).values(worker=self._leases.worker, **taken))
        return Claim(
            *(row.batch, row.kind, row.n, row.fence + 1, row.attempts + 1, row.owner),
            *(Recipe.model_validate_json(row.recipe), row.training_file, row.validation_file),
        )

    def begin(self, claim: Claim) -> None:
        """The job runs from now on, and there is room to say how it ends."""
        self._database.keep_reserve()
        self._set(claim, {"status": "running"}, "Fine-tuning job started" if claim.fence == 1 else "Fine-tuning job goes on")

    def keep_reserve(self) -> None:
        self._database.keep_reserve()

    def last_step(self, claim: Claim) -> int | None:
        """The last one that was told."""
        query = select(func.max(tuning_events.c.step)).where(tuning_events.c.tuning == claim.batch)
        with self._database.transaction() as connection:
            step: int | None = connection.execute(query).scalar()
        return step

    def beat(self, claim: Claim) -> None:
        with self._database.transaction() as connection:
            self._leases.write(connection, claim)

    def tell(self, claim: Claim, messages: Sequence[Message]) -> None:
        """Commit what a process has told, and renew the lease. Progress is what was saved: other steps may be lost and done again."""
        with self._database.transaction() as connection:
            _lock(connection, claim)
            is_progress = any(message["kind"] in {"saved", "checkpoint"} for message in messages)
            self._leases.write(connection, claim, **({"attempts": 0} if is_progress else {}))
            for message in messages:
                self._note(connection, claim, message)

    def _note(self, connection: Connection, claim: Claim, message: Message) -> None:
        kind, now = message["kind"], self._database.now()
        if kind == "metrics":
            data = message["data"]
            note(connection, claim.batch, now, message["message"], kind="metrics", data=data, step=data["step"])
            _change(connection, claim, {"done_by": now + message["eta_s"]})
        elif kind == "event":
            data = message.get("data")
            note(connection, claim.batch, now, message["message"], level=message["level"], data=data, step=(data or {}).get("step"))
        elif kind == "checkpoint":
            self._keep(connection, claim, message, now)
        elif kind == "resumed":  # what was told after the state was saved is told again
            again = (tuning_events.c.tuning == claim.batch) & (tuning_events.c.step > message["told"])
            connection.execute(delete(tuning_events).where(again))

    def _keep(self, connection: Connection, claim: Claim, message: Message, now: float) -> None:
        step, own = message["step"], checkpoints.c.tuning == claim.batch
        connection.execute(delete(checkpoints).where(own, checkpoints.c.step >= step))
        values = {"tuning": claim.batch, "created": now, "step": step, "name": f"{claim.recipe.name}:ckpt-step-{step}"}
        numbers = {name: value for name, value in message["metrics"].items() if name != "total_steps"}
        id = f"ftckpt_{claim.batch.removeprefix('ftjob-')[:16]}-{step:09}"
        connection.execute(insert(checkpoints).values(id=id, metrics=json.dumps(numbers), **values))
        old = list(connection.execute(select(checkpoints.c.id).where(own).order_by(checkpoints.c.step.desc()).offset(KEPT)).scalars())
        connection.execute(delete(checkpoints).where(checkpoints.c.id.in_(old)))

    def examined(self, claim: Claim, used: Hyperparameters) -> None:
        """The files are right: the job waits for its turn."""
        now = self._database.now()
        with self._database.transaction() as connection:
            row = _lock(connection, claim)
            self._leases.write(connection, claim)
            connection.execute(delete(tasks).where(*is_of(claim)))
            connection.execute(insert(tasks).values(batch=claim.batch, kind=TUNE, n=0, rank=row.created, due=now))
            _change(connection, claim, {"status": "queued", "used": used.model_dump_json()})
            note(connection, claim.batch, now, "Files validated, moving job to queued state")

    def fail(self, claim: Claim, error: JobError) -> None:
        """Also on a full disk."""
        new = {"status": "failed", "problem": error.model_dump_json(), "finished": self._database.now(), "done_by": None}
        message = f"The job failed: {error.message}"
        self._database.even_if_full(lambda: self._set(claim, new, message, level="error", ends=True))

    def succeed(self, claim: Claim, results: str, trained_tokens: int) -> None:
        new = {
            "status": "succeeded",
            "results": results,
            "trained_tokens": trained_tokens,
            "finished": self._database.now(),
            "done_by": None,
        }
        self._set(claim, new, f"The job has successfully completed: {claim.recipe.name}", ends=True)

    def release(self, claim: Claim, pause_s: float = 0.0, failed: bool = False) -> None:
        """Give the task back, to be taken after a pause. `failed`: it counts as an attempt."""
        with self._database.transaction() as connection:
            _lock(connection, claim)
            attempts = {} if failed else {"attempts": 0}
            self._leases.write(connection, claim, due=self._database.now() + pause_s, **attempts)
            if claim.kind == TUNE:
                _change(connection, claim, {"status": "queued", "done_by": None})

    def is_wanted(self, id: str) -> bool:
        """Whether somebody may go on with a job: it has not ended."""
        with self._database.transaction() as connection:
            return (
                connection.execute(select(tasks.c.batch).where(tasks.c.batch == id, tasks.c.kind.in_((EXAMINE, TUNE)))).first() is not None
            )

    def _set(self, claim: Claim, new: dict[str, Any], message: str, level: str = "info", ends: bool = False) -> None:
        with self._database.transaction() as connection:
            _lock(connection, claim)
            self._leases.write(connection, claim)
            _change(connection, claim, new)
            note(connection, claim.batch, self._database.now(), message, level=level)
            if ends:
                connection.execute(delete(tasks).where(tasks.c.batch == claim.batch))


_JOB = (tunings.c.owner, tunings.c.recipe, tunings.c.training_file, tunings.c.validation_file)


def _change(connection: Connection, claim: Claim, new: dict[str, Any]) -> None:
    connection.execute(update(tunings).where(tunings.c.id == claim.batch).values(**new))


def _lock(connection: Connection, claim: Claim) -> Row:
    """The row of a job, which no other transaction changes until this one ends; always before its task's. Raises `LeaseLost`."""
    row = connection.execute(select(tunings).where(tunings.c.id == claim.batch).with_for_update()).one_or_none()
    if row is None:
        raise LeaseLost
    return row
