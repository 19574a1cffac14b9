"""What is known of each file. The bytes are in `Folder`."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Row, delete, func, insert, select
from sqlalchemy.exc import DBAPIError

from app.errors import BodyTooLarge, Conflict, NotFound
from app.ledger.database import Database
from app.ledger.listing import Page, page_of
from app.ledger.room import is_full
from app.ledger.tables import batches, files
from app.ledger.tunings import unfinished_inputs
from app.schemas.batches import ENDED
from app.schemas.files import FileList, FileObject, Purpose

MAX_DELETED = 20_000  # files whose times are remembered: two of the longest pages


@dataclass(frozen=True, slots=True)
class NewFile:
    id: str
    owner: str
    bytes: int
    filename: str
    purpose: Purpose
    lasts_s: float
    most_bytes: int | None = None  # that all files of its owner may have
    made_for: str | None = None  # `batch_id/output`: a file that was made for the same before is replaced


class Files:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._deleted: dict[tuple[str, str], float] = {}  # when files were created that this process deleted, by owner and id

    def add(self, new: NewFile) -> tuple[FileObject, list[str]]:
        """The file, and the ids of those that it replaces. Raises `BodyTooLarge` where its owner would have too many bytes."""
        now = self._database.now()
        with self._database.transaction() as connection:
            if new.most_bytes is not None:
                self._check_room(connection, new.owner, new.bytes, new.most_bytes)
            made_for_same = files.c.made_for == new.made_for
            replaced = [] if new.made_for is None else list(connection.execute(select(files.c.id).where(made_for_same)).scalars())
            connection.execute(delete(files).where(files.c.id.in_(replaced)))
            connection.execute(
                insert(files).values(
                    id=new.id,
                    owner=new.owner,
                    created=now,
                    expires=now + new.lasts_s,
                    bytes=new.bytes,
                    filename=new.filename,
                    purpose=new.purpose,
                    made_for=new.made_for,
                )
            )
            return object_of(connection.execute(select(files).where(files.c.id == new.id)).one()), replaced

    def get(self, owner: str, id: str) -> FileObject:
        """Raises `NotFound`, also for a file of somebody else."""
        with self._database.transaction() as connection:
            return object_of(_find(connection, owner, id, self._database.now()))

    def listed(self, owner: str, page: Page, purpose: str | None) -> FileList:
        """Raises `NotFound` for an unknown `after`. One that was deleted is known for a while, as clients delete while they list."""
        now, deleted = self._database.now(), self._deleted.get((owner, page.after or ""))
        conditions = [files.c.owner == owner, files.c.expires > now, *([files.c.purpose == purpose] if purpose else [])]
        with self._database.transaction() as connection:
            rows, has_more = page_of(connection, files, conditions, page, "file", deleted)
        data = [object_of(row) for row in rows]
        return FileList(data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=has_more)

    def delete(self, owner: str, id: str, delete_bytes: Callable[[], None]) -> None:
        """Its row, then its bytes; on a disk that is full without the reserve too, first the bytes, which give the row its room.

        Raises `NotFound`, and `Conflict` for the input of a batch that has not ended.
        """
        try:
            self._database.even_if_full(lambda: self._delete(owner, id))
            delete_bytes()
        except DBAPIError as error:
            if not is_full(error):
                raise
            self._delete(owner, id, delete_bytes)
        self._database.keep_reserve()

    def _delete(self, owner: str, id: str, make_room: Callable[[], None] = lambda: None) -> None:
        with self._database.transaction() as connection:
            created = _find(connection, owner, id, self._database.now()).created
            user = connection.execute(select(batches.c.id).where(batches.c.input_file == id, batches.c.status.not_in(ENDED))).scalar()
            if user is not None:
                raise Conflict(f"file '{id}' is the input of {user}, which has not ended; cancel it first, or wait", param="file_id")
            if connection.execute(select(files.c.id).where(files.c.id == id, files.c.id.in_(unfinished_inputs()))).first() is not None:
                raise Conflict(f"file '{id}' is read by a fine-tuning job that has not ended; cancel it first, or wait", param="file_id")
            make_room()
            connection.execute(delete(files).where(files.c.id == id))
        self._deleted[owner, id] = created
        if len(self._deleted) > MAX_DELETED:
            del self._deleted[next(iter(self._deleted))]

    def stored_bytes(self, owner: str) -> int:
        with self._database.transaction() as connection:
            return _stored_bytes(connection, owner)

    def _check_room(self, connection: Connection, owner: str, bytes: int, most_bytes: int) -> None:
        """Files that came at the same time are added one after the other."""
        self._database.hold(connection, f"files of {owner}")
        if _stored_bytes(connection, owner) + bytes > most_bytes:
            raise no_room(most_bytes)

    def remove_expired(self) -> list[str]:
        """Forget the files whose time is over, and return their ids. The input of a job stays until that has ended."""
        used = select(batches.c.input_file).where(batches.c.status.not_in(ENDED))
        expired = files.c.expires <= self._database.now()
        with self._database.transaction() as connection:
            unused = files.c.id.not_in(used) & files.c.id.not_in(unfinished_inputs())
            ids = list(connection.execute(select(files.c.id).where(expired, unused)).scalars())
            connection.execute(delete(files).where(files.c.id.in_(ids)))
        return ids

    def unknown(self, ids: list[str]) -> list[str]:
        """Those without a row."""
        with self._database.transaction() as connection:
            known = set(connection.execute(select(files.c.id)).scalars())
        return [id for id in ids if id not in known]


def no_room(most_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the files of this key would have more than {most_bytes} bytes (jobs.max_stored_bytes); delete some", param="file")


def _stored_bytes(connection: Connection, owner: str) -> int:
    return int(connection.execute(select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.owner == owner)).scalar_one())


def _find(connection: Connection, owner: str, id: str, now: float) -> Row:
    """An expired file is gone for its owner, though its batch may still read it."""
    used = select(batches.c.id).where(batches.c.input_file == id, batches.c.status.not_in(ENDED)).exists()
    row = connection.execute(select(files).where(files.c.id == id, files.c.owner == owner, (files.c.expires > now) | used)).one_or_none()
    if row is None:
        raise NotFound(f"there is no file '{id[:64]}' of this key", param="file_id", code="file_not_found")
    return row


def object_of(row: Row) -> FileObject:
    return FileObject(
        id=row.id,
        bytes=row.bytes,
        created_at=int(row.created),
        expires_at=None if row.expires is None else int(row.expires),
        filename=row.filename,
        purpose=row.purpose,
    )
