"""Questions to the engines that are still open: each worker answers its own, or its end does. Knows no jobs."""

import asyncio
import uuid

from app.engine.events import Report
from app.engine.request import Inspect
from app.errors import LitmusError, NotReady
from serve.workers.fleet import Replica

TIMEOUT_S = 2.0
ENGINE_BUSY = "the engine did not answer in time: it is in the middle of a long step, ask again in a moment"


class Reports:
    def __init__(self) -> None:
        self._pending: dict[str, tuple[Replica, asyncio.Future[Report]]] = {}

    async def ask(self, target: Replica) -> Report:
        """Raises `NotReady` when the worker does not answer."""
        inspect = Inspect(f"inspect-{uuid.uuid4().hex}")
        report: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._pending[inspect.id] = target, report
        try:
            target.send(inspect)
            return await asyncio.wait_for(report, TIMEOUT_S)
        except TimeoutError:
            raise NotReady(ENGINE_BUSY) from None
        finally:
            del self._pending[inspect.id]

    def resolve(self, report: Report) -> None:
        _, pending = self._pending.get(report.id, (None, None))
        if pending is not None and not pending.done():
            pending.set_result(report)

    def fail(self, error: LitmusError, replica: Replica | None = None) -> None:
        """Of one replica, or of all."""
        for target, pending in self._pending.values():
            if replica in {None, target} and not pending.done():
                pending.set_exception(error)
