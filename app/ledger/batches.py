"""Batches as their owners see them: made, shown, listed, cancelled. What the workers do to them is in `jobs`."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import Connection, Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from app.errors import Conflict, NotFound, RateLimited
from app.ledger.database import Database
from app.ledger.inputs import check_input
from app.ledger.listing import Page, page_of
from app.ledger.tables import batches, tasks
from app.ledger.totals import Totals
from app.schemas.batches import ENDED, Batch, BatchCounts, BatchList, BatchProblems, BatchRequest, BatchUsage

WINDOW_S = 24 * 3600.0
CHECK, LINES, FINISH = "check", "lines", "finish"
STATUS_TIMES = ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at")


class Batches:
    def __init__(self, database: Database, max_unfinished: int) -> None:
        self._database = database
        self._max_unfinished = max_unfinished

    def create(self, owner: str, body: BatchRequest, key: str | None) -> Batch:
        """The same batch again where `key` was sent before with the same body. Raises `InvalidRequest`, `Conflict`, `RateLimited`."""
        digest = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
        try:
            with self._database.transaction() as connection:
                self._database.hold(connection, f"batches of {owner}")
                made = _made_before(connection, owner, key, digest) or self._insert(connection, owner, body, key, digest)
                return _shown(connection, made)
        except IntegrityError:  # the same key at the same time
            with self._database.transaction() as connection:
                return _shown(connection, cast(Row, _made_before(connection, owner, key, digest)))

    def get(self, owner: str, id: str) -> Batch:
        """Raises `NotFound`."""
        with self._database.transaction() as connection:
            return _shown(connection, _find(connection, owner, id))

    def listed(self, owner: str, page: Page) -> BatchList:
        with self._database.transaction() as connection:
            rows, has_more = page_of(connection, batches, [batches.c.owner == owner], page, "batch")
            counts = _counts(connection, [row.id for row in rows if row.status not in ENDED])
        data = [object_of(row, counts) for row in rows]
        return BatchList(data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=has_more)

    def cancel(self, owner: str, id: str) -> Batch:
        """Also on a full disk. Raises `NotFound`, and `Conflict` for a batch that has ended or is about to."""
        return self._database.even_if_full(lambda: self._cancel(owner, id))

    def _cancel(self, owner: str, id: str) -> Batch:
        now = self._database.now()
        with self._database.transaction() as connection:
            row = _find(connection, owner, id, lock=True)
            if row.status in {"validating", "in_progress"}:
                new = {"status": "cancelling", "ending": "cancelled", "cancelling_at": now}
                connection.execute(update(batches).where(batches.c.id == id).values(**new))
            elif row.status not in {"cancelling", "cancelled"}:
                raise Conflict(f"batch '{id}' is {row.status}: only one that is validating or in progress can be cancelled")
            return _shown(connection, _find(connection, owner, id))

    def any_unfinished(self) -> bool:
        with self._database.transaction() as connection:
            return connection.execute(select(batches.c.id).where(batches.c.status.not_in(ENDED)).limit(1)).first() is not None

    def totals(self) -> Totals:
        """Of all owners."""
        with self._database.transaction() as connection:
            statuses = connection.execute(select(batches.c.status, func.count()).group_by(batches.c.status)).tuples().all()
            unfinished = [row.id for row in connection.execute(select(batches.c.id).where(batches.c.status.not_in(ENDED)))]
            lines = connection.execute(select(func.sum(batches.c.total)).where(batches.c.id.in_(unfinished))).scalar_one() or 0
            done = _counts(connection, unfinished).values()
        completed, failed = (sum(getattr(row, name) for row in done) for name in ("completed", "failed"))
        return Totals(dict(statuses), lines - completed - failed, completed, failed)

    def _insert(self, connection: Connection, owner: str, body: BatchRequest, key: str | None, digest: str) -> Row:
        now, id = self._database.now(), f"batch_{uuid.uuid4().hex}"
        check_input(connection, owner, "input_file_id", body.input_file_id, "batch", now)
        self._check_count(connection, owner)
        connection.execute(
            insert(batches).values(
                id=id,
                owner=owner,
                created=now,
                expires=now + WINDOW_S,
                endpoint=body.endpoint,
                input_file=body.input_file_id,
                status="validating",
                pairs=None if body.metadata is None else json.dumps(body.metadata),
                output_s=None if body.output_expires_after is None else body.output_expires_after.seconds,
                key=key,
                digest=digest if key else None,
            )
        )
        connection.execute(insert(tasks).values(batch=id, kind=CHECK, n=0, rank=now, due=now))
        return _find(connection, owner, id)

    def _check_count(self, connection: Connection, owner: str) -> None:
        unfinished = (batches.c.owner == owner) & batches.c.status.not_in(ENDED)
        count = connection.execute(select(func.count()).select_from(batches).where(unfinished)).scalar_one()
        if count >= self._max_unfinished:
            raise RateLimited(f"{count} batches of this key have not ended, as many as may (jobs.max_batches); wait for one, or cancel it")


def _made_before(connection: Connection, owner: str, key: str | None, digest: str) -> Row | None:
    if key is None:
        return None
    row = connection.execute(select(batches).where(batches.c.owner == owner, batches.c.key == key)).one_or_none()
    if row is not None and row.digest != digest:
        raise Conflict(f"this Idempotency-Key made {row.id} from another body; send a new key", param="Idempotency-Key")
    return row


def _find(connection: Connection, owner: str, id: str, lock: bool = False) -> Row:
    query = select(batches).where(batches.c.id == id, batches.c.owner == owner)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound(f"there is no batch '{id[:64]}' of this key", param="batch_id", code="batch_not_found")
    return row


def _counts(connection: Connection, ids: list[str]) -> Mapping[str, Row]:
    """Lines completed and failed so far, by batch."""
    sums = [func.sum(tasks.c.completed).label("completed"), func.sum(tasks.c.failed).label("failed")]
    rows = connection.execute(select(tasks.c.batch, *sums).where(tasks.c.batch.in_(ids)).group_by(tasks.c.batch))
    return {row.batch: row for row in rows}


def _shown(connection: Connection, row: Row) -> Batch:
    return object_of(row, _counts(connection, [row.id]))


def object_of(row: Row, counts: Mapping[str, Row]) -> Batch:
    counted = counts.get(row.id, row)
    times: dict[str, Any] = {name: None if getattr(row, name) is None else int(getattr(row, name)) for name in STATUS_TIMES}
    return Batch(
        id=row.id,
        endpoint=row.endpoint,
        model=row.model,
        errors=None if row.problems is None else BatchProblems.model_validate_json(row.problems),
        input_file_id=row.input_file,
        completion_window="24h",
        status=row.status,
        output_file_id=row.output_file,
        error_file_id=row.error_file,
        created_at=int(row.created),
        expires_at=int(row.expires),
        request_counts=BatchCounts(total=row.total, completed=counted.completed, failed=counted.failed),
        usage=None if row.usage is None else BatchUsage.model_validate_json(row.usage),
        metadata=None if row.pairs is None else json.loads(row.pairs),
        **times,
    )
