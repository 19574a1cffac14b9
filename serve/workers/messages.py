"""What the processes of a server tell each other: workers and the main process the API process, and that one the main process.

Every message of a worker at work names the process that sent it: one that has died since no longer counts.
"""

from dataclasses import dataclass
from typing import Any

from app.engine.events import Event
from app.engine.facts import AdapterFacts, Facts
from app.models.device import DeviceAssignment
from app.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class Ready:
    """From a worker: the model is loaded. `worker` is the number of the replica."""

    pid: int
    worker: int
    facts: Facts


@dataclass(frozen=True, slots=True)
class Beat:
    """From a worker: sent every `BEAT_S` seconds, also while a step runs: the process is not stopped."""

    pid: int


@dataclass(frozen=True, slots=True)
class Events:
    """From a worker: the events of one step."""

    pid: int
    events: list[Event]


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """From a worker: the model cannot be loaded, and why. Its process ends."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """To a worker: read an adapter and serve it, beside what runs. Jobs that name it from now on wait until it is there."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """To a worker: forget an adapter; what it still has fails."""

    name: str


@dataclass(frozen=True, slots=True)
class AdapterRead:
    """From a worker: it serves the adapter, or why it cannot. `worker` is the number of the replica."""

    pid: int
    worker: int
    name: str
    facts: AdapterFacts | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """From the main process: the process of a replica is about to start, and this is the queue to it."""

    worker: int
    queue: Any


@dataclass(frozen=True, slots=True)
class Ended:
    """From the main process: the process of a replica has ended, and none takes its place. `exit_code` is that of multiprocessing."""

    worker: int
    exit_code: int


@dataclass(frozen=True, slots=True)
class Start:
    """To the main process: start the process of a replica."""

    worker: int
    settings: ModelSettings
    assignment: DeviceAssignment


@dataclass(frozen=True, slots=True)
class Stop:
    """To the main process: end the process of a replica; if there is none, say so."""

    worker: int


Message = Ready | Beat | Events | AdapterRead | LoadFailed | Started | Ended
Order = Start | Stop
