"""The worker process: a LitServe loop that keeps the engine stepping and never waits for a single request.

Messages in: `(pid, job)` to submit, `(pid, id)` to cancel, `(pid, Inspect)` to ask for a report, `(pid, LoadAdapter)` and its opposite.
They are meant for the worker with that pid; a message for a worker that died is dropped. Messages out are those of
`serve.workers.messages`, all under one uid. Knows no HTTP.
"""

import contextlib
import gc
import logging
import multiprocessing
import os
import pkgutil
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import litserve
import psutil
from litserve.loops.base import LitLoop
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, LoopResponseType

from app.engine.facts import Facts
from app.engine.request import Inspect, Job
from app.errors import SetupError, first_line
from app.models.device import DeviceAssignment
from app.models.progress import listen
from app.settings import ModelSettings
from serve.observe.logs import LogSettings
from serve.workers.adaptation import Adaptation, Outcome
from serve.workers.messages import Beat, Events, LoadAdapter, LoadFailed, Message, Ready, UnloadAdapter
from serve.workers.progress import SharedProgress
from serve.workers.watchdog import Watchdog
from serve.workers.watchdog import start as start_watchdog

if TYPE_CHECKING:
    from app.engine.engine import Engine

log = logging.getLogger(__name__)

WORKER_NAME = "litmus-worker"  # of the process, as `ps` and `top` show it
EVENTS_UID = "litmus-events"  # LitServe's uid of every message that a worker sends
PARENT_CHECK_S = 1.0
LINGER_S = 0.25  # after SIGTERM, for jobs that were sent before it
FOR_NOBODY = (0, "")  # a message that wakes a worker and says nothing: no process has this number


class ModelAPI(litserve.LitAPI):
    """One replica: a model on a device.

    `build` names, as `module:function`, what returns `(Engine, Facts)` for settings and assignment. It is imported in the worker only,
    because the API process has no use for torch.
    """

    def __init__(self, settings: ModelSettings, build: str, assignment: DeviceAssignment, spec: LitSpec, logs: LogSettings) -> None:
        super().__init__(loop=EngineLoop(), spec=spec)
        self.number = assignment.worker  # of the replica
        self.transport: Any = None  # to the API process; set before the worker is started
        self.assignment = assignment
        self.settings = settings
        self.build = build
        self.logs = logs
        self.progress: SharedProgress | None = None
        self.engine: Engine
        self.facts: Facts

    def setup(self, device: str) -> None:
        """Load the model. If that fails, say why to the API process and on stderr, and end the process with code 2."""
        name_process(WORKER_NAME)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the fork server ignores it
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the group; the server decides when to stop
        gc.disable()  # until the model is loaded; see `serve.__main__`
        self.logs.configure()
        threading.Thread(target=_end_with_parent, daemon=True, name="parent").start()
        if self.progress is not None:
            listen(self.progress.tell)
        try:
            self.engine, self.facts = pkgutil.resolve_name(self.build)(self.settings, self.assignment)
        except SetupError as error:
            self.send(LoadFailed(self.number, error.message))
            end_process(f"{self.settings.served_name}: {error.message}")
        except (MemoryError, OSError, RuntimeError) as error:  # no memory left, or a file that vanished: LitServe logs it
            self.send(LoadFailed(self.number, first_line(error)))
            raise
        if self.progress is not None:
            self.progress.clear()

    def send(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # the API process is gone
            self.transport.send(envelope(message))


def envelope(message: Message) -> tuple[str, tuple[Any, ...]]:
    """A message as LitServe's reader in the API process takes it."""
    return EVENTS_UID, (message, LitAPIStatus.OK, LoopResponseType.STREAMING, 0)


def name_process(name: str) -> None:
    """At most 15 characters of it. Only Linux shows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def _end_with_parent() -> None:
    """End the process when the main process is gone. That is not the parent of a worker that was forked by the fork server."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = multiprocessing.parent_process()
        main = psutil.Process(None if parent is None else parent.pid)
        while main.is_running() and main.status() != psutil.STATUS_ZOMBIE:
            time.sleep(PARENT_CHECK_S)
    os._exit(0)


def end_process(message: str) -> NoReturn:
    """End a process that could not start. The main process notices, and ends the server."""
    with contextlib.suppress(OSError):  # a full disk
        sys.stderr.write(f"litmus: {message}\n")
        sys.stderr.flush()
    os._exit(2)


class EngineLoop(LitLoop):
    def run(  # noqa: PLR0913  (the signature is LitServe's)
        self,
        lit_api: ModelAPI,
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: Any,
        workers_setup_status: dict[str, str],
        callback_runner: Any,
    ) -> None:
        inbox = Inbox(request_queue)
        engine = lit_api.engine

        watchdog = Watchdog()
        pid = os.getpid()

        def send(message: Message) -> None:
            try:
                transport.send(envelope(message))
            except OSError:  # the API process is gone, and the server ends
                os._exit(0)

        adaptation = Adaptation(engine, lit_api.number, lambda outcome: inbox.put((pid, outcome)), send)
        stopping = False

        def stop() -> None:
            nonlocal stopping
            stopping = True
            inbox.put(FOR_NOBODY)

        def start_stopping(*_: object) -> None:
            """SIGTERM may reach every process of the group: the worker first finishes its jobs, and those on their way to it."""
            threading.Timer(LINGER_S, stop).start()

        signal.signal(signal.SIGTERM, start_stopping)
        gc.collect()
        gc.freeze()  # the objects that libraries made at import live forever: no collection has to scan them again
        gc.enable()
        send(Ready(pid, lit_api.number, lit_api.facts))
        start_watchdog(watchdog, lambda: send(Beat(pid)))
        while not (stopping and engine.idle):
            for message in inbox.receive(wait=engine.idle):
                _handle_message(engine, adaptation, message, send)
            with watchdog.step(lambda: engine.rows):
                events = engine.step()
            if events:
                send(Events(pid, events))
        sys.exit(0)


Content = Job | Inspect | LoadAdapter | UnloadAdapter | Outcome | str


def _handle_message(engine: "Engine", adaptation: Adaptation, message: tuple[int, Content], send: Callable[[Message], None]) -> None:
    pid, content = message
    if pid != os.getpid():
        return
    if isinstance(content, str):
        adaptation.cancel(content)
        engine.cancel(content)
    elif isinstance(content, LoadAdapter | UnloadAdapter | Outcome):
        adaptation.obey(content)
    elif isinstance(content, Inspect):
        send(Events(pid, [engine.report(content.id)]))
    elif not adaptation.holds(content):
        engine.submit(content)


class Inbox:
    """Receives messages in a thread of its own, so that a busy engine never has to poll the queue between the processes."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._messages: deque[tuple[int, Any]] = deque()
        self._arrived = threading.Event()
        threading.Thread(target=self._listen, daemon=True, name="inbox").start()

    def receive(self, wait: bool) -> list[tuple[int, Any]]:
        """All messages that have arrived. `wait` blocks until there is at least one."""
        if wait:
            self._arrived.wait()
        self._arrived.clear()
        return [self._messages.popleft() for _ in range(len(self._messages))]

    def put(self, message: tuple[int, Any]) -> None:
        """From a thread of this process."""
        self._messages.append(message)
        self._arrived.set()

    def _listen(self) -> None:
        parent = os.getppid()
        while True:
            try:
                self.put(self._source.get(timeout=PARENT_CHECK_S))
            except queue.Empty:
                if os.getppid() != parent:
                    os._exit(0)
            except (EOFError, OSError):  # the process that holds the queue is gone: the server was killed
                os._exit(0)
