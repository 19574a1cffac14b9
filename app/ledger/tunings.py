"""Fine-tuning jobs as their owners see them: made, shown, listed, cancelled, paused. What the workers do to them is in `jobs`."""

import json
import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from app.errors import Conflict, NotFound, RateLimited
from app.ledger.database import Database
from app.ledger.inputs import check_input
from app.ledger.listing import Page, page_of
from app.ledger.recipe import Recipe
from app.ledger.tables import NEVER, checkpoints, tasks, tuning_events, tunings
from app.schemas.tuning import (
    ENDED,
    Checkpoint,
    CheckpointList,
    Hyperparameters,
    Job,
    JobError,
    JobEvent,
    JobEventList,
    JobList,
    JobRequest,
    Method,
    Supervised,
)

EXAMINE, TUNE = "examine", "tune"
WAITING = ("validating_files", "queued", "running")  # for a worker, or with one
SHORT = 8  # characters of a job's id in the name of its model


@dataclass(frozen=True, slots=True)
class Tuned:
    """A model that a job has made."""

    id: str
    name: str
    model: str
    removed: bool = False


class Tunings:
    def __init__(self, database: Database, max_unfinished: int) -> None:
        self._database = database
        self._max_unfinished = max_unfinished

    def create(self, owner: str, body: JobRequest, recipe: Recipe) -> Job:
        """`recipe` has no name yet. Raises `InvalidRequest`, `RateLimited`."""
        now, id = self._database.now(), f"ftjob-{uuid.uuid4().hex}"
        named = recipe.model_copy(update={"name": name_of(recipe.model, body.suffix, id)})
        with self._database.transaction() as connection:
            check_input(connection, owner, "training_file", body.training_file, "fine-tune", now)
            if body.validation_file is not None:
                check_input(connection, owner, "validation_file", body.validation_file, "fine-tune", now)
            self._database.hold(connection, f"fine-tuning jobs of {owner}")
            self._check_count(connection, owner)
            connection.execute(
                insert(tunings).values(
                    id=id,
                    owner=owner,
                    created=now,
                    recipe=named.model_dump_json(),
                    training_file=body.training_file,
                    validation_file=body.validation_file,
                    status="validating_files",
                    pairs=None if body.metadata is None else json.dumps(body.metadata),
                )
            )
            connection.execute(insert(tasks).values(batch=id, kind=EXAMINE, n=0, rank=now, due=now))
            note(connection, id, now, f"Created fine-tuning job: {id}")
            note(connection, id, now, f"Validating training file: {body.training_file}")
            return object_of(_find(connection, owner, id))

    def get(self, owner: str, id: str) -> Job:
        """Raises `NotFound`."""
        with self._database.transaction() as connection:
            return object_of(_find(connection, owner, id))

    def listed(self, owner: str, page: Page, pairs: dict[str, str] | None = None) -> JobList:
        conditions = [tunings.c.owner == owner, *(_has_pair(key, value) for key, value in (pairs or {}).items())]
        with self._database.transaction() as connection:
            rows, has_more = page_of(connection, tunings, conditions, page, "fine-tuning job")
        return JobList(data=[object_of(row) for row in rows], has_more=has_more)

    def cancel(self, owner: str, id: str) -> Job:
        """At once, also on a full disk: whoever works on it notices, and ends. Raises `NotFound`, `Conflict`."""
        return self._database.even_if_full(lambda: self._cancel(owner, id))

    def _cancel(self, owner: str, id: str) -> Job:
        now = self._database.now()
        with self._database.transaction() as connection:
            row = _find(connection, owner, id, lock=True)
            if row.status in ENDED and row.status != "cancelled":
                raise Conflict(f"job '{id}' has {row.status}: only one that has not ended can be cancelled")
            if row.status != "cancelled":
                connection.execute(delete(tasks).where(tasks.c.batch == id))
                connection.execute(update(tunings).where(tunings.c.id == id).values(status="cancelled", finished=now, done_by=None))
                note(connection, id, now, "The job was cancelled")
            return object_of(_find(connection, owner, id))

    def pause(self, owner: str, id: str) -> Job:
        """It keeps its place and what it has learnt. Raises `NotFound`, `Conflict`."""
        return self._move(owner, id, ("queued", "running"), "paused", NEVER, "The job was paused")

    def resume(self, owner: str, id: str) -> Job:
        """Raises `NotFound`, `Conflict`."""
        return self._move(owner, id, ("paused",), "queued", self._database.now(), "The job was resumed")

    def _move(self, owner: str, id: str, of: tuple[str, ...], to: str, due: float, said: str) -> Job:
        with self._database.transaction() as connection:
            row = _find(connection, owner, id, lock=True)
            if row.status not in of:
                raise Conflict(f"job '{id}' is {row.status.replace('_', ' ')}; it would have to be {' or '.join(of)} for that")
            fence = tasks.c.fence + (row.status == "running")  # who trains it has lost it, however soon it is resumed
            connection.execute(update(tasks).where(tasks.c.batch == id, tasks.c.kind == TUNE).values(due=due, attempts=0, fence=fence))
            connection.execute(update(tunings).where(tunings.c.id == id).values(status=to, done_by=None))
            note(connection, id, self._database.now(), said)
            return object_of(_find(connection, owner, id))

    def events(self, owner: str, id: str, page: Page) -> JobEventList:
        with self._database.transaction() as connection:
            _find(connection, owner, id)
            rows, has_more = page_of(connection, tuning_events, [tuning_events.c.tuning == id], page, "event")
        return JobEventList(data=[_event_of(row) for row in rows], has_more=has_more)

    def checkpoints(self, owner: str, id: str, page: Page) -> CheckpointList:
        with self._database.transaction() as connection:
            _find(connection, owner, id)
            rows, has_more = page_of(connection, checkpoints, [checkpoints.c.tuning == id], page, "checkpoint")
        data = [_checkpoint_of(row) for row in rows]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return CheckpointList(data=data, first_id=first, last_id=last, has_more=has_more)

    def tuned(self, id: str) -> Tuned:
        """What a worker made that asks for it to be served. Raises `NotFound`."""
        with self._database.transaction() as connection:
            row = connection.execute(select(tunings).where(tunings.c.id == id, tunings.c.status == "running")).one_or_none()
        if row is None:
            raise NotFound(f"there is no running job '{id[:64]}'", code="job_not_found")
        recipe = Recipe.model_validate_json(row.recipe)
        return Tuned(id, recipe.name, recipe.model)

    def model(self, owner: str, name: str) -> Tuned:
        """The model of a job that has succeeded, also one that was removed. Raises `NotFound`."""
        with self._database.transaction() as connection:
            query = select(tunings).where(tunings.c.owner == owner, tunings.c.status == "succeeded")
            for row in connection.execute(query.where(tunings.c.recipe.contains(name, autoescape=True))).all():
                recipe = Recipe.model_validate_json(row.recipe)
                if recipe.name == name:
                    return Tuned(row.id, name, recipe.model, row.removed)
        raise no_model(name)

    def remove_model(self, id: str) -> None:
        """Forget the model of a job."""
        with self._database.transaction() as connection:
            connection.execute(update(tunings).where(tunings.c.id == id).values(removed=True))
            connection.execute(delete(checkpoints).where(checkpoints.c.tuning == id))

    def any_unfinished(self) -> bool:
        with self._database.transaction() as connection:
            return connection.execute(select(tunings.c.id).where(tunings.c.status.in_(WAITING)).limit(1)).first() is not None

    def unwanted(self, ids: list[str]) -> list[str]:
        """Of the folders of runs, those that nobody will open again."""
        wanted = tunings.c.status.in_((*WAITING, "paused")) | ((tunings.c.status == "succeeded") & tunings.c.removed.is_(False))
        with self._database.transaction() as connection:
            kept = set(connection.execute(select(tunings.c.id).where(wanted)).scalars())
        return [id for id in ids if id not in kept]

    def _check_count(self, connection: Connection, owner: str) -> None:
        unfinished = (tunings.c.owner == owner) & tunings.c.status.not_in(ENDED)
        count = connection.execute(select(func.count()).select_from(tunings).where(unfinished)).scalar_one()
        if count >= self._max_unfinished:
            raise RateLimited(
                f"{count} fine-tuning jobs of this key have not ended, as many as may (jobs.max_tunings); wait for one, or cancel it"
            )


def no_model(name: str) -> NotFound:
    return NotFound(f"there is no fine-tuned model '{name[:128]}' of this key", param="model", code="model_not_found")


def name_of(model: str, suffix: str | None, id: str) -> str:
    return f"ft:{model}:{suffix or ''}:{id.removeprefix('ftjob-')[:SHORT]}"


def note(connection: Connection, id: str, now: float, message: str, **more: Any) -> None:
    """An event. `more`: level, kind, data, step. What no table takes of the message is replaced: halves of characters, and NUL."""
    message = message.encode("utf-8", "replace").decode().replace("\0", "?")
    last = connection.execute(select(func.max(tuning_events.c.id)).where(tuning_events.c.tuning == id)).scalar()
    number = 0 if last is None else int(last.rsplit("-", 1)[1]) + 1
    data = more.pop("data", None)
    values = {"level": "info", "kind": "message", **more, "data": None if data is None else json.dumps(data)}
    event = f"ftevent-{id.removeprefix('ftjob-')[:16]}-{number:09}"
    connection.execute(insert(tuning_events).values(id=event, tuning=id, created=now, message=message, **values))


def unfinished_inputs() -> Any:
    """Ids of the files that jobs which have not ended read."""
    waiting = tunings.c.status.not_in(ENDED)
    training = select(tunings.c.training_file.label("file")).where(waiting)
    return training.union_all(select(tunings.c.validation_file.label("file")).where(waiting, tunings.c.validation_file.is_not(None)))


def _find(connection: Connection, owner: str, id: str, lock: bool = False) -> Row:
    query = select(tunings).where(tunings.c.id == id, tunings.c.owner == owner)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound(f"there is no fine-tuning job '{id[:64]}' of this key", param="fine_tuning_job_id", code="job_not_found")
    return row


def _has_pair(key: str, value: str) -> Any:
    """Whether the metadata has a pair, which JSON writes in one way."""
    pair = json.dumps({key: value})[1:-1]
    return func.replace(tunings.c.pairs, pair, "") != tunings.c.pairs  # not LIKE: SQLite's takes capitals and small letters for the same


def object_of(row: Row) -> Job:
    recipe = Recipe.model_validate_json(row.recipe)
    used = recipe.hyperparameters if row.used is None else Hyperparameters.model_validate_json(row.used)
    return Job(
        id=row.id,
        created_at=int(row.created),
        finished_at=None if row.finished is None else int(row.finished),
        estimated_finish=None if row.done_by is None else int(row.done_by),
        model=recipe.model,
        fine_tuned_model=recipe.name if row.status == "succeeded" else None,
        status=row.status,
        error=None if row.problem is None else JobError.model_validate_json(row.problem),
        hyperparameters=used,
        method=Method(type="supervised", supervised=Supervised(hyperparameters=used)),
        training_file=row.training_file,
        validation_file=row.validation_file,
        result_files=[] if row.results is None else [row.results],
        trained_tokens=row.trained_tokens,
        seed=recipe.seed,
        metadata=None if row.pairs is None else json.loads(row.pairs),
    )


def _event_of(row: Row) -> JobEvent:
    return JobEvent(
        id=row.id,
        created_at=int(row.created),
        level=row.level,
        message=row.message,
        type=row.kind,
        data=None if row.data is None else json.loads(row.data),
    )


def _checkpoint_of(row: Row) -> Checkpoint:
    return Checkpoint(
        id=row.id,
        created_at=int(row.created),
        fine_tuning_job_id=row.tuning,
        fine_tuned_model_checkpoint=row.name,
        step_number=row.step,
        metrics=json.loads(row.metrics),
    )
