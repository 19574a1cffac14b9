"""The worker process: a LitServe loop that keeps the engine stepping and never waits for one request.

Messages in: `(pid, job)`, `(pid, id)` to cancel, `(pid, Inspect)` to ask, meant for the worker with that pid; whatever was meant for
a dead one is dropped.
Messages out: one item a step, a list of events, under one well-known uid. Knows no HTTP.
"""

import gc
import logging
import os
import pkgutil
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import litserve
from litserve.loops.base import LitLoop
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, LoopResponseType

from app.engine.request import Facts, Inspect, Job
from app.errors import SetupError
from app.models.device import Seat
from app.settings import ModelSettings

if TYPE_CHECKING:
    from app.engine.engine import Engine

log = logging.getLogger(__name__)

EVENTS = "litmus-events"  # uid under which every event travels
PARENT_CHECK_S = 1.0


class ModelAPI(litserve.LitAPI):
    """One replica: a model on a device. `build` names (`module:function`) what makes `(Engine, Facts)` of settings and seat, as it is
    imported in the worker only: the API process has no use for torch.
    """

    def __init__(self, settings: ModelSettings, build: str, seat: Seat, spec: LitSpec, log_level: str) -> None:
        super().__init__(loop=EngineLoop(), spec=spec)
        self.seat = seat
        self.settings = settings
        self.build = build
        self.log_level = log_level
        self.engine: Engine
        self.facts: Facts

    def setup(self, device: str) -> None:
        """Load the model. Ends the process with code 2 and a sentence on stderr when that cannot be done."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the server decides when work is done
        logging.basicConfig(level=self.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
        try:
            self.engine, self.facts = pkgutil.resolve_name(self.build)(self.settings, self.seat)
        except SetupError as error:
            sys.stderr.write(f"litmus: {self.settings.served_name}: {error.message}\n")
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

        def send(item: object) -> None:
            self.put_response(transport, 0, EVENTS, item, LitAPIStatus.OK, LoopResponseType.STREAMING)

        leaving = False

        def leave(*_: object) -> None:
            """SIGTERM may reach the whole group: what is in flight is finished first."""
            nonlocal leaving
            leaving = True
            if engine.idle:
                sys.exit(0)

        signal.signal(signal.SIGTERM, leave)
        gc.freeze()  # what the libraries made lives for ever: no collection need look at it again
        send((os.getpid(), lit_api.seat.number, lit_api.facts))
        while not (leaving and engine.idle):
            for message in inbox.take(wait=engine.idle):
                _obey(engine, message, send)
            events = engine.step()
            if events:
                send(events)
        sys.exit(0)


def _obey(engine: "Engine", message: tuple[int, Job | Inspect | str], send: Callable[[object], None]) -> None:
    pid, content = message
    if pid != os.getpid():
        return
    if isinstance(content, str):
        engine.cancel(content)
    elif isinstance(content, Inspect):
        send([engine.report(content.id)])
    else:
        engine.submit(content)


class Inbox:
    """A thread that waits at the process border, so that a busy engine never asks an empty queue."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._messages: deque[tuple[int, Any]] = deque()
        self._arrived = threading.Event()
        threading.Thread(target=self._listen, daemon=True, name="inbox").start()

    def take(self, wait: bool) -> list[tuple[int, Any]]:
        """Everything that has come; with `wait`, not before something has."""
        if wait:
            self._arrived.wait()
        self._arrived.clear()
        return [self._messages.popleft() for _ in range(len(self._messages))]

    def _listen(self) -> None:
        parent = os.getppid()
        while True:
            try:
                self._messages.append(self._source.get(timeout=PARENT_CHECK_S))
                self._arrived.set()
            except queue.Empty:
                if os.getppid() != parent:
                    os._exit(0)
            except (EOFError, OSError):  # the process that holds the queue is gone: the server was killed
                os._exit(0)
