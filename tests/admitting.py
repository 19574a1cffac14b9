"""The real routes behind admission, over a fake worker, for clients with and without keys."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from fakes import FACTS, FakeEngine, FakeWorker
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient

from app.settings import QueueSettings, SecuritySettings, ServerSettings, Settings
from app.tokenizer import Tokenizer
from serve.admission.keys import digest_of
from serve.admission.security import Security
from serve.middleware import install
from serve.routes import create_routes
from serve.workers.messages import Ready
from serve.workers.router import Router

ALICE, ROOT = "alice-" + "a" * 40, "root-" + "r" * 40
LINES = (f"alice user sha256:{digest_of(ALICE).hex()}", f"root admin sha256:{digest_of(ROOT).hex()}")
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
HELLO = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
LIMIT = 20_000


@contextmanager
def serving(folder: Path, host: str = "127.0.0.1", base_url: str = "http://127.0.0.1:8000", **security: Any) -> Iterator[TestClient]:
    """The real routes and admission over a fake worker. /client says what a limit by client would see."""
    settings = Settings.model_construct(security=SecuritySettings(**security), server=ServerSettings(host=host))
    router = Router([FACTS.name], QueueSettings(max_waiting=3))
    engine = FakeEngine()
    router.replicas[0].queue = FakeWorker(router, engine)
    router.append([Ready(psutil.Process().pid, 0, FACTS), "OK"])
    app, admission = FastAPI(), Security(settings)
    app.state.engine = engine
    admission.add_inner(app)
    install(app, LIMIT, settings.security.cors_origins, before_body=[admission.access])
    admission.add_outer(app)
    app.state.bans.tokenizers[FACTS.name] = Tokenizer(str(folder))
    app.include_router(create_routes(router, app.state.bans.tokenizers, 1, app.state.bans))

    @app.get("/client")
    async def client(request: Request) -> str | None:
        name: str | None = request.scope["state"]["client"]
        return name

    @app.get("/metrics/more")
    async def metrics() -> int:
        return 1

    @app.websocket("/socket")
    async def socket(connection: WebSocket) -> None:
        await connection.accept()

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError

    with TestClient(app, base_url, raise_server_exceptions=False) as http:
        yield http


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
