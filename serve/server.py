"""A LitServe server with Litmus's own routes, spec and loop.

LitServe gives the worker processes, their restart, the queue between the processes and the HTTP server; everything a client can
see is ours. Builds, does not run.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import litserve
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from litserve.server import ResponseBufferItem
from litserve.specs.base import LitSpec
from litserve.utils import WorkerSetupStatus

from app.errors import NotReady, SetupError
from app.models.device import Seat
from app.models.revision import VERSION
from app.settings import ServerSettings, Settings
from serve.middleware import install
from serve.workers.fleet import Replica
from serve.workers.loop import EVENTS, ModelAPI
from serve.workers.router import Router

log = logging.getLogger(__name__)

Dress = Callable[[FastAPI, Router], None]
DRAIN_CHECK_S = 0.1
GRACE_S = 5


class EngineSpec(LitSpec):
    """Takes LitServe's queue of the replica over; has no endpoints of its own."""

    def __init__(self, replica: Replica) -> None:
        super().__init__()
        self.api_path = f"/internal/model-{replica.number}"  # names the replica's queue; no route has it
        self.replica: Replica | None = replica

    @property
    def stream(self) -> bool:
        return True

    def setup(self, server: litserve.LitServer) -> None:
        super().setup(server)
        assert self.replica is not None
        self.replica.queue = self.request_queue

    def __getstate__(self) -> dict[str, Any]:
        """The worker needs nothing of it."""
        return {**super().__getstate__(), "replica": None, "response_buffer": None}


class Server(litserve.LitServer):
    """`dress` adds what takes seconds to import (tokenizer, page) while the worker is already loading its model."""

    def __init__(self, apis: list[ModelAPI], dress: Callable[[], None], drain_s: int) -> None:
        super().__init__(
            apis,
            accelerator="cpu",  # of the process, not of the model: each LitAPI places its own model
            devices=1,
            timeout=False,
            restart_workers=True,
            healthcheck_path="/internal/health",
            info_path="/internal/info",
        )
        self._apis = apis
        self._dress = dress
        self._proven: set[int] = set()  # seats whose worker has been ready once
        self._failure: SetupError | None = None
        self.uvicorn_graceful_timeout = drain_s + GRACE_S  # `_drain` is to be the one that ends the waiting

    def verify_worker_status(self) -> None:
        self._dress()
        while True:
            for api, process in zip(self._apis, self.inference_workers, strict=True):
                if not process.is_alive():
                    raise _unserved(api)
            if any(status == WorkerSetupStatus.READY for status in self.workers_setup_status.values()):
                return
            time.sleep(0.02)

    def launch_single_inference_worker(self, lit_api: ModelAPI, worker_id: int) -> Any:
        """LitServe's monitor starts a dead worker anew. One that ended by itself and never was ready would end so again: instead, what
        is in flight is finished, and the server ends as it does when no model can be loaded.
        """
        seat = lit_api.seat.number
        process = self.inference_workers[seat]
        if self.workers_setup_status[f"{lit_api.api_path.split('/')[-1]}_{worker_id}"] == WorkerSetupStatus.READY:
            self._proven.add(seat)
        if seat in self._proven or process.exitcode < 0:
            return super().launch_single_inference_worker(lit_api, worker_id)
        self._failure = _unserved(lit_api)
        self._shutdown_event.set()
        return process

    def _start_server(self, *args: Any, **kwargs: Any) -> dict[int, Any]:
        self._listening: list[socket.socket] = args[3]
        workers: dict[int, Any] = super()._start_server(*args, **kwargs)
        return workers

    def _perform_graceful_shutdown(self, *args: Any, **kwargs: Any) -> None:
        """New clients are refused at once: closing is not enough, as every forked process holds a copy of the socket."""
        for listening in getattr(self, "_listening", []):
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
        # Or LitServe's monitor starts a worker anew that is just being ended. A thread of its own has a connection of its own to the
        # manager: this one's may stand in the middle of the wait that the signal interrupted.
        setting = threading.Thread(target=self._shutdown_event.set, daemon=True)
        setting.start()
        setting.join(GRACE_S)
        super()._perform_graceful_shutdown(*args, **kwargs)
        if self._failure is not None:
            raise self._failure


def _unserved(api: ModelAPI) -> SetupError:
    return SetupError(f"the process of the model '{api.settings.served_name}' ended while it was loading; the lines above say why")


def create_server(settings: Settings, build: str, dress: Dress) -> Server:
    """A server of `settings`. `build` (`module:function`) names what makes the engine in the worker, `dress(app, router)` adds routes
    and pages.
    """
    models = [model for model in settings.served.values() for _ in range(model.replicas)]
    router = Router(settings.queue.max_waiting, [model.served_name for model in models])
    devices, level = tuple(model.device for model in models), settings.server.log_level
    apis = [
        ModelAPI(model, build, Seat(devices, replica.number), EngineSpec(replica), level)
        for model, replica in zip(models, router.replicas, strict=True)
    ]
    server = Server(apis, lambda: _finish(server, router, dress, settings.server), settings.server.drain_s)
    app: FastAPI = server.app
    app.router.routes.clear()  # LitServe's own index, health and info, which report in their own way
    app.title, app.version = "Litmus", VERSION
    app.description = "Chats and scores text with one copy of a quantized language model."
    install(app, settings.server.max_body_bytes, settings.security.cors_origins)
    return server


def _finish(server: Server, router: Router, dress: Dress, settings: ServerSettings) -> None:
    app: FastAPI = server.app
    _document(app)
    dress(app, router)
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.response_buffer[EVENTS] = ResponseBufferItem(response_queue=router, event=asyncio.Event())
        tasks = [asyncio.create_task(router.watch()), asyncio.create_task(_drain(router, settings.drain_s))]
        gc.freeze()
        async with inner(app):
            log.info("Litmus listens on http://%s:%d: the page is /ui, the API's documents are /docs", settings.host, settings.port)
            yield
        for task in tasks:
            task.cancel()

    app.router.lifespan_context = lifespan


def _document(app: FastAPI) -> None:
    """/openapi.json, and /docs with its scripts from this machine: a bare one reaches no CDN."""
    app.docs_url = app.redoc_url = None
    app.setup()
    app.mount("/docs/static", StaticFiles(packages=[("fastapi_offline", "static")]))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Litmus API",
            swagger_js_url="/docs/static/swagger-ui-bundle.js",
            swagger_css_url="/docs/static/swagger-ui.css",
            swagger_favicon_url="data:,",
        )


async def _drain(router: Router, drain_s: float) -> None:
    """After SIGTERM or Ctrl-C, uvicorn waits for every open connection, idle pages included; end it when no work is in flight,
    or after `drain_s`, when what is left gets an error.
    """
    handler: Any = signal.getsignal(signal.SIGTERM)
    uvicorn_server = handler.__self__

    def begin(number: int, frame: Any) -> None:
        router.draining = True
        handler(signal.SIGTERM, frame)

    signal.signal(signal.SIGTERM, begin)
    signal.signal(signal.SIGINT, begin)
    while not router.draining:
        await asyncio.sleep(DRAIN_CHECK_S)
    end = time.monotonic() + drain_s
    while router.in_flight and time.monotonic() < end:
        await asyncio.sleep(DRAIN_CHECK_S)
    router.fail_all(NotReady("the server was told to stop and could not wait longer; send the request again"))
    await asyncio.sleep(DRAIN_CHECK_S)  # let the last lines of the last answers leave
    for connection in list(uvicorn_server.server_state.connections):
        connection.transport.close()
