"""LitServe's server, with Litmus's own way of keeping worker processes: those of the settings, and those that come and go later.

LitServe provides the processes and the queues between them. Knows no route.
"""

import contextlib
import copy
import gc
import multiprocessing
import multiprocessing.connection
import signal
import socket
import threading
from multiprocessing.process import BaseProcess
from typing import Any

import litserve
from litserve.loops import inference_worker
from litserve.specs.base import LitSpec
from litserve.utils import WorkerSetupStatus

from app.errors import SetupError
from app.settings import AdapterPaths, ServerSettings
from serve.admission.connections import create_connections, uvicorn_options
from serve.observe.logs import LogSettings
from serve.stopping import kill_with_children
from serve.workers import forkserver
from serve.workers.fleet import Replica
from serve.workers.host import Host
from serve.workers.loop import FOR_NOBODY, ModelAPI, envelope
from serve.workers.messages import Message, Start, Started
from serve.workers.transport import SocketTransport

SHUTDOWN_MARGIN_S = 5  # what the steps of a shutdown around the drain may take
JOIN_S = 5.0  # from the end of a process until its status is known


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
        self._build, self._logs = apis[0].build, apis[0].logs
        self._apis = {api.number: api for api in apis}
        self._manager: Any = None
        ordered, self.orders = multiprocessing.Pipe(duplex=False)  # from the API process
        self._host = Host(self, ordered)
        self._failure: SetupError | None = None
        self.was_cut = False
        self._api_processes: list[BaseProcess] = []
        self.inference_workers: list[BaseProcess] = []
        self._listening: list[socket.socket] = []
        self.uvicorn_graceful_timeout = settings.drain_s + SHUTDOWN_MARGIN_S  # later than `_drain`, which ends the wait
        self.connections = create_connections(settings)
        self._uvicorn_options = uvicorn_options(settings, self.connections)

    def run(self, **options: Any) -> None:
        super().run(**options, **self._uvicorn_options)

    def _init_manager(self, num_api_servers: int) -> Any:
        """LitServe's own event lives in the manager process, which ends while LitServe's monitor still asks for it."""
        LogSettings.adopt_libraries()
        manager = self._manager = super()._init_manager(num_api_servers)
        self._transport = SocketTransport()
        self._shutdown_event = threading.Event()
        return manager

    def verify_worker_status(self) -> None:
        """LitServe calls this to wait for a worker before it starts the API process. Here that one loads beside the workers."""

    def launch_inference_worker(self, lit_api: ModelAPI) -> list[Any]:
        """LitServe calls this for each model of the settings."""
        lit_api.transport = self._transport
        process = self._start_worker(lit_api)
        self._host.adopt(lit_api.number, process)
        return [process]

    def _start_worker(self, api: ModelAPI) -> BaseProcess:
        """As LitServe's `launch_single_inference_worker`, which always starts a process anew."""
        server = copy.copy(self)
        del server.app, server.transport_config, server.litapi_connector
        api.spec.setup(server)
        self.workers_setup_status[_status_key(api)] = WorkerSetupStatus.STARTING
        queue, status = self._get_request_queue(api.api_path), self.workers_setup_status
        process = forkserver.context().Process(
            target=inference_worker,
            args=(api, "cpu", 0, queue, self._transport, status, self._callback_runner, self.restart_workers),
            name="inference-worker",
        )
        process.start()
        return process

    def _start_worker_monitoring(self, manager: Any, uvicorn_workers: Any) -> None:
        """LitServe's own restarts what it launched at the start, and knows nothing else."""
        self.inference_workers = self._host.processes
        threading.Thread(target=self._host.run, daemon=True, name="host").start()

    @property
    def drains(self) -> bool:
        return bool(self._shutdown_event.is_set())

    @property
    def ends(self) -> bool:
        sentinels = [process.sentinel for process in self._api_processes]
        return self.was_cut or (self.drains and len(multiprocessing.connection.wait(sentinels, 0)) == len(sentinels))

    def launch(self, number: int) -> BaseProcess:
        """Start a dead worker again. If it was killed while it waited for a message, a reader is left in the queue's process and takes one
        more; what is queued here is for no process, and the new worker ignores it.
        """
        api = self._apis[number]
        self.litapi_request_queues[api.api_path].put(FOR_NOBODY)
        api.settings = api.settings.model_copy(
            update={"adapters": AdapterPaths()}
        )  # the API process has them loaded, and hears of failures
        return self._start_worker(api)

    def create(self, start: Start) -> BaseProcess:
        """Give the replica what LitServe gives to those of the start, and tell the API process its queue."""
        api = ModelAPI(
            start.settings, self._build, start.assignment, EngineSpec(Replica(start.worker, start.settings.served_name)), self._logs
        )
        api.number, api.transport = start.worker, self._transport
        api.pre_setup()
        api.loop.pre_setup(api)
        self._apis[start.worker] = api
        self.litapi_request_queues[api.api_path] = self._manager.Queue()
        self._workers_per_device_by_api_path[api.api_path] = 1
        self.tell(Started(start.worker, self.litapi_request_queues[api.api_path]))
        return self.launch(start.worker)

    def forget(self, number: int) -> None:
        api = self._apis.pop(number)
        del self.litapi_request_queues[api.api_path], self._workers_per_device_by_api_path[api.api_path]
        self.workers_setup_status.pop(_status_key(api), None)

    def was_ready(self, number: int) -> bool:
        return bool(self.workers_setup_status.get(_status_key(self._apis[number])) == WorkerSetupStatus.READY)

    def tell(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # the API process is gone, and the server ends
            self._transport.send(envelope(message))

    def fail(self, number: int) -> None:
        name = self._apis[number].settings.served_name
        self._fail(f"the worker of model '{name}' ended while it was loading the model; the lines above say why")

    def lose(self) -> None:
        self._fail("worker processes can be started no more, as a process of this server ended; the lines above say why")

    def _fail(self, message: str) -> None:
        """Let the main process shut the server down and end with this message, unless it does so for another reason."""
        if not self._shutdown_event.is_set():
            self._failure = SetupError(message)
            self._shutdown_event.set()

    def _start_server(self, *args: Any, **kwargs: Any) -> dict[int, Any]:
        self._listening = args[3]
        processes: dict[int, Any] = super()._start_server(*args, **kwargs)
        self._api_processes = [*processes.values()]
        self._transport.close_receiver()  # the API process has its own
        gc.enable()  # `serve.__main__` turned it off; the forked API process turns it on when it listens
        threading.Thread(target=self._watch, args=(self._api_processes,), daemon=True).start()
        return processes

    def _watch(self, api_processes: list[BaseProcess]) -> None:
        """End the server when an API process or the one with the queues ends by itself: LitServe watches the workers only."""
        queues = self._manager._process.sentinel
        ended = multiprocessing.connection.wait([queues, *(process.sentinel for process in api_processes)])
        if queues in ended:
            self._fail(
                "the process that holds the queues to the workers ended; if nobody ended it, the machine may have had no memory left"
            )
        else:
            process = next(process for process in api_processes if process.sentinel in ended)
            process.join(JOIN_S)
            self._fail(end_of(process.exitcode))

    def cut(self) -> None:
        """Kill what the shutdown waits for: the API process and the workers. It goes on at once, and leaves nothing behind."""
        self.was_cut = True
        for process in [*self._api_processes, *self.inference_workers]:
            if process.pid is not None and process.is_alive():
                kill_with_children(process.pid)

    def _perform_graceful_shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Refuse new clients at once. Closing the socket would not, because every forked process holds a copy of it."""
        self._shutdown_event.set()
        for listening in self._listening:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
        super()._perform_graceful_shutdown(*args, **kwargs)
        if self._failure is not None:
            raise self._failure


def end_of(status: int | None) -> str:
    """What is said of the API process that ended by itself; a signal leaves no line in the log."""
    if status is None or status >= 0:
        return "the process that answers requests ended; the lines above say why"
    reason = "; the system does so where memory runs out" if -status == signal.SIGKILL else ""
    return f"the process that answers requests was ended by signal {-status} ({signal.strsignal(-status)}){reason}"


def _status_key(api: ModelAPI) -> str:
    """Under which LitServe notes how far a worker is."""
    return f"{api.api_path.split('/')[-1]}_0"
