"""In the main process: starts worker processes and starts those again that died, by orders of the API process ends some and starts others.

Knows neither LitServe nor the queues: `Hands` does the work.
"""

import logging
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol

from serve.workers.messages import Ended, Message, Order, Start

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.2  # between two looks for dead workers
STOP_S = 5.0  # that a worker has to end by itself


class Hands(Protocol):
    """What the host asks of the server."""

    @property
    def drains(self) -> bool:
        """Whether the server shuts down: no worker is needed but for what is in flight."""

    @property
    def ends(self) -> bool:
        """Whether nothing is in flight any more, and nothing is started."""

    def launch(self, number: int) -> BaseProcess:
        """Start the process of a replica."""

    def create(self, start: Start) -> BaseProcess:
        """Start the process of a replica that the settings did not name."""

    def forget(self, number: int) -> None:
        """A replica's process has ended, and none takes its place."""

    def was_ready(self, number: int) -> bool:
        """Whether the present process of a replica has loaded its model."""

    def tell(self, message: Message) -> None:
        """Send a message to the API process."""

    def fail(self, number: int) -> None:
        """End the server: a model of the settings cannot be loaded."""

    def lose(self) -> None:
        """End the server: no process of a worker can be started, watched or ended any more."""


@dataclass(slots=True)
class Worker:
    process: BaseProcess
    needed: bool  # a model of the settings: the server ends if it cannot be loaded
    once_ready: bool = False
    stops_s: float | None = None  # it is to end, by itself until then


class Host:
    def __init__(self, hands: Hands, orders: Connection) -> None:
        self._hands, self._orders = hands, orders
        self._workers: dict[int, Worker] = {}
        self.processes: list[BaseProcess] = []  # always those that there are

    def adopt(self, number: int, process: BaseProcess) -> None:
        """Watch over the process of a model of the settings."""
        self._workers[number] = Worker(process, needed=True)
        self._note_processes()

    def run(self) -> None:
        """Until the server ends. Ends it when the process that holds the queues is gone, or the one that gives the orders."""
        self._note_processes()
        try:
            while not self._hands.ends:
                if self._orders.poll(LOOK_INTERVAL_S):
                    self._obey(self._orders.recv())
                self._look()
                self._note_processes()
        except (OSError, EOFError) as error:
            if not self._hands.ends:
                log.error("worker processes cannot be looked after (%s)", type(error).__name__)
                self._hands.lose()

    def _obey(self, order: Order) -> None:
        if isinstance(order, Start):
            self._workers[order.worker] = Worker(self._hands.create(order), needed=False)
        elif order.worker not in self._workers:
            self._hands.tell(Ended(order.worker, 0))
        else:
            worker = self._workers[order.worker]
            worker.stops_s = time.monotonic() + STOP_S
            worker.process.terminate()

    def _look(self) -> None:
        for number, worker in list(self._workers.items()):
            if worker.process.is_alive():
                if worker.stops_s is not None and time.monotonic() > worker.stops_s:
                    worker.process.kill()
            elif worker.stops_s is not None:
                self._remove(number, worker)
            elif not self._hands.ends:
                self._replace(number, worker)

    def _replace(self, number: int, worker: Worker) -> None:
        """Start the process of a worker again, unless it would only end again.

        One that exited by itself before it was ever ready would do so, and one that was killed while no worker has ever been ready
        probably, too. If the settings name its model, the server finishes the jobs in flight and ends with an error. While the server
        drains, only one that was killed leaves jobs for another: SIGTERM to all processes lets workers finish theirs and exit.
        """
        killed = (worker.process.exitcode or 0) < 0
        if self._hands.drains and (not killed or worker.process.exitcode == -signal.SIGTERM):
            return
        for other, each in self._workers.items():
            each.once_ready = each.once_ready or self._hands.was_ready(other)
        if worker.once_ready or (worker.needed and killed and any(each.once_ready for each in self._workers.values())):
            log.info("the process of replica %d is started again", number)
            worker.process = self._hands.launch(number)
        elif worker.needed:
            self._hands.fail(number)
        else:
            self._remove(number, worker)

    def _remove(self, number: int, worker: Worker) -> None:
        del self._workers[number]
        self._hands.forget(number)
        self._hands.tell(Ended(number, worker.process.exitcode or 0))

    def _note_processes(self) -> None:
        self.processes[:] = [worker.process for worker in self._workers.values()]
