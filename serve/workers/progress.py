"""How far a worker's start has come, in memory that it shares with the API process: before its first message there is no other way.

Knows no hub and no wire.
"""

import multiprocessing
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, get_args

from app.models.progress import Stage
from app.schemas.state import LoadProgress

if TYPE_CHECKING:
    from serve.workers.fleet import Replica

STAGES = ("", *get_args(Stage))


class SharedProgress:
    """Made in the main process; the worker gets it when it is spawned, the API process when it is forked."""

    def __init__(self) -> None:
        self._values: Any = multiprocessing.get_context("spawn").RawArray("d", 3)  # stage, bytes done, bytes in all

    def tell(self, stage: str, done: int, total: int) -> None:
        self._values[:] = [STAGES.index(stage), done, total]

    def clear(self) -> None:
        """The start is over: should the worker die, what it told is not true of the next one."""
        self.tell("", 0, 0)

    @property
    def state(self) -> LoadProgress | None:
        """None before the worker has said anything."""
        stage, done, total = self._values
        if not stage:
            return None
        counted = {"done_bytes": int(done), "total_bytes": int(total)} if total else {}
        return LoadProgress(stage=STAGES[int(stage)], **counted)


def progress_of(replicas: Iterable["Replica"]) -> dict[str, LoadProgress]:
    """By model, of replicas that have no worker yet; of several replicas of a model the first."""
    found: dict[str, LoadProgress] = {}
    for replica in replicas:
        state = None if replica.worker is not None or replica.progress is None else replica.progress.state
        if state is not None:
            found.setdefault(replica.model, state)
    return found
