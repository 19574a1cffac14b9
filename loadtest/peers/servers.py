"""Servers to be measured beside one another: how each is started and asked, and that nothing of it is left behind.

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

START_S = 300
STOP_S = 45
CHECK_S = 0.2
PORT = "{port}"  # stands in a command where the port goes
PAGES = 128  # of 256 tokens, for transformers' cache; left alone it would take most of the machine's memory


class PeerAbsent(Exception):
    """It is not on this machine; the message says what is missing."""


class PeerFailed(Exception):
    """It is there and did not do what it was asked."""


@dataclass(frozen=True, slots=True)
class Peer:
    """`extra` are body fields of its own; `done` tells whether it ends a stream with [DONE]."""

    name: str
    command: tuple[str, ...]
    ready: str
    extra: dict[str, Any] = field(default_factory=dict)
    done: bool = True


@dataclass(frozen=True, slots=True)
class Server:
    peer: Peer
    url: str


def litmus(model: str, quantize: str, device: str, slots: int) -> Peer:
    options = {
        "--model.path": model,
        "--model.quantize": quantize,
        "--model.dtype": "bfloat16",
        "--model.device": device,
        "--model.slots": str(slots),
        "--ui.enabled": "false",
        "--server.log_level": "warning",
        "--server.port": PORT,
    }
    words = [word for option in options.items() for word in option]
    return Peer(f"litmus-{quantize}", (sys.executable, "-m", "serve", *words), "/ready", {"ignore_eos": True})


def transformers(model: str, device: str) -> Peer:
    command = (sys.executable, "-m", "transformers.cli.transformers", "serve", model, "--continuous-batching", "--dtype", "bfloat16")
    extra = {"generation_config": '{"do_sample": false, "eos_token_id": -1}'}
    cache = ("--cb-num-blocks", str(PAGES), "--device", device, "--port", PORT)
    return Peer("transformers-serve", command + cache, "/health", extra, done=False)


def llama(binary: Path, gguf: Path, slots: int, context: int) -> Peer:
    """`context` tokens a slot. Its cache of past prompts is off: here no prompt comes twice, so it would only cost."""
    options = ("-np", str(slots), "-c", str(slots * context), "-t", str(cores()), "--cache-ram", "0", "--no-webui", "--host", "127.0.0.1")
    command = (*with_libraries(binary), "-m", str(gguf), *options, "--port", PORT)
    return Peer(f"llama-{gguf.stem}", command, "/health", {"ignore_eos": True})


def with_libraries(binary: Path) -> tuple[str, ...]:
    """Runs a program of llama.cpp whose libraries lie beside it."""
    return "env", f"LD_LIBRARY_PATH={binary.parent}", str(binary)


def find_llama(given: Path | None) -> Path:
    found = given or (Path(path) if (path := shutil.which("llama-server")) else None)
    if found is None or not found.is_file():
        raise PeerAbsent(f"{given} is no file" if given else "no llama-server on PATH")
    return found.resolve()


def llama_version(given: Path | None) -> str | None:
    try:
        done = subprocess.run([*with_libraries(find_llama(given)), "--version"], capture_output=True, text=True)
    except PeerAbsent:
        return None
    return next(iter((done.stdout + done.stderr).splitlines()), None)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def running(peer: Peer, folder: Path) -> Iterator[Server]:
    """The server, ready; its log in `folder`. It and what it started are ended afterwards. Raises `PeerFailed`."""
    port = free_port()
    server = Server(peer, f"http://127.0.0.1:{port}")
    log = folder / f"engine-{peer.name}.log"
    command = [str(port) if word == PORT else word for word in peer.command]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_ready(process, server, log)
        yield server
    finally:
        _stop(process)


def _wait_ready(process: subprocess.Popen[bytes], server: Server, log: Path) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise PeerFailed(f"{server.peer.name} ended with code {process.returncode}: {lines[-1] if lines else 'no word'} ({log})")
        with suppress(httpx.TransportError):
            if httpx.get(server.url + server.peer.ready, timeout=5).status_code == httpx.codes.OK:
                return
        time.sleep(CHECK_S)
    raise PeerFailed(f"{server.peer.name} was not ready after {START_S} s ({log})")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """By process group: the server leads one of its own."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
