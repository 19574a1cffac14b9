"""The metrics of batches, from the table that all workers share: they are the same on every server that has this table."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import GaugeMetricFamily, Metric

from app.errors import LitmusError
from app.ledger.totals import Totals
from app.schemas.batches import BatchStatus
from serve.desk import Desk
from serve.observe.metrics import PREFIX

TABLE_WAIT_S = 1.0


async def batch_totals(desk: Desk | None) -> Totals | None:
    """None on a server without batches, and where the table does not answer in time."""
    if desk is None:
        return None
    if desk.is_new:
        return Totals({}, 0, 0, 0)
    with contextlib.suppress(LitmusError, TimeoutError):
        return await asyncio.wait_for(desk.ask(lambda ledger: ledger.batches.totals()), TABLE_WAIT_S)
    return None


def batch_families(totals: Totals | None) -> Iterator[Metric]:
    if totals is None:
        return
    batches = GaugeMetricFamily(PREFIX + "batches", "batches in the table, of all servers that share it", labels=["status"])
    for status in get_args(BatchStatus):
        batches.add_metric([status], totals.statuses.get(status, 0))
    lines = GaugeMetricFamily(PREFIX + "batch_lines", "lines of batches that have not ended: waiting, completed, failed", labels=["state"])
    for state in ("waiting", "completed", "failed"):
        lines.add_metric([state], getattr(totals, state))
    yield from (batches, lines)
