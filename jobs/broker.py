"""Celery: how idle workers are woken. A message says that there is work and not which: what it is, and whose, is in the table.

A broker that loses every message costs a second each, as the sweeper sends them again.
"""

import logging
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from app.settings import JobSettings
from jobs import policy

log = logging.getLogger(__name__)

QUEUE, WAKE = "litmus.batches", "jobs.wake"
MESSAGE_S = 60.0  # after which a message is worth nothing
POLL_S = 0.2  # between two looks into the folder of messages
SOCKET_S = 5.0


def create_celery(settings: JobSettings) -> Celery:
    app = Celery("jobs", broker=settings.broker if settings.uses_redis else "filesystem://")
    app.conf.update(
        task_default_queue=QUEUE,
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_publish_retry=True,
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0.1, "interval_max": 0.5},
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=SOCKET_S,
        broker_transport_options=_redis_options() if settings.uses_redis else _folder_options(Path(settings.folder).absolute() / "broker"),
    )
    return app


def _redis_options() -> dict[str, Any]:
    return {"socket_timeout": SOCKET_S, "socket_connect_timeout": SOCKET_S, "socket_keepalive": True}


def _folder_options(folder: Path) -> dict[str, Any]:
    messages, control = folder / "messages", folder / "control"
    for path in (messages, control):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {"data_folder_in": str(messages), "data_folder_out": str(messages), "control_folder": str(control), "polling_interval": POLL_S}


class Waker:
    """Sends messages, as many as there are tasks that are due and not yet messages for them."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._has_failed = False

    def __call__(self, due: int) -> None:
        connection = self._app.connection_for_write(connect_timeout=SOCKET_S)
        problems = (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors)  # a full Redis, a full disk
        try:
            with connection:
                queued = connection.default_channel.queue_declare(QUEUE, durable=True).message_count
                for _ in range(policy.wakes(due, queued)):
                    self._app.send_task(WAKE, queue=QUEUE, expires=MESSAGE_S, connection=connection)
            self._has_failed = False
        except problems as error:
            if not self._has_failed:
                log.warning("the broker takes no messages (%s); trying again every second", type(error).__name__)
            self._has_failed = True
