"""A Redis of the run's own, without persistence, that is stopped and started while the server uses it for its limits."""

import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

START_S = 5.0


class NoRedis(Exception):
    """redis-server is not installed, or did not start."""


@dataclass(slots=True)
class Redis:
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it listens. Raises `NoRedis`."""
        program = shutil.which("redis-server")
        if program is None:
            raise NoRedis("--redis needs redis-server on PATH: install it (apt-get install redis-server), or leave --redis out")
        command = [program, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        end = time.monotonic() + START_S
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise NoRedis(f"redis-server did not listen on port {self.port} within {START_S:.0f} s")
            time.sleep(0.02)

    def _listens(self) -> bool:
        with suppress(psutil.NoSuchProcess):
            connections = psutil.Process(self.process.pid if self.process else -1).net_connections("tcp")
            return any(found.status == psutil.CONN_LISTEN and found.laddr.port == self.port for found in connections)
        return False

    def stop(self) -> None:
        """Kill it, as a machine that fails does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
