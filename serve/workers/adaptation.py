"""In a worker: reads adapters in a thread, while the engine goes on stepping. Jobs that name one which is being read wait for it."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.engine.events import Event, Failed
from app.engine.request import Job
from app.errors import NotReady, SetupError, first_line
from serve.workers.messages import AdapterRead, Events, LoadAdapter, Message, UnloadAdapter

if TYPE_CHECKING:
    from app.engine.engine import Engine
    from app.engine.lora import LoadedAdapter


@dataclass(slots=True, eq=False)
class Reading:
    """An adapter that a thread reads, and the jobs that wait for it."""

    order: LoadAdapter
    thread: threading.Thread | None = None
    jobs: list[Job] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the thread hands in to the worker's own loop."""

    reading: Reading
    loaded: "LoadedAdapter | SetupError"


class Adaptation:
    """`hand_in` puts an `Outcome` among the worker's messages; `number` is that of the replica."""

    def __init__(self, engine: "Engine", number: int, hand_in: Callable[[Outcome], None], send: Callable[[Message], None]) -> None:
        self._engine, self._number, self._hand_in, self._send = engine, number, hand_in, send
        self._readings: dict[str, Reading] = {}  # by the adapter's name

    def obey(self, order: LoadAdapter | UnloadAdapter | Outcome) -> None:
        if isinstance(order, LoadAdapter):
            reading = self._readings[order.name] = Reading(order)
            reading.thread = threading.Thread(target=self._read, args=(reading,), daemon=True, name="adapter")
            reading.thread.start()
        elif isinstance(order, Outcome):
            self._finish(order)
        else:
            dropped = self._readings.pop(order.name, None)
            waiting = [] if dropped is None else [Failed(job.id, NotReady("the adapter was unloaded")) for job in dropped.jobs]
            self._tell([*waiting, *self._engine.remove_adapter(order.name)])

    def holds(self, job: Job) -> bool:
        """Whether the job waits here, as its adapter is being read."""
        reading = None if job.adapter is None else self._readings.get(job.adapter)
        if reading is not None:
            reading.jobs.append(job)
        return reading is not None

    def cancel(self, id: str) -> None:
        for reading in self._readings.values():
            reading.jobs = [job for job in reading.jobs if job.id != id]

    def _read(self, reading: Reading) -> None:
        """In the thread."""
        order = reading.order
        loaded: LoadedAdapter | SetupError = SetupError(f"adapter '{order.name}' ({order.path}) cannot be read; the server's log says why")
        try:
            assert self._engine.reader is not None
            loaded = self._engine.reader.read(order.name, order.path)
        except SetupError as error:
            loaded = error
        except (OSError, RuntimeError, ValueError, MemoryError) as error:  # a file that vanished, no memory left
            loaded = SetupError(f"adapter '{order.name}' ({order.path}) cannot be read: {first_line(error)}")
        finally:  # also after an error that nobody foresaw: somebody waits for the outcome
            self._hand_in(Outcome(reading, loaded))

    def _finish(self, outcome: Outcome) -> None:
        reading, loaded = outcome.reading, outcome.loaded
        name = reading.order.name
        if self._readings.get(name) is not reading:  # it was unloaded meanwhile
            return
        del self._readings[name]
        try:
            if isinstance(loaded, SetupError):
                raise loaded
            self._engine.add_adapter(loaded)
        except SetupError as error:
            self._send(AdapterRead(os.getpid(), self._number, name, None, error.message))
            self._tell(
                [Failed(job.id, NotReady(f"adapter '{name}' could not be loaded", code="adapter_not_loaded")) for job in reading.jobs]
            )
            return
        self._send(AdapterRead(os.getpid(), self._number, name, loaded.facts))
        for job in reading.jobs:
            self._engine.submit(job)

    def _tell(self, events: list[Event]) -> None:
        if events:
            self._send(Events(os.getpid(), events))
