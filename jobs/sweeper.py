"""What happens although nobody asks for it: expired and cancelled batches are closed, idle workers woken. One worker at a time does it."""

import logging
import random
import threading
from collections.abc import Callable

from sqlalchemy import func, select, update
from sqlalchemy.exc import DBAPIError

from app.errors import first_line
from app.ledger.batches import CHECK, FINISH, LINES
from app.ledger.database import Database
from app.ledger.tables import NEVER, batches, tasks
from jobs import policy
from jobs.leases import Leases, advance

log = logging.getLogger(__name__)

TURN = "sweep"


class Sweeper:
    """`wake(due)` sends messages to idle workers, where so many tasks are due."""

    def __init__(self, database: Database, leases: Leases, wake: Callable[[int], None]) -> None:
        self._database = database
        self._leases = leases
        self._wake = wake

    def run(self, stopping: threading.Event) -> None:
        """Until `stopping`. Who does not have the turn asks for it now and then."""
        while not stopping.is_set():
            try:
                has_turn = self._leases.hold_turn(TURN, policy.TURN_S)
                if has_turn:
                    self.sweep()
            except DBAPIError as error:
                has_turn = False
                log.warning("the table of jobs does not answer (%s: %s); trying again", type(error).__name__, first_line(error))
            stopping.wait(policy.SWEEP_S if has_turn else policy.TURN_S * random.uniform(0.5, 1))

    def sweep(self) -> None:
        self._expire()
        self._close()
        due = self._count_due()
        if due:
            self._wake(due)

    def _expire(self) -> None:
        now = self._database.now()
        late = batches.c.status.in_(("validating", "in_progress")) & (batches.c.expires <= now)
        with self._database.transaction() as connection:
            connection.execute(update(batches).where(late).values(status="finalizing", ending="expired", finalizing_at=now))

    def _close(self) -> None:
        """Drop the tasks of cancelled and expired batches that nobody works on."""
        now = self._database.now()
        closing = batches.c.status.in_(("cancelling", "finalizing"))
        with self._database.transaction() as connection:
            for batch in connection.execute(select(batches).where(closing).with_for_update()).all():
                idle = (tasks.c.batch == batch.id) & (tasks.c.kind != FINISH) & policy.is_due(tasks.c.due, now)
                connection.execute(update(tasks).where(idle).values(due=NEVER))
                advance(connection, batch, now)

    def _count_due(self) -> int:
        """Those of batches: who fine-tunes looks into the table by itself (`jobs.lane`)."""
        own = tasks.c.kind.in_((CHECK, LINES, FINISH))
        due = select(tasks.c.n).where(own, policy.is_due(tasks.c.due, self._database.now())).limit(policy.MAX_WAKES).subquery()
        with self._database.transaction() as connection:
            return connection.execute(select(func.count()).select_from(due)).scalar_one()
