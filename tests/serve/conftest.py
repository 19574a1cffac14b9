import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import fastapi._compat.v2
import fastapi.routing
import openai
import psutil
import pytest
from fakes import FACTS, HERMES, FakeEngine, FakeWorker
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import TypeAdapter
from serving import RunningServer, serving

from app.settings import QueueSettings
from app.tokenizer import Tokenizer
from serve.middleware import install
from serve.observe import state
from serve.routes import create_routes
from serve.workers import reports
from serve.workers.messages import Ready
from serve.workers.router import Router

LIMIT = 20_000
# Most tests make an app of their own. The schemas of its answers and parameters are always the same, and two thirds of what it costs.
fastapi.routing.create_model_field = cache(fastapi.routing.create_model_field)
validators: dict[str, TypeAdapter[Any]] = {}


def validator_of(annotated: Any, config: Any = None) -> TypeAdapter[Any]:
    """Made once of all annotations that read the same."""
    shown = repr((annotated, config))
    if shown not in validators:
        validators[shown] = TypeAdapter(annotated, config=config)
    return validators[shown]


fastapi._compat.v2.TypeAdapter = validator_of  # type: ignore[misc,assignment]


@dataclass
class Served:
    client: TestClient
    router: Router
    worker: FakeWorker
    tokenizer: Tokenizer

    @property
    def engine(self) -> FakeEngine:
        return self.worker.engine


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake engines answer at once, but a busy machine may keep their process waiting. Tests of what is late set their own time."""
    monkeypatch.setattr(reports, "TIMEOUT_S", 60.0)
    monkeypatch.setattr(state, "REPORT_WAIT_S", 60.0)


@pytest.fixture
def served(tiny_folder: Path) -> Iterator[Served]:
    with serving_fakes(tiny_folder) as served:
        yield served


@pytest.fixture
def strictly_served(tiny_folder: Path) -> Iterator[Served]:
    with serving_fakes(tiny_folder, strict=True) as served:
        yield served


@pytest.fixture
def tooled(served: Served) -> Served:
    """With a chat template that has a place for tools, and a context that holds them."""
    served.tokenizer.base.chat_template = HERMES
    served.router.append([Ready(psutil.Process().pid, 0, replace(FACTS, context=4096)), "OK"])
    return served


@cache
def read_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(str(folder))


def new_tokenizer(folder: Path) -> Tokenizer:
    """One whose template a test may change, without reading the files again."""
    tokenizer = copy(read_tokenizer(folder))
    tokenizer.base = copy(tokenizer.base)
    return tokenizer


@contextmanager
def serving_fakes(folder: Path, strict: bool = False) -> Iterator[Served]:
    """The real routes, router and middleware over a fake worker, with two slots and three waiting places."""
    router = Router([FACTS.name], QueueSettings(max_waiting=3))
    worker = FakeWorker(router, FakeEngine(poison=ord("~") - ord("!") + 2))
    router.replicas[0].queue = worker
    router.append([Ready(psutil.Process().pid, 0, FACTS), "OK"])
    app = FastAPI()
    install(app, LIMIT, strict=strict)
    tokenizer = new_tokenizer(folder)
    app.include_router(create_routes(router, {FACTS.name: tokenizer}, 1, frozenset({"banned"}), strict=strict))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Served(client, router, worker, tokenizer)


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real server with the bundled models, shared by all tests that do not change or stop it."""
    with serving(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture(scope="module")
def client(api: RunningServer) -> Iterator[openai.OpenAI]:
    """Of the library `openai`."""
    with api.client() as client:
        yield client


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[RunningServer]:
    """A server of short answers, as most valid bodies name no limit: each ninth token ends one, and none has more than 128 tokens."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("small") / "model")
    generation = folder / "generation_config.json"
    generation.write_text(json.dumps({**json.loads(generation.read_text()), "eos_token_id": list(range(1, 258, 9))}))
    with serving(folder.parent, "--model", str(folder), "--model.name", "storyteller") as server:
        yield server
