"""`python tests/swapping.py ARGUMENTS`: the whole server, with workers whose engine needs no model, so that one is there in a second.

A folder's file `worker.json` says how its worker behaves: `{"refuse": "why"}`, also of an adapter. While there is a file `hold` in it, its
model is not loaded; while there is a file `stall`, its answers have one word.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fakes import FACTS, FakeEngine

from app.engine.events import Delta, Event
from app.engine.facts import AdapterFacts, Facts
from app.engine.request import Job
from app.errors import SetupError
from app.models.device import DeviceAssignment
from app.settings import ModelSettings

STEP_S = 0.01  # so slow that its clients, of which there are many at once, leave the processor to those who start and stop workers


class SlowEngine(FakeEngine):
    """Its words name its version, and the job's adapter."""

    def __init__(self, version: str, folder: Path = Path("nowhere")) -> None:
        super().__init__()
        self.version, self.stall = version, folder / "stall"
        self.reader = self
        self.adapters: set[str] = set()

    def read(self, name: str, path: str) -> SimpleNamespace:
        wanted = behaviour_of(Path(path))
        if "refuse" in wanted:
            raise SetupError(wanted["refuse"])
        return SimpleNamespace(facts=AdapterFacts(name, path, f"{self.version}+{name}", f"fp_{self.version}_{name}"))

    def add_adapter(self, loaded: SimpleNamespace) -> None:
        self.adapters.add(loaded.facts.name)

    def remove_adapter(self, name: str) -> list[Event]:
        self.adapters.discard(name)
        return []

    def submit(self, job: Job) -> None:
        assert job.adapter is None or job.adapter in self.adapters
        super().submit(job)

    @property
    def rows(self) -> int:
        return len(self.jobs)

    def step(self) -> list[Event]:
        time.sleep(STEP_S)
        if all(step > 0 for _, step in self.jobs.values()) and self.stall.exists():
            return []
        adapters = {id: job.adapter for id, (job, _) in self.jobs.items()}
        return [self._named(event, adapters[event.id]) if isinstance(event, Delta) else event for event in super().step()]

    def _named(self, event: Delta, adapter: str | None) -> Delta:
        return replace(event, text=f"{self.version} " if adapter is None else f"{self.version}+{adapter} ")


def behaviour_of(folder: Path) -> dict[str, Any]:
    file = folder / "worker.json"
    behaviour: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return behaviour


def build(settings: ModelSettings, assignment: DeviceAssignment) -> tuple[SlowEngine, Facts]:
    wanted = behaviour_of(Path(settings.path))
    if "refuse" in wanted:
        raise SetupError(wanted["refuse"])
    while (Path(settings.path) / "hold").exists():
        time.sleep(STEP_S)
    version = Path(settings.path).name
    facts = replace(FACTS, name=settings.served_name, context=100_000, slots=settings.slots or 32)
    return SlowEngine(version, Path(settings.path)), replace(facts, fingerprint=f"fp_{version}", revision=version)


if __name__ == "__main__":
    from serve import __main__, server
    from serve.workers import forkserver

    forkserver.PRELOAD = "fakes"
    create = server.create_server
    server.create_server = lambda settings, _, add_routes: create(settings, "swapping:build", add_routes)
    __main__.main()
