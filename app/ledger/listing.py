"""A page of a list: what comes after an id, newest or oldest first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Table, select, tuple_

from app.errors import NotFound

Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True)
class Page:
    limit: int
    after: str | None = None
    order: Order = "desc"


def page_of(
    connection: Connection, table: Table, conditions: Sequence[Any], page: Page, noun: str, deleted: float | None = None
) -> tuple[Sequence[Row], bool]:
    """The rows, and whether there are more. `deleted` is when `after` was created, if its row was deleted. Raises `NotFound` where `after`
    is not one of those that are listed.
    """
    place = tuple_(table.c.created, table.c.id)
    query = select(table).where(*conditions)
    if page.after is not None:
        last = connection.execute(query.where(table.c.id == page.after)).one_or_none()
        created = deleted if last is None else last.created
        if created is None:
            raise NotFound(f"after: there is no {noun} '{page.after[:64]}' of this key", param="after")
        here = tuple_(created, page.after)
        query = query.where(place > here if page.order == "asc" else place < here)
    ascending = (table.c.created, table.c.id)
    order = ascending if page.order == "asc" else tuple(column.desc() for column in ascending)
    rows = connection.execute(query.order_by(*order).limit(page.limit + 1)).all()
    return rows[: page.limit], len(rows) > page.limit
