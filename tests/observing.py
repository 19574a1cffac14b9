"""An application as `serve.server` makes it, over a fake engine in this process; reads its `/metrics`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from fakes import FACTS, FakeEngine, FakeWorker
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from app.settings import JobSettings, QueueSettings
from app.tokenizer import Tokenizer
from serve.desk import Desk
from serve.middleware import install
from serve.observe.middleware import observe
from serve.routes import create_routes
from serve.workers.messages import Ready
from serve.workers.router import Router

LIMIT = 20_000  # bytes of a body
POISON = "~"  # a text with it makes the fake engine fail
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass
class Observed:
    client: TestClient
    router: Router
    worker: FakeWorker
    app: FastAPI

    def scrape(self) -> Samples:
        """Every sample by its name and its labels in order."""
        answer = self.client.get("/metrics")
        assert answer.status_code == 200
        return samples_of(answer.text)

    def value(self, name: str, **labels: Any) -> float:
        """0 for a sample that is not there."""
        return value_of(self.scrape(), name, **labels)


def samples_of(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def value_of(samples: Samples, name: str, **labels: Any) -> float:
    return samples.get((f"litmus:{name}", tuple(sorted((label, str(value)) for label, value in labels.items()))), 0.0)


@contextmanager
def create_observed(folder: Path, prepare: Callable[[FastAPI, Router], None] | None = None, access_log: bool = True) -> Iterator[Observed]:
    """`prepare` gets the application before it starts. Two slots and three waiting places."""
    router = Router([FACTS.name], QueueSettings(max_waiting=3))
    worker = FakeWorker(router, FakeEngine(poison=ord(POISON) - ord("!") + 2))
    router.replicas[0].queue = worker
    router.append([Ready(psutil.Process().pid, 0, FACTS), "OK"])
    app = FastAPI()
    app.state.desk = Desk(JobSettings(folder=str(folder / "no jobs yet")))
    install(app, LIMIT)
    observe(app, router.observer, access_log=access_log)
    app.include_router(create_routes(router, {FACTS.name: Tokenizer(str(folder))}, 1, frozenset({"banned"})))
    if prepare is not None:
        prepare(app, router)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Observed(client, router, worker, app)
