"""`python tests/swapping.py ARGUMENTS`: the whole server, with workers whose engine needs no model, so that one is there in a second.

A folder's file `worker.json` says how its worker behaves: `{"refuse": "why"}`, `{"hang": true}` while it loads.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

from fakes import FACTS, FakeEngine

from app.engine.request import Event, Facts
from app.errors import SetupError
from app.models.device import DeviceAssignment
from app.settings import ModelSettings

STEP_S = 0.002


class SlowEngine(FakeEngine):
    """Its words name its version."""

    def __init__(self, version: str) -> None:
        super().__init__()
        self.version = version

    @property
    def rows(self) -> int:
        return len(self.jobs)

    def step(self) -> list[Event]:
        time.sleep(STEP_S)
        return [replace(event, text=f"{self.version} ") if hasattr(event, "text") else event for event in super().step()]


def build(settings: ModelSettings, assignment: DeviceAssignment) -> tuple[SlowEngine, Facts]:
    behaviour = Path(settings.path) / "worker.json"
    wanted = json.loads(behaviour.read_text()) if behaviour.exists() else {}
    if "refuse" in wanted:
        raise SetupError(wanted["refuse"])
    if wanted.get("hang"):
        time.sleep(3600)
    version = Path(settings.path).name
    facts = replace(FACTS, name=settings.served_name, context=100_000, slots=settings.slots or 32)
    return SlowEngine(version), replace(facts, fingerprint=f"fp_{version}", revision=version)


if __name__ == "__main__":
    from serve import __main__, server

    create = server.create_server
    server.create_server = lambda settings, _, add_routes: create(settings, "swapping:build", add_routes)
    __main__.main()
