"""A LitServe server with Litmus's own routes, spec and loop. Builds the server, does not run it.

LitServe provides the worker processes, their restart, the queues between processes and the HTTP server. Everything that a client sees is
Litmus's own.
"""

import asyncio
import contextlib
import gc
import logging
import multiprocessing.connection
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import partial
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
from app.models.device import DeviceAssignment
from app.models.revision import VERSION
from app.settings import ServerSettings, Settings
from serve.admission.admit import admission, tell_when_to_return
from serve.admission.connections import create_connections, uvicorn_options
from serve.admission.pace import Pace
from serve.admission.security import Security
from serve.middleware import install
from serve.observe.logs import LogSettings
from serve.observe.middleware import observe
from serve.observe.retention import Archive, Retention
from serve.workers.fleet import Replica
from serve.workers.loop import EVENTS_UID, ModelAPI, end_process
from serve.workers.progress import SharedProgress
from serve.workers.router import Router
from serve.workers.transport import SocketTransport
from serve.workers.watch import watch

log = logging.getLogger(__name__)

AddRoutes = Callable[[FastAPI, Router], None]
Watcher = Callable[[], Coroutine[Any, Any, None]]
DRAIN_POLL_S = 0.1
MONITOR_INTERVAL_S = 0.2  # between two looks for dead workers
SHUTDOWN_MARGIN_S = 5  # what the steps of a shutdown around the drain may take


class EngineSpec(LitSpec):
    """Hands the request queue that LitServe makes for it to the replica. Has no endpoints of its own."""

    def __init__(self, replica: Replica) -> None:
        super().__init__()
        self.api_path = f"/internal/model-{replica.number}"  # only names the queue; there is no such route
        self.replica: Replica | None = replica

    @property
    def stream(self) -> bool:
        return True

    def setup(self, server: litserve.LitServer) -> None:
        super().setup(server)
        assert self.replica is not None
        self.replica.queue = self.request_queue

    def __getstate__(self) -> dict[str, Any]:
        """The spec is pickled for the worker, which needs neither the replica nor the response buffer."""
        return {**super().__getstate__(), "replica": None, "response_buffer": None}


class Server(litserve.LitServer):
    """Starts the API process at once, while the workers load their models. It is `app`'s lifespan that adds the routes and the page."""

    def __init__(self, apis: list[ModelAPI], settings: ServerSettings) -> None:
        super().__init__(
            apis,
            accelerator="cpu",  # LitServe places nothing: each ModelAPI chooses the device of its model
            devices=1,
            timeout=False,
            restart_workers=True,
            healthcheck_path="/internal/health",
            info_path="/internal/info",
        )
        self.monitor_internal = MONITOR_INTERVAL_S
        self._apis = apis
        self._once_ready: set[int] = set()  # numbers of the workers that have been ready at least once
        self._failure: SetupError | None = None
        self._listening: list[socket.socket] = []
        self.uvicorn_graceful_timeout = settings.drain_s + SHUTDOWN_MARGIN_S  # later than `_drain`, which ends the wait
        self.connections = create_connections(settings)
        self._uvicorn_options = uvicorn_options(settings, self.connections)

    def run(self, **options: Any) -> None:
        super().run(**options, **self._uvicorn_options)

    def _init_manager(self, num_api_servers: int) -> Any:
        """LitServe's own event lives in the manager process, which ends while LitServe's monitor still asks for it."""
        LogSettings.adopt_libraries()
        manager = super()._init_manager(num_api_servers)
        self._transport = SocketTransport()
        self._shutdown_event = threading.Event()
        return manager

    def verify_worker_status(self) -> None:
        """LitServe calls this to wait for a worker before it starts the API process. Here that one loads beside the workers."""

    def launch_single_inference_worker(self, lit_api: ModelAPI, worker_id: int) -> Any:
        """LitServe's monitor calls this to restart a dead worker.

        A worker that exited by itself before it was ever ready would do so again, and one that was killed while no worker has ever been
        ready probably, too. Instead of restarting it, the server finishes the jobs in flight and ends with an error.
        """
        for api in self._apis:
            if self.workers_setup_status[f"{api.api_path.split('/')[-1]}_0"] == WorkerSetupStatus.READY:
                self._once_ready.add(api.assignment.worker)
        worker = lit_api.assignment.worker
        process = self.inference_workers[worker]
        if self._shutdown_event.is_set():
            return process
        if worker in self._once_ready or (process.exitcode < 0 and self._once_ready):
            return super().launch_single_inference_worker(lit_api, worker_id)
        name = lit_api.settings.served_name
        self._fail(f"the worker of model '{name}' ended while it was loading the model; the lines above say why")
        return process

    def _fail(self, message: str) -> None:
        """Let the main process shut the server down and end with this message."""
        self._failure = SetupError(message)
        self._shutdown_event.set()

    def _start_server(self, *args: Any, **kwargs: Any) -> dict[int, Any]:
        self._listening = args[3]
        processes: dict[int, Any] = super()._start_server(*args, **kwargs)
        self._transport.close_receiver()  # the API process has its own
        gc.enable()  # `serve.__main__` turned it off; the forked API process turns it on when it listens
        threading.Thread(target=self._watch, args=(list(processes.values()),), daemon=True).start()
        return processes

    def _watch(self, api_processes: list[multiprocessing.Process]) -> None:
        """End the server when an API process ends by itself: LitServe watches the workers only."""
        multiprocessing.connection.wait([process.sentinel for process in api_processes])
        if not self._shutdown_event.is_set():
            self._fail("the process that answers requests ended; the lines above say why")

    def _perform_graceful_shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Refuse new clients at once. Closing the socket would not, because every forked process holds a copy of it."""
        self._shutdown_event.set()
        for listening in self._listening:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
        super()._perform_graceful_shutdown(*args, **kwargs)
        if self._failure is not None:
            raise self._failure


def create_server(settings: Settings, build: str, add_routes: AddRoutes) -> Server:
    """`build` names, as `module:function`, what creates the engine in the worker. `add_routes(app, router)` adds routes and page."""
    security = Security(settings)
    models = [model for model in settings.served.values() for _ in range(model.replicas)]
    router = Router([model.served_name for model in models], settings.queue)
    devices, logs = tuple(model.device for model in models), LogSettings(settings.server.log_level, settings.server.log_format)
    apis = [
        ModelAPI(model, build, DeviceAssignment(devices, replica.number), EngineSpec(replica), logs)
        for model, replica in zip(models, router.replicas, strict=True)
    ]
    for api, replica in zip(apis, router.replicas, strict=True):
        api.progress = replica.progress = SharedProgress()
    server = Server(apis, settings.server)
    app: FastAPI = server.app
    app.router.routes.clear()  # LitServe's own index, health and info; Litmus has its own
    app.title, app.version = "Litmus", VERSION
    app.description = "Chats and scores text with one copy of a quantized language model."
    pace = Pace()
    gate, *limits = admission(router, settings.limits, pace)
    security.add_inner(app)
    archive = None if settings.retention.folder is None else Archive(settings.retention)
    if archive is not None:  # behind the limit of bodies, as what `security` adds there
        app.add_middleware(Retention, archive=archive)
    install(
        app,
        settings.server.max_body_bytes,
        settings.security.cors_origins,
        settings.server.strict,
        settings.server.body_timeout_s,
        [gate, security.access, *limits],
    )
    security.add_outer(app)
    tell_when_to_return(app, pace)
    observe(app, router.observer, settings.server.access_log)  # last, so that it is the outermost middleware
    watchers: list[Watcher] = [partial(watch, router), partial(_drain, router, settings.server.drain_s), server.connections.watch]
    if archive is not None:
        watchers.append(archive.watch)
    _finish_in_lifespan(server, router, add_routes, settings.server, watchers)
    return server


def _finish_in_lifespan(
    server: Server, router: Router, add_routes: AddRoutes, settings: ServerSettings, watchers: Sequence[Watcher]
) -> None:
    """Add routes and page when the API process starts, before it listens: their imports take seconds and memory, which the main process
    is spared, and the workers load meanwhile. `watchers` run as long as the process.
    """
    litserve_lifespan = server.app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.router.lifespan_context = litserve_lifespan  # the page adds its own to it
        with _stop_at_once():
            _add_docs(app)
            _add_routes_or_exit(app, router, add_routes)
        server.response_buffer[EVENTS_UID] = ResponseBufferItem(response_queue=router, event=asyncio.Event())
        tasks = [asyncio.create_task(watcher()) for watcher in watchers]
        for task in tasks:
            task.add_done_callback(_log_failure)
        gc.freeze()
        gc.enable()
        async with app.router.lifespan_context(app):
            log.info("Litmus listens on http://%s:%d (page: /ui, API documentation: /docs)", settings.host, settings.port)
            yield
        for task in tasks:
            task.cancel()

    server.app.router.lifespan_context = lifespan


def _add_routes_or_exit(app: FastAPI, router: Router, add_routes: AddRoutes) -> None:
    try:
        add_routes(app, router)
    except SetupError as error:
        end_process(error.message)


@contextlib.contextmanager
def _stop_at_once() -> Iterator[None]:
    """While open, a stop signal ends the process: uvicorn would act on it only after the imports."""
    handlers = {number: signal.signal(number, lambda *_: os._exit(0)) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _add_docs(app: FastAPI) -> None:
    """Add /openapi.json, and a /docs that loads its scripts from this server, so that it works without internet."""
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


def _log_failure(task: asyncio.Task[None]) -> None:
    """A watcher runs as long as the process: one that raised is gone."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a task of the server ended by %s; restart the server", type(error).__name__, exc_info=error)


async def _drain(router: Router, drain_s: float) -> None:
    """After SIGTERM or Ctrl-C, wait until no job is in flight, at most `drain_s`; fail the jobs that are left, and close all connections.

    Left to itself, uvicorn would wait for every open connection, idle pages included.
    """
    handler: Any = signal.getsignal(signal.SIGTERM)
    uvicorn_server = handler.__self__

    def start_draining(number: int, frame: Any) -> None:
        router.draining = True
        handler(signal.SIGTERM, frame)

    signal.signal(signal.SIGTERM, start_draining)
    signal.signal(signal.SIGINT, start_draining)
    while not router.draining:
        await asyncio.sleep(DRAIN_POLL_S)
    deadline = time.monotonic() + drain_s
    while router.in_flight and time.monotonic() < deadline:
        await asyncio.sleep(DRAIN_POLL_S)
    router.fail_all(NotReady("the server shut down before the answer was complete; send the request again"))
    await asyncio.sleep(DRAIN_POLL_S)  # the last lines of the last answers are still being sent
    for connection in list(uvicorn_server.server_state.connections):
        connection.transport.close()
