"""What a worker sends to the API process. Every message names the process that sent it: one that has died since no longer counts."""

from dataclasses import dataclass

from app.engine.request import Event, Facts


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded. `worker` is the number of the replica."""

    pid: int
    worker: int
    facts: Facts


@dataclass(frozen=True, slots=True)
class Beat:
    """Sent every `BEAT_S` seconds, also while a step runs: the process is not stopped."""

    pid: int


@dataclass(frozen=True, slots=True)
class Events:
    """The events of one step."""

    pid: int
    events: list[Event]


Message = Ready | Beat | Events
