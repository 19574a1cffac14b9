from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from fakes import FACTS, FakeEngine, FakeWorker
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.tokenizer import Tokenizer
from serve.guard import install
from serve.router import Router
from serve.routes import create_routes

LIMIT = 20_000


@dataclass
class Served:
    client: TestClient
    router: Router
    worker: FakeWorker
    tokenizer: Tokenizer

    @property
    def engine(self) -> FakeEngine:
        return self.worker.engine


@pytest.fixture
def served(tiny_folder: Path) -> Iterator[Served]:
    """The real routes, router and guard over a fake worker; two slots and three waiting places."""
    router = Router(max_waiting=3)
    worker = FakeWorker(router, FakeEngine(poison=ord("~") - ord("!") + 2))
    router.replicas[0].queue = worker
    router.append([(psutil.Process().pid, 0, FACTS), "OK"])
    app = FastAPI()
    install(app, LIMIT)
    tokenizer = Tokenizer(str(tiny_folder))
    app.include_router(create_routes(router, {FACTS.name: tokenizer}, 1))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Served(client, router, worker, tokenizer)
