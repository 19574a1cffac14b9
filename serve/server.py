"""A LitServe server with Litmus's own routes, spec and loop. Builds the server, does not run it.

LitServe provides the worker processes, their restart, the queues between processes and the HTTP server. Everything that a client sees is
Litmus's own.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from litserve.server import ResponseBufferItem
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import NotReady, SetupError
from app.models.device import DeviceAssignment
from app.models.revision import VERSION
from app.settings import ServerSettings, Settings
from serve.admission.admit import admission, tell_when_to_return
from serve.admission.pace import Pace
from serve.admission.security import Security
from serve.middleware import install
from serve.observe.logs import LogSettings
from serve.observe.middleware import observe
from serve.observe.retention import Archive, Retention
from serve.processes import SHUTDOWN_MARGIN_S, EngineSpec, Server
from serve.stopping import end_at_next_signal, stop_signals
from serve.upstream.front import Front
from serve.upstream.gateway import Gateway
from serve.workers.child import look_after_jobs
from serve.workers.loop import EVENTS_UID, ModelAPI, end_process
from serve.workers.progress import SharedProgress
from serve.workers.router import Router
from serve.workers.watch import watch

log = logging.getLogger(__name__)

AddRoutes = Callable[[FastAPI, Router], None]
Watcher = Callable[[], Coroutine[Any, Any, None]]
DRAIN_POLL_S = 0.1


def create_server(settings: Settings, build: str, add_routes: AddRoutes) -> Server | Front:
    """`build` names, as `module:function`, what creates the engine in the worker. `add_routes(app, router)` adds routes and page."""
    security = Security(settings)
    models = [model for model in settings.loaded.values() for _ in range(model.replicas)]
    router = Gateway([model.served_name for model in models], settings)
    devices, logs = tuple(model.device for model in models), LogSettings(settings.server.log_level, settings.server.log_format)
    apis = [
        ModelAPI(model, build, DeviceAssignment(devices, replica.number), EngineSpec(replica), logs)
        for model, replica in zip(models, router.replicas, strict=True)
    ]
    for api, replica in zip(apis, router.replicas, strict=True):
        api.progress = replica.progress = SharedProgress()
    server = Server(apis, settings.server) if apis else Front(settings.server, settings.server.drain_s + SHUTDOWN_MARGIN_S)
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
    cut = server.cut if isinstance(server, Front) else None  # else the main process does it, and this process has no say
    jobs = look_after_jobs(app, settings.jobs, router)
    end_desk = app.state.desk.end if settings.jobs.enabled else lambda: None
    watchers: list[Watcher] = [
        partial(_drain, router, settings.server.drain_s, cut, end_desk),
        server.connections.watch,
        router.upstreams.watch,
    ]
    if isinstance(server, Server):
        watchers.append(partial(watch, router))
        app.state.order = server.orders.send
    app.state.watchers = watchers  # for what is made in the API process
    if archive is not None:
        watchers.append(archive.watch)
    watchers += jobs
    _finish_in_lifespan(server, router, add_routes, settings.server, watchers)
    return server


def _finish_in_lifespan(
    server: Server | Front, router: Router, add_routes: AddRoutes, settings: ServerSettings, watchers: Sequence[Watcher]
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
    handlers = {number: signal.signal(number, lambda *_: os._exit(0)) for number in stop_signals()}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _add_docs(app: FastAPI) -> None:
    """Add /openapi.json, and a /docs that loads its scripts from this server, so that it works without internet."""
    app.docs_url = app.redoc_url = None
    app.setup()
    app.mount("/docs/static", StaticFiles(packages=[("fastapi_offline", "static")]))

    @app.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
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


async def _drain(router: Router, drain_s: float, cut: Callable[[], None] | None, end_desk: Callable[[], None] = lambda: None) -> None:
    """After a stop signal, wait until no job is in flight and no connection has a request, at most `drain_s`; fail the jobs that are left,
    and close all connections.

    Left to itself, uvicorn would wait for every open connection, idle pages included. `cut` is for a second signal; None: there is
    another process that hears it. `end_desk` answers those who wait for the table of jobs.
    """
    handler: Any = signal.getsignal(signal.SIGTERM)
    uvicorn_server = handler.__self__

    def start_draining(number: int, frame: Any) -> None:
        router.draining = True
        handler(signal.SIGTERM, frame)
        if cut is not None:
            end_at_next_signal(cut)

    for each in stop_signals():
        signal.signal(each, start_draining)
    connections = uvicorn_server.server_state.connections
    while not router.draining:
        await asyncio.sleep(DRAIN_POLL_S)
    if router.in_flight or with_requests(connections):
        counts = router.in_flight, with_requests(connections)
        log.info(
            "stopping: %d answers and texts, %d connections with a request: up to %g s to finish; a second signal cuts off",
            *counts,
            drain_s,
        )
    deadline = time.monotonic() + drain_s
    while (router.in_flight or with_requests(connections)) and time.monotonic() < deadline:
        await asyncio.sleep(DRAIN_POLL_S)
    router.fail_all(NotReady("the server shut down before the answer was complete; send the request again"))
    end_desk()
    await asyncio.sleep(DRAIN_POLL_S)  # the last lines of the last answers are still being sent
    for connection in list(connections):
        connection.transport.close()


def with_requests(connections: Iterable[Any]) -> int:
    """On how many of uvicorn's connections a request is being received or answered. What a page reads does not count: it keeps streams of
    events open as long as it is shown, and an answer that it waits for is a request of the page's own to this server.
    """
    cycles = (connection.cycle for connection in connections if isinstance(connection, HttpToolsProtocol))
    return sum(cycle is not None and not cycle.response_complete and not _is_read_by_page(cycle.scope) for cycle in cycles)


def _is_read_by_page(scope: Mapping[str, Any]) -> bool:
    return scope["method"] in {"GET", "HEAD"} and scope["path"].startswith("/ui")
