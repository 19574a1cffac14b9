"""`python -m serve`: reads the settings, checks what can be checked early, assembles server and page, and runs until a stop signal."""

import contextlib
import gc
import inspect
import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from app.errors import SetupError
from app.settings import Settings, prepare_environment, read
from serve.observe.logs import LogSettings
from serve.stopping import CUT_EXIT_CODE, end_at_next_signal, stop_signals
from serve.workers import forkserver

API_PROCESS_PREFIX = "LitServer"  # LitServe names its API processes LitServer-0, LitServer-1, ...


def main() -> None:
    gc.disable()  # until the API process listens: collections among a million imported objects would take a third of the start
    prepare_environment()
    try:
        check_system()
        settings = read(sys.argv[1:])
        LogSettings(settings.server.log_level, settings.server.log_format).configure()
        check_port(settings.server.host, settings.server.port)
        serve(settings)
    except KeyboardInterrupt:  # a stop signal while the model was loading
        sys.exit(0)
    except SetupError as error:
        with contextlib.suppress(OSError):  # a full disk
            sys.stderr.write(f"litmus: {error.message}\n")
        sys.exit(2)


def check_system() -> None:
    """Raises `SetupError` but on Linux: between the processes go packets of a kind that other systems lack."""
    if sys.platform != "linux":
        raise SetupError(f"Litmus runs on Linux, and this is {sys.platform}: use a container (docs/operations.md) or, on Windows, WSL 2")


def serve(settings: Settings) -> None:
    settings.check_paths()
    if settings.loaded:
        forkserver.start()
    from serve.server import create_server

    server = create_server(settings, "app.models.loading:create_engine", lambda app, router: add_routes_and_page(settings, app, router))
    for each in stop_signals():
        signal.signal(each, partial(_interrupt, server.cut))
    try:
        server.run(
            host=settings.server.host,
            port=settings.server.port,
            num_api_servers=1,
            generate_client_file=False,
            log_level=settings.server.log_level,
            access_log=False,  # ours is written by serve.observe.middleware
            log_config=None,
        )
    finally:
        for process in getattr(server, "inference_workers", []):
            process.kill()
    if server.was_cut:
        sys.exit(CUT_EXIT_CODE)


def add_routes_and_page(settings: Settings, app: Any, router: Any) -> None:
    """The only place that imports both `serve` and `ui`, which otherwise know nothing of each other. Called in the API process.

    transformers and Gradio import torch wherever they find it, for 0.3 GB and some seconds. The API process computes nothing, so it hides
    torch from them.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    from app.scoring.detector import detector_of
    from app.tokenizer import Tokenizer
    from serve.observe.tracing import add_traces
    from serve.routes import create_job_routes, create_routes
    from serve.routes.adapters import create_adapters
    from serve.routes.admin import create_admin
    from serve.routes.estimate import create_estimate
    from serve.workers.catalog import Catalog
    from serve.workers.shelf import Shelf

    tokenizers = {model.served_name: Tokenizer(model.path, model.chat_template) for model in settings.loaded.values()}
    detectors = {model.served_name: detector_of(model) for model in settings.loaded.values()}
    app.state.bans.tokenizers, app.state.bans.loaded_name = tokenizers, router.base_of
    app.include_router(create_routes(router, tokenizers, int(time.time()), app.state.bans, detectors, settings.server.strict))
    if settings.loaded:  # a server of upstreams alone has no worker that could load another model
        catalog = Catalog(router, settings, app.state.order, tokenizers, detectors)
        app.state.watchers.append(catalog.watch)
        app.include_router(create_admin(catalog))
        app.state.shelf = Shelf(router, settings, detectors, catalog.settings_of)
        catalog.furnish = app.state.shelf.furnish
        app.include_router(create_adapters(app.state.shelf))
    if settings.jobs.enabled:
        bases = catalog.settings_of if settings.loaded else lambda name: None
        shelf = getattr(app.state, "shelf", None)
        app.include_router(create_job_routes(app.state.desk, settings.server.strict, bases, shelf, router.adapters))
    app.include_router(create_estimate(catalog.paths if settings.loaded else dict))
    if settings.server.collector is not None:
        add_traces(app, router.observer, settings.server.collector)
    if settings.ui.enabled:
        with _without_type_stubs():
            from ui.flags.file import flag_file  # noqa: TID251
            from ui.page import mount  # noqa: TID251
            from ui.visitors import Visitors  # noqa: TID251

        visitors = Visitors(f"http://127.0.0.1:{settings.server.port}", login=settings.security.needs_keys)
        mount(app, visitors, flags=flag_file(settings.ui.flags), max_file_bytes=settings.server.max_body_bytes)


@contextmanager
def _without_type_stubs() -> Iterator[None]:
    """While open, Gradio writes no .pyi files of its components beside its sources: that takes more than a second of every start."""
    find_file = inspect.getfile

    def hide_components(item: Any) -> str:
        if isinstance(item, type) and item.__module__.startswith("gradio."):
            raise OSError("no source, so no type stubs")
        return find_file(item)

    inspect.getfile = hide_components  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = find_file


def check_port(host: str, port: int) -> None:
    """Raises `SetupError` when the server could not listen there: better now than after the model has loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SetupError(f"port {port} on {host} cannot be used ({error.strerror}); choose another with --port") from error


def _interrupt(cut: Callable[[], None], number: int, frame: Any) -> None:
    """Turn the first stop signal into KeyboardInterrupt: LitServe drains on that, but leaves its children behind on SIGTERM. `cut` is for
    the second one.
    """
    if multiprocessing.parent_process() is not None:  # forked children inherit this handler
        if multiprocessing.current_process().name.startswith(API_PROCESS_PREFIX):
            sys.exit(0)  # before uvicorn installs its own handler, or after it drained and raised the signal again
        return
    end_at_next_signal(cut)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
