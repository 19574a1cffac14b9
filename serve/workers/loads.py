"""Asks the main process for worker processes, and waits until they have loaded their model or have ended. Knows no versions."""

import asyncio
import signal
from collections.abc import Callable

from app.errors import SetupError
from app.models.device import DeviceAssignment
from app.settings import ModelSettings
from serve.workers.fleet import Replica
from serve.workers.messages import Ended, LoadFailed, Order, Ready, Start, Started, Stop


class Loads:
    def __init__(self, order: Callable[[Order], None]) -> None:
        self._order = order
        self._loading: dict[int, tuple[Replica, asyncio.Future[None]]] = {}
        self._ending: dict[int, asyncio.Future[None]] = {}

    def start(self, replica: Replica, settings: ModelSettings, assignment: DeviceAssignment) -> asyncio.Future[None]:
        """Done when the replica's worker is ready; a `SetupError` if it cannot load the model, or ends."""
        loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loading[replica.number] = replica, loaded
        self._order(Start(replica.number, settings, assignment))
        return loaded

    def stop(self, replica: Replica) -> asyncio.Future[None]:
        """Done when the replica has no process."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loading.pop(replica.number, None)
        self._ending[replica.number] = ended
        self._order(Stop(replica.number))
        return ended

    def hear(self, message: Ready | LoadFailed | Started | Ended) -> None:
        number = message.worker
        if isinstance(message, Ended) and number in self._ending:
            self._ending.pop(number).set_result(None)
        if number not in self._loading:
            return
        replica, loaded = self._loading[number]
        if isinstance(message, Started):
            replica.queue = message.queue
            return
        del self._loading[number]
        if isinstance(message, Ready):
            loaded.set_result(None)
        else:
            loaded.set_exception(SetupError(_reason(message)))


def _reason(message: LoadFailed | Ended) -> str:
    if isinstance(message, LoadFailed):
        return message.reason
    if message.exit_code < 0:
        name = signal.Signals(-message.exit_code).name
        return f"its process was ended by {name} while it loaded the model; where nobody did that, the machine had no memory left"
    return f"its process ended with code {message.exit_code} while it loaded the model; the server's log says why"
