"""Starts the servers that are compared, waits until they are ready, and ends them with all their processes.

Knows commands and ports, not what is measured.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 45
POLL_INTERVAL_S = 0.2
PORT_PLACEHOLDER = "{port}"  # in a command; `running` puts a free port in its place
CACHE_BLOCKS = 128  # of 256 tokens, of transformers' cache; by default it would take most of the machine's memory


class PeerAbsent(Exception):
    """The peer is not installed on this machine; the message says what is missing."""


class PeerFailed(Exception):
    """The peer is installed but failed, or answered something other than was asked."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that can be started and measured.

    `ready_route` answers 200 once the model is loaded. `extra_body` holds fields that this server needs in every chat request.
    `sends_done`: it ends a stream with [DONE].
    """

    name: str
    command: tuple[str, ...]
    ready_route: str
    extra_body: dict[str, Any] = field(default_factory=dict)
    sends_done: bool = True


@dataclass(frozen=True, slots=True)
class Server:
    peer: Peer
    url: str


def litmus_peer(model: str, quantize: str, device: str, slots: int) -> Peer:
    """Litmus without drafts: how much faster they are depends on what the model repeats, and the peers have none."""
    options = {
        "--model.path": model,
        "--model.quantize": quantize,
        "--model.dtype": "bfloat16",
        "--model.device": device,
        "--model.slots": str(slots),
        "--model.drafts": "false",
        "--ui.enabled": "false",
        "--server.log_level": "warning",
        "--server.port": PORT_PLACEHOLDER,
    }
    args = [arg for option in options.items() for arg in option]
    return Peer(f"litmus-{quantize}", (sys.executable, "-m", "serve", *args), "/ready", {"ignore_eos": True})


def transformers_peer(model: str, device: str) -> Peer:
    command = (sys.executable, "-m", "transformers.cli.transformers", "serve", model, "--continuous-batching", "--dtype", "bfloat16")
    extra_body = {"generation_config": '{"do_sample": false, "eos_token_id": -1}'}
    cache = ("--cb-num-blocks", str(CACHE_BLOCKS), "--device", device, "--port", PORT_PLACEHOLDER)
    return Peer("transformers-serve", command + cache, "/health", extra_body, sends_done=False)


def llama_peer(binary: Path, gguf: Path, slots: int, context: int) -> Peer:
    """llama-server with `context` tokens for each slot.

    Its cache of past prompts is off: no prompt is sent twice, so the cache would only cost time.
    """
    size = ("-np", str(slots), "-c", str(slots * context), "-t", str(available_cores()))
    options = (*size, "--cache-ram", "0", "--no-webui", "--host", "127.0.0.1")
    command = (*with_library_path(binary), "-m", str(gguf), *options, "--port", PORT_PLACEHOLDER)
    return Peer(f"llama-{gguf.stem}", command, "/health", {"ignore_eos": True})


def with_library_path(binary: Path) -> tuple[str, ...]:
    """Returns the command for a program of llama.cpp whose libraries are in its own folder."""
    return "env", f"LD_LIBRARY_PATH={binary.parent}", str(binary)


def find_llama_server(path: Path | None) -> Path:
    """Returns `path`, or llama-server on PATH. Raises `PeerAbsent`."""
    binary = path or (Path(on_path) if (on_path := shutil.which("llama-server")) else None)
    if binary is None or not binary.is_file():
        raise PeerAbsent(f"{path} is no file" if path else "no llama-server on PATH")
    return binary.resolve()


def llama_server_version(path: Path | None) -> str | None:
    try:
        completed = subprocess.run([*with_library_path(find_llama_server(path)), "--version"], capture_output=True, text=True)
    except PeerAbsent:
        return None
    return next(iter((completed.stdout + completed.stderr).splitlines()), None)


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def running(peer: Peer, folder: Path) -> Iterator[Server]:
    """Starts the server, with its log in `folder`, and yields it once it is ready. Ends all its processes. Raises `PeerFailed`."""
    port = free_port()
    server = Server(peer, f"http://127.0.0.1:{port}")
    log = folder / f"engine-{peer.name}.log"
    command = [str(port) if arg == PORT_PLACEHOLDER else arg for arg in peer.command]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        with stoppable():
            _wait_ready(process, server, log)
            yield server
    finally:
        _stop(process)


@contextmanager
def stoppable() -> Iterator[None]:
    """While open, SIGTERM interrupts this program as Ctrl-C does, so that what it has started ends with it. For the main thread."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait_ready(process: subprocess.Popen[bytes], server: Server, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise PeerFailed(
                f"{server.peer.name} ended with code {process.returncode}: {lines[-1] if lines else 'nothing in its log'} ({log})"
            )
        with suppress(httpx.TransportError):
            if httpx.get(server.url + server.peer.ready_route, timeout=5).status_code == httpx.codes.OK:
                return
        time.sleep(POLL_INTERVAL_S)
    raise PeerFailed(f"{server.peer.name} was not ready after {START_TIMEOUT_S} s ({log})")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Terminates the server, then kills its process group, which the server leads."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
