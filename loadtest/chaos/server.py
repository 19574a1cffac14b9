"""The server under test: started, its worker found, stopped, and looked at afterwards: exit code, processes left over, port free."""

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

FULL_DISK = Path("/dev/full")  # every write to it fails as on a disk without space
ORPHANS_S = 5.0  # what the children of a server may take to end after it
STOP_TIMEOUT_S = 60.0
WORKER_NAME = "litmus-worker"  # as the server names the processes of its models


class ServerFailed(Exception):
    """The server ended by itself, or did not come back; the message says which."""


def serve_command(model: str, port: int, max_waiting: int, further: Sequence[str]) -> list[str]:
    """In the model's default precision: that of small models and those of the compiled kernel give the same answer in any batch."""
    options = {
        "--model.path": model,
        "--ui.enabled": "false",
        "--queue.max_waiting": str(max_waiting),
        "--server.port": str(port),
    }
    return [sys.executable, "-m", "serve", *(word for option in options.items() for word in option), *further]


@dataclass(slots=True)
class OwnServer:
    """`down` is true from a stop on purpose until the next server is ready: nobody has to listen meanwhile."""

    command: Sequence[str]
    port: int
    log: Path
    down: bool = False
    process: subprocess.Popen[bytes] | None = None
    seen: set[psutil.Process] = field(default_factory=set)  # every process of the server that runs now

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, log: Path | None = None) -> None:
        """With its output at the end of `log`, of its usual log file if None."""
        with (log or self.log).open("ab") as out:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        self.seen = {psutil.Process(self.process.pid)}

    def check_running(self) -> None:
        """Raises `ServerFailed`."""
        if self.process is None or self.process.poll() is not None:
            code = "before it was started" if self.process is None else f"by itself with code {self.process.returncode}"
            raise ServerFailed(f"the server ended {code}; its log: {self.log}")

    def processes(self) -> list[psutil.Process]:
        """The main process and all below it, as they are now."""
        if self.process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            main = psutil.Process(self.process.pid)
            found = [main, *main.children(recursive=True)]
            self.seen.update(found)
            return found
        return []

    def worker(self) -> psutil.Process:
        """The youngest worker. Raises `ServerFailed` if there is none."""
        workers = [process for process in self.processes()[1:] if is_worker(process)]
        if not workers:
            raise ServerFailed("the server is ready, but has no worker process")
        return max(workers, key=lambda process: process.create_time())

    def limit_files(self, limited: bool) -> None:
        """While limited, no process of the server can make a file longer than its log is now: its next line meets a full disk.

        Processes that it starts meanwhile are limited, too.
        """
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
                process.rlimit(psutil.RLIMIT_FSIZE, (self.log.stat().st_size if limited else hard, hard))

    def terminate(self) -> None:
        """Ask the server to stop, as an operator would: only the main process hears it."""
        self.processes()
        self.down = True
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End what is left of it, where a run was interrupted before its end."""
        _kill(self.processes())

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def clean_up(self) -> dict[str, Any]:
        """Wait for a server that was asked to stop. Returns its exit code, its orphans, and whether its port is free; ends what is left."""
        code = self._wait()
        left = psutil.wait_procs(self.seen, timeout=ORPHANS_S)[1]
        orphans = [process for process in left if is_running(process)]
        facts = {"exit_code": code, "orphans": len(orphans), "port_free": port_is_free(self.port)}
        _kill(orphans)
        self.process, self.seen = None, set()
        return facts

    def _wait(self) -> int | str:
        if self.process is None:
            return "not started"
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return f"none within {STOP_TIMEOUT_S:.0f} s"


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def is_worker(process: psutil.Process) -> bool:
    try:
        return process.name() == WORKER_NAME
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def port_is_free(port: int) -> bool:
    """Whether a server could listen on it now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True
