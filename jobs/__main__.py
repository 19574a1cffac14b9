"""`python -m jobs`: a worker for batches and fine-tuning, which takes the settings of the server. Runs until a stop signal.

`--beside PID` as the first option ends it with that process, which is how the server starts its own.
"""

import contextlib
import logging
import os
import secrets
import socket
import sys
import threading
import time
import warnings
from collections.abc import Sequence

from celery import signals

from app.errors import SetupError
from app.ledger.database import Database
from app.ledger.folder import Folder
from app.log import configure
from app.settings import Settings, read
from jobs.broker import QUEUE, WAKE, Waker, create_celery
from jobs.lane import Lane
from jobs.leases import Leases
from jobs.runs import Runs
from jobs.sweeper import Sweeper
from jobs.worker import Worker

log = logging.getLogger(__name__)

BESIDE = "--beside"
LOOK_S = 0.5  # between two looks for the server
MARGIN_S = 5.0  # beyond the grace, until the process ends whatever it does


def main() -> None:
    os.umask(0o077)  # messages and the table are for the server's own user
    try:
        parent, arguments = beside(sys.argv[1:])
        settings = read(arguments, "jobs" if parent is None else "serve")  # those of the server that started it
        configure(settings.server.log_level, settings.server.log_format)
        quiet_libraries()
        work(settings, parent)
    except SetupError as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"litmus: {error.message}\n")
        sys.exit(2)


def quiet_libraries() -> None:
    for name in ("celery", "kombu", "amqp"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("kombu.connection").setLevel(logging.ERROR)  # it wonders that the filesystem has no host
    logging.getLogger("celery.app.trace").addFilter(_without_exception)


def _without_exception(record: logging.LogRecord) -> bool:
    """Celery writes the exception that ended a task into its message, and that may quote a line of somebody's file."""
    record.msg, record.args = "a task of Celery ended, or could not begin", None
    return True


def beside(arguments: Sequence[str]) -> tuple[int | None, Sequence[str]]:
    """The process with which this one ends, and the arguments that are settings."""
    if arguments[:1] != [BESIDE]:
        return None, arguments
    return int(arguments[1]), arguments[2:]


def work(settings: Settings, parent: int | None) -> None:
    secret = secret_of(settings)
    database = Database(settings.jobs.database_url)
    name = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
    leases, stopping = Leases(database, name, settings.jobs.lease_s), threading.Event()
    worker = Worker(settings, leases, secret, stopping)
    threading.excepthook = end_process
    app = create_celery(settings.jobs)
    app.task(worker.run, name=WAKE)
    sweeper = Sweeper(database, leases, Waker(app))

    def stop(**_: object) -> None:
        stopping.set()
        threading.Thread(target=_end, args=(settings.jobs.grace_s + MARGIN_S,), daemon=True).start()

    lane = threading.Thread(target=Lane(settings, Runs(database, leases), secret, stopping).run, daemon=True)
    signals.worker_shutting_down.connect(stop, weak=False)
    signals.setup_logging.connect(_leave_logging, weak=False)
    threading.Thread(target=sweeper.run, args=(stopping,), daemon=True).start()
    if settings.jobs.trains:
        lane.start()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    warnings.filterwarnings("ignore", "You're running the worker with superuser privileges")  # in a container that is so
    log.info("a worker for batches and fine-tuning starts", extra={"fields": {"worker": name}})
    options = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True}
    celery = app.Worker(pool="threads", concurrency=1, queues=[QUEUE], quiet=True, **options)
    celery.start()
    stopping.set()  # it may have ended by itself, as where the broker is full at the start
    if settings.jobs.trains:
        lane.join(settings.jobs.grace_s + MARGIN_S)
    log.info("the worker has stopped")
    sys.exit(celery.exitcode)


def secret_of(settings: Settings) -> str:
    """Raises `SetupError` where the server cannot have the same one."""
    if settings.jobs.secret is not None:
        return settings.jobs.secret.get_secret_value()
    return Folder(settings.jobs.folder).secret()


def end_process(ended: threading.ExceptHookArgs) -> None:
    """A thread that an error ends would be missed: whoever started this process starts the next one, with all of them."""
    log.error("a thread of the worker was ended by %s, so the process ends", ended.exc_type.__name__, exc_info=ended.exc_value)
    os._exit(1)


def _leave_logging(**_: object) -> None:
    """Celery sets up the log itself unless somebody listens."""


def _end(seconds: float) -> None:
    time.sleep(seconds)
    log.warning("the worker did not stop in time: it ends now, and what it was doing goes to another one")
    os._exit(1)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(0)


if __name__ == "__main__":
    main()
