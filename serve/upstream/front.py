"""A server without a model of its own: one process that listens, and no worker. It has of `serve.server.Server` what is asked of both."""

import os
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.settings import ServerSettings
from serve.admission.connections import create_connections, uvicorn_options
from serve.observe.logs import LogSettings
from serve.stopping import CUT_EXIT_CODE, kill_with_children


class Front:
    """`graceful_s` are the seconds after which open connections are closed at a stop."""

    def __init__(self, settings: ServerSettings, graceful_s: int) -> None:
        self.app = FastAPI()
        self.response_buffer: dict[str, Any] = {}  # no worker answers
        self.connections = create_connections(settings)
        self.was_cut = False  # `cut` does not return
        self._options = {**uvicorn_options(settings, self.connections), "timeout_graceful_shutdown": graceful_s}

    def run(self, *, host: str, port: int, log_level: str, **_: Any) -> None:
        """Takes the options of a LitServe server, and leaves out those that say how its processes start."""
        config = uvicorn.Config(self.app, host=host, port=port, log_level=log_level, access_log=False, log_config=None, **self._options)
        LogSettings.adopt_libraries()
        uvicorn.Server(config).run()

    def cut(self) -> None:
        """End this process and those that it has started."""
        kill_with_children(os.getpid())
        os._exit(CUT_EXIT_CODE)
