"""How much is in the table."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Totals:
    """Batches by status; lines of those that have not ended."""

    statuses: Mapping[str, int]
    waiting: int
    completed: int
    failed: int
