"""Models served in this process, each under a name: the real routes and router over HTTP, and engines that are stepped on the event loop.

It starts in milliseconds, and a test can look at the engine behind an answer. `tests/serving.py` starts the whole server instead.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import uvicorn
from fakes import FakeWorker
from fastapi import FastAPI

from app.engine.engine import Engine
from app.engine.facts import Facts
from app.engine.request import Inspect
from app.errors import EngineFailed
from app.models.loading import create_engine
from app.models.progress import listen
from app.scoring.detector import Detector, detector_of
from app.settings import JobSettings, ModelSettings, QueueSettings, Settings
from app.tokenizer import Tokenizer
from serve.middleware import install
from serve.routes import create_routes
from serve.routes.adapters import create_adapters
from serve.workers.adaptation import Adaptation, Outcome
from serve.workers.messages import Events, LoadAdapter, Ready, UnloadAdapter
from serve.workers.progress import SharedProgress
from serve.workers.router import Router
from serve.workers.shelf import Shelf

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MAX_BODY_BYTES = 1_000_000
MAX_WAITING = 64
TURNS = 4  # of the event loop between two steps: a stream is cancelled only while it waits for the next event


class Worker(FakeWorker):
    """Steps a real engine. When the engine raises, its requests get an error. After `dies_after` steps, all that the engine has is
    lost, as if the process had been killed, and another one had taken its place. After `holds_after` steps none is made until it is None.
    """

    dies_after: int | None = None
    holds_after: int | None = None
    deaths = 0

    def __init__(self, router: Router, engine: Engine) -> None:
        super().__init__(router, engine)  # type: ignore[arg-type]
        self.adaptation: Adaptation | None = None

    def put(self, message: tuple[int, Any]) -> None:
        """As the worker's own loop takes messages, orders for adapters included."""
        pid, content = message
        if isinstance(content, LoadAdapter | UnloadAdapter | Outcome):
            self._adapted().obey(content)
            self.start()
        elif isinstance(content, str | Inspect) or not self._adapted().holds(content):
            super().put((pid, content))

    def _adapted(self) -> Adaptation:
        if self.adaptation is None:
            loop = asyncio.get_running_loop()
            number = next(replica.number for replica in self.router.replicas if replica.queue is self)

            def hand_in(outcome: Outcome) -> None:
                loop.call_soon_threadsafe(self.put, (psutil.Process().pid, outcome))

            self.adaptation = Adaptation(self.engine, number, hand_in, lambda sent: self.router.append([sent, "OK"]))  # type: ignore[arg-type]
        return self.adaptation

    async def _run(self) -> None:
        completed = False
        try:
            while not self.engine.idle:
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                if self.holds_after == 0:
                    await asyncio.sleep(0.001)
                    continue
                events = self.engine.step()
                if self.holds_after is not None:
                    self.holds_after -= 1
                if self.dies_after == 0:
                    self._die()
                    continue
                if self.dies_after is not None:
                    self.dies_after -= 1
                self.router.append([Events(self.pid, events), "OK"])
            completed = True
        finally:
            if not completed:
                self.router.fail_all(EngineFailed("the engine raised an exception"))

    def _die(self) -> None:
        self.dies_after, self.deaths = None, self.deaths + 1
        self.engine.fail_all(EngineFailed("killed"))
        replica = next(replica for replica in self.router.replicas if replica.queue is self)
        self.router.workers_died([replica])
        self.router.append([Ready(self.pid, replica.number, replica.facts), "OK"])


@dataclass(frozen=True)
class LocalModel:
    """One of the models of a `LocalServer`, as its tests ask it."""

    url: str
    settings: ModelSettings
    engine: Engine
    facts: Facts
    tokenizer: Tokenizer
    http: httpx.Client
    worker: "Worker"

    @property
    def name(self) -> str:
        return self.facts.name

    def adapted(self, name: str) -> "LocalModel":
        """One of its adapters, asked like a model."""
        return replace(self, facts=replace(self.facts, name=name))

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        response = self.http.post(path, json={"model": self.name, **body})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of a stream, without the `[DONE]` at its end."""
        response = self.http.post(path, json={"model": self.name, "stream": True, **body})
        assert response.status_code == 200, response.text
        events = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]

    def refused(self, path: str, **body: Any) -> dict[str, Any]:
        """The error of a request that is answered with a 400."""
        response = self.http.post(path, json={"model": self.name, **body})
        assert response.status_code == 400, response.text
        error: dict[str, Any] = response.json()["error"]
        return error

    def chat(self, text: str, **fields: Any) -> dict[str, Any]:
        """The first choice of a chat of one message."""
        choice: dict[str, Any] = self.post(CHAT, messages=[{"role": "user", "content": text}], **fields)["choices"][0]
        return choice

    def complete(self, prompt: str | list[int], **fields: Any) -> dict[str, Any]:
        """The first choice of a completion."""
        choice: dict[str, Any] = self.post(TEXT, prompt=prompt, **fields)["choices"][0]
        return choice

    def answer_ids(self, prompt: str | list[int], **fields: Any) -> list[int]:
        """The tokens of a completion, its end token included."""
        return self.ids_of(self.complete(prompt, **fields, logprobs=0)["logprobs"]["tokens"])

    def ids_of(self, tokens: Sequence[str]) -> list[int]:
        """The ids of tokens as log-probabilities name them."""
        by_text = {self.tokenizer.piece(id).text: id for id in range(len(self.tokenizer))}
        return [by_text[token] for token in tokens]

    def slots(self) -> dict[str, Any]:
        state: dict[str, Any] = self.http.get("/slots", params={"model": self.name}).json()
        return state

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, "text"))

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)


class LocalServer:
    """Loads the model of a name when a test first asks for it. `settings` are by name. `jobs` is the folder that would hold adapters."""

    def __init__(self, settings: dict[str, ModelSettings], jobs: Path = Path("nowhere")) -> None:
        self.settings = settings
        self.router = Router(list(settings), QueueSettings(max_waiting=MAX_WAITING))
        self.tokenizers: dict[str, Tokenizer] = {}
        self.detectors: dict[str, Detector] = {}
        self.app = FastAPI()
        install(self.app, MAX_BODY_BYTES)
        self.app.include_router(create_routes(self.router, self.tokenizers, int(time.time()), frozenset(), self.detectors))
        first, *others = settings.values()
        whole = Settings.model_construct(model=first, models=tuple(others), jobs=JobSettings(folder=str(jobs)))
        self.shelf = Shelf(self.router, whole, self.detectors, self.settings.get)
        self.app.include_router(create_adapters(self.shelf))
        self.models: dict[str, LocalModel] = {}
        self.url = ""
        self.http = httpx.Client()

    @contextmanager
    def run(self) -> Iterator["LocalServer"]:
        """Listen on a free port while the context is open."""
        server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_level="warning", timeout_keep_alive=600))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        with httpx.Client(base_url=self.url, timeout=60, limits=httpx.Limits(max_connections=None)) as self.http:
            yield self
        server.should_exit = True
        thread.join(60)

    def model(self, name: str) -> LocalModel:
        if name not in self.models:
            self.models[name] = self._load(self.settings[name])
        return self.models[name]

    def _load(self, settings: ModelSettings) -> LocalModel:
        listen(SharedProgress().tell)  # as a worker does
        engine, facts = create_engine(settings)
        replica = next(replica for replica in self.router.replicas if replica.model == facts.name)
        replica.queue = Worker(self.router, engine)
        self.tokenizers[facts.name] = Tokenizer(settings.path, settings.chat_template)
        self.detectors[facts.name] = detector_of(settings)
        self.router.append([Ready(psutil.Process().pid, replica.number, facts), "OK"])
        return LocalModel(self.url, settings, engine, facts, self.tokenizers[facts.name], self.http, replica.queue)
