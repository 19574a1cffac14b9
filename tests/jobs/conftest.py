"""A server with the real routes over a fake engine, on a port of its own, and workers beside it in this process."""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import uvicorn
from fakes import FACTS, FakeEngine, FakeWorker
from fastapi import FastAPI
from sqlalchemy import delete

from app.errors import InvalidRequest, LitmusError, NotFound
from app.ledger.database import Database
from app.ledger.files import Files, NewFile
from app.ledger.folder import Folder
from app.ledger.tables import metadata
from app.settings import JobSettings, ModelSettings, QueueSettings, ServerSettings, Settings
from app.tokenizer import Tokenizer
from jobs import lane, trainer
from jobs.leases import Leases
from jobs.sweeper import Sweeper
from jobs.worker import Worker
from serve.admission.access import Access
from serve.admission.bans import Bans
from serve.admission.jobs import JobAccess
from serve.admission.keys import Keys, new_key
from serve.admission.local import LocalAdmins
from serve.desk import Desk
from serve.middleware import install
from serve.observe.middleware import observe
from serve.routes import create_job_routes, create_routes
from serve.workers.messages import Ready
from serve.workers.router import Router

FAKE_TRAINER = Path(__file__).parents[1] / "fake_trainer.py"

SLOTS = 8
LIMIT = 20_000  # of a body, so of a line
POISON = "~"  # a prompt with it fails


def line(id: str, endpoint: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": id, "method": "POST", "url": endpoint, "body": body or {"prompt": "ab", "max_tokens": 2}}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


class FakeShelf:
    """Keeps the names and folders of adapters; `refusal` is why it takes none, `failure` why it gives none up."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[str, str]] = {}
        self.refusal: str | None = None
        self.failure: LitmusError | None = None

    async def keep(self, name: str, path: str, model: str) -> None:
        if self.refusal is not None:
            raise InvalidRequest(self.refusal, code="adapter_not_loaded")
        if name in self.kept:
            raise InvalidRequest("it is there", code="adapter_exists")
        self.kept[name] = (path, model)

    def inside(self, folder: Path) -> list[str]:
        return [name for name, (path, _) in self.kept.items() if Path(path).is_relative_to(folder)]

    async def unload(self, name: str) -> None:
        if self.failure is not None:
            raise self.failure
        if self.kept.pop(name, None) is None:
            raise NotFound("it is not there")


@dataclass
class Hosted:
    """`settings` are those of server and workers."""

    settings: Settings
    folder: Path
    url: str = ""
    router: Any = None
    worker: Any = None
    keys: dict[str, str] = field(default_factory=dict)
    desk: Any = None
    shelf: FakeShelf = field(default_factory=FakeShelf)

    @property
    def engine(self) -> FakeEngine:
        engine: FakeEngine = self.worker.engine
        return engine

    @cached_property
    def database(self) -> Database:
        return Database(self.settings.jobs.database_url)

    @cached_property
    def clients(self) -> dict[str | None, openai.OpenAI]:
        keys = {None: "none", **self.keys}
        return {name: openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60) for name, key in keys.items()}

    @contextmanager
    def anew(self) -> Iterator[None]:
        settings = self.settings
        self.engine.submitted.clear()
        yield
        self.settings, self.worker.stalled, self.router.draining = settings, False, False
        self.shelf.__init__()  # type: ignore[misc]
        shutil.rmtree(self.folder / "tuning", ignore_errors=True)
        for path in (self.folder / "files").glob("*"):
            path.unlink()
        with self.database.transaction() as connection:
            for table in metadata.sorted_tables:
                connection.execute(delete(table))

    def client(self, name: str | None = None) -> openai.OpenAI:
        return self.clients[name]

    def upload(self, *lines: Any, name: str | None = None) -> Any:
        return self.client(name).files.create(file=("lines.jsonl", jsonl(*lines)), purpose="batch")

    def start(self, *lines: Any, endpoint: Any = "/v1/completions", name: str | None = None, **options: Any) -> Any:
        file = self.upload(*lines, name=name)
        return self.client(name).batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **options)

    def new_worker(self, lease_s: float = 30, stopping: threading.Event | None = None, name: str = "w") -> Worker:
        secret = Folder(self.settings.jobs.folder).secret()
        return Worker(self.settings, Leases(self.database, name, lease_s), secret, stopping or threading.Event())

    def sweep(self) -> None:
        database = self.database
        Sweeper(database, Leases(database, "sweeper", 30), lambda due: None).sweep()

    def work(self) -> None:
        """What a worker does that is woken."""
        self.new_worker().run()

    def output(self, batch: Any, name: str | None = None) -> tuple[list[Any], list[Any]]:
        """The lines of the output file and of the error file."""
        client = self.client(name)
        batch = client.batches.retrieve(batch.id)
        texts = [client.files.content(id).text if id else "" for id in (batch.output_file_id, batch.error_file_id)]
        return tuple([json.loads(each) for each in text.splitlines()] for text in texts)  # type: ignore[return-value]


@contextmanager
def hosting(tmp_path: Path, tiny_folder: Path, names: tuple[str, ...] = (), **jobs: Any) -> Iterator[Hosted]:
    folder = tmp_path / "jobs"
    made = {name: new_key(name, "user") for name in names}
    settings = Settings(jobs=JobSettings(folder=str(folder), **jobs), server=ServerSettings(max_body_bytes=LIMIT))
    hosted = Hosted(settings, folder, keys={name: secret for name, (secret, _) in made.items()})
    app, router = FastAPI(), Router([FACTS.name], QueueSettings(max_waiting=64))
    tokenizer = Tokenizer(str(tiny_folder))
    hosted.router, hosted.worker = router, FakeWorker(router, FakeEngine(poison=tokenizer.encode(POISON, "text")[-1]))
    router.replicas[0].queue = hosted.worker
    router.append([Ready(psutil.Process().pid, 0, replace(FACTS, slots=SLOTS)), "OK"])
    install(app, LIMIT)
    keys = Keys([key.line for _, key in made.values()], None) if names else None
    app.add_middleware(Access, keys=keys, bans=Bans(settings.security), local=LocalAdmins([]), jobs=JobAccess(settings.jobs))
    observe(app, router.observer, access_log=False)
    app.include_router(create_routes(router, {FACTS.name: tokenizer}, 1))
    hosted.desk = app.state.desk = Desk(settings.jobs)
    bases = {FACTS.name: ModelSettings(path=str(tiny_folder), name=FACTS.name, context=64)}
    app.include_router(create_job_routes(hosted.desk, False, bases.get, hosted.shelf, router.adapters))
    with listening(app) as port:
        hosted.url = f"http://127.0.0.1:{port}"
        hosted.settings = settings.model_copy(update={"jobs": settings.jobs.model_copy(update={"server": hosted.url})})
        yield hosted


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_keep_alive=600))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(60)


@pytest.fixture(scope="session")
def one_server(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Hosted]:
    with hosting(tmp_path_factory.mktemp("jobs"), tiny_folder, lines_per_task=3, lines_at_once=2) as hosted:
        yield hosted


@pytest.fixture(scope="session")
def server_with_keys(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Hosted]:
    with hosting(tmp_path_factory.mktemp("jobs"), tiny_folder, ("alice", "bob"), max_batches=2) as hosted:
        yield hosted


@pytest.fixture
def hosted(one_server: Hosted) -> Iterator[Hosted]:
    """Without files and batches of other tests."""
    with one_server.anew():
        yield one_server


@pytest.fixture
def shared(server_with_keys: Hosted) -> Iterator[Hosted]:
    """With keys of two people."""
    with server_with_keys.anew():
        yield server_with_keys


class Table:
    """The tables in a file of their own, with a clock that tests turn; or in the PostgreSQL that TEST_POSTGRES names, which is emptied."""

    def __init__(self, folder: Path) -> None:
        self.is_postgres = "TEST_POSTGRES" in os.environ
        self.database = Database(JobSettings(folder=str(folder), database=os.environ.get("TEST_POSTGRES")).database_url)
        with self.database.transaction() as connection:
            for emptied in metadata.sorted_tables:
                connection.execute(delete(emptied))
        self.time = 1000.0
        self.database.now = lambda: self.time  # type: ignore[method-assign]
        self.file = f"file-{'0' * 32}"
        Files(self.database).add(NewFile(self.file, "", 1, "a.jsonl", "batch", 1e6))


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False)


@pytest.fixture
def at_once(monkeypatch):
    """The pretending process, and no pauses."""
    monkeypatch.setattr(trainer, "COMMAND", (sys.executable, "-S", str(FAKE_TRAINER)))
    for name in ("LOOK_S", "TELL_S", "PAUSE_S", "BEAT_S"):
        monkeypatch.setattr(lane, name, 0.02)
