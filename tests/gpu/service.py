"""The server itself on the card, over HTTP: 32 clients, one replica and two, and a worker that is killed."""

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from gpu.machine import card_used
from gpu.marks import ONE_B, TINY, Shape
from gpu.report import Report
from gpu.running import release
from gpu.shapes import save_llama

from serve.workers.loop import WORKER_NAME

ROOT = Path(__file__).resolve().parent.parent.parent
CLIENTS, NEW = 32, 64
LEFT_BYTES = 200 * 2**20  # what a dead worker may seem to hold: the driver counts a little for each process
POLL_S = 0.05


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def workers(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.process.pid).children(recursive=True) if is_worker(child)]

    def wait_ready(self, seconds: float) -> float:
        """Returns how long it took."""
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            assert self.process.poll() is None, f"the server ended: {self.log.read_text(errors='replace')[-600:]}"
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/ready", timeout=2, trust_env=False).status_code == 200:
                    return time.monotonic() - begin
            time.sleep(POLL_S)
        raise AssertionError(f"the server was not ready after {seconds:.0f} s: {self.log.read_text(errors='replace')[-600:]}")


@contextmanager
def serving(folder: Path, options: Namespace, replicas: int, root: Path) -> Iterator[Running]:
    log = root / f"serve-{replicas}.log"
    command = [sys.executable, "-m", "serve", "--model", str(folder), "--device", options.device, "--port", str(options.port)]
    command += ["--ui.enabled", "false", "--jobs.enabled", "false", "--model.context", "512", "--model.replicas", str(replicas)]
    command += ["--model.slots", "32", "--model.dtype", "bfloat16", "--server.log_level", "warning"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield Running(process, f"http://127.0.0.1:{options.port}", log)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


async def chat(client: httpx.AsyncClient, model: str, number: int) -> tuple[float, int]:
    """Seconds to the first text, and tokens of the answer."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"question {number} " + "tell me a story " * 6}],
        "max_tokens": NEW,
        "temperature": 1.0,
        "seed": number,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begin, first, tokens = time.perf_counter(), None, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, f"HTTP {answer.status_code}: {(await answer.aread())[:200]!r}"
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            if first is None and any(choice["delta"].get("content") for choice in event["choices"]):
                first = time.perf_counter() - begin
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    assert tokens == NEW, f"{tokens} tokens instead of {NEW}"
    return first if first is not None else time.perf_counter() - begin, tokens


async def crowd(url: str, clients: int, rounds: int = 2) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False, limits=limits) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        await asyncio.gather(*[chat(client, model, 1000 + number) for number in range(clients)])
        begin = time.perf_counter()
        found = []
        for round_ in range(rounds):
            found += await asyncio.gather(*[chat(client, model, round_ * clients + number) for number in range(clients)])
    seconds = time.perf_counter() - begin
    return {
        "tokens_per_s": sum(tokens for _, tokens in found) / seconds,
        "ttft_p50_ms": 1000 * statistics.median(first for first, _ in found),
        "answers": len(found),
    }


def check_replicas(report: Report, folder: Path, options: Namespace, root: Path, replicas: int) -> None:
    before = card_used()
    clients = CLIENTS if options.device != "cpu" else 4
    with report.check(f"server, {replicas} replicas, {clients} clients") as found, serving(folder, options, replicas, root) as server:
        found["ready_s"] = server.wait_ready(min(90.0, report.left_s))
        found.update(asyncio.run(crowd(server.url, clients, 1 if options.device == "cpu" else 2)))
        if before is not None:
            found["card_bytes"] = (card_used() or 0) - before
        if replicas == 1:
            check_killed(report, server, before, clients)
    if before is not None:
        with report.check(f"server, {replicas} replicas: its end frees the card") as found:
            found["left_bytes"] = left_within(before, 5.0)
            assert found["left_bytes"] < LEFT_BYTES


def check_killed(report: Report, server: Running, before: int | None, clients: int) -> None:
    with report.check("SIGKILL of the worker: its memory is free again, the next worker answers") as found:
        (worker,) = server.workers()
        os.kill(worker.pid, signal.SIGKILL)
        if before is not None:
            found["left_bytes"] = left_within(before, 5.0)
            assert found["left_bytes"] < LEFT_BYTES, "the card still holds what the killed worker had"
        end = time.monotonic() + 20
        while server.workers() in ([], [worker]):
            assert time.monotonic() < end, "no new worker was started within 20 s"
            time.sleep(POLL_S)
        found["again_ready_s"] = server.wait_ready(min(90.0, report.left_s))
        found.update(asyncio.run(crowd(server.url, clients, 1)))


def left_within(before: int, seconds: float) -> int:
    """The least that is in use beyond `before` within so many seconds: a new worker takes memory only when it has imported torch."""
    least, end = sys.maxsize, time.monotonic() + seconds
    while time.monotonic() < end and least >= LEFT_BYTES:
        least = min(least, (card_used() or 0) - before)
        time.sleep(POLL_S)
    return least


def is_worker(process: psutil.Process) -> bool:
    """A process that has ended is none."""
    with contextlib.suppress(psutil.Error):
        return process.name() == WORKER_NAME
    return False


def run(report: Report, options: Namespace, shape: Shape | None = None) -> None:
    root = options.scratch or Path(tempfile.mkdtemp())
    shape = shape or (ONE_B if options.device != "cpu" else TINY)
    folder = root / "one-b"
    if not (folder / "complete").is_file():
        save_llama(shape, folder, torch.device(options.device))
    release()
    for replicas in (1, 2):
        if report.has(f"server, {replicas} replicas", 15):
            check_replicas(report, folder, options, root, replicas)
