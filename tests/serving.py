"""Starts a server in a process of its own. Shared by the tests of serve/ and of the whole product."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
from ports import free_port

from serve.workers.loop import WORKER_NAME

ROOT = Path(__file__).resolve().parent.parent
START_S = 240  # far longer than a start takes, as all of these: a busy machine may keep a process waiting
PATIENCE_S = 60
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
HTTP = httpx.Client(timeout=20, trust_env=False)


@dataclass
class RunningServer:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def worker(self) -> psutil.Process:
        """The oldest worker process."""
        return self.workers()[0]

    def workers(self) -> list[psutil.Process]:
        return sorted((child for child in self.children() if name_of(child) == WORKER_NAME), key=psutil.Process.create_time)

    def slots(self, **query: str | int) -> dict[str, Any]:
        """What GET /slots tells; asked again while the engine does not answer in time."""
        answers: list[httpx.Response] = []

        def answered() -> bool:
            answers.append(httpx.get(f"{self.url}/slots", params=query))
            return answers[-1].status_code != 503

        wait_for(answered)
        state: dict[str, Any] = answers[-1].raise_for_status().json()
        return state

    @contextmanager
    def no_new_workers(self) -> Iterator[None]:
        """While open, no worker is started: the process that they are forked from is stopped."""
        parent = psutil.Process(self.worker().ppid())
        parent.suspend()
        try:
            yield
        finally:
            parent.resume()

    def wait_ready(self, seconds: float = START_S) -> None:
        wait_for(lambda: self.process.poll() is not None or is_ready(self.url), seconds)
        assert self.process.poll() is None, self.log.read_text()


def name_of(process: psutil.Process) -> str:
    """Empty for one that has just ended."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


def is_ready(url: str) -> bool:
    try:
        return HTTP.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def serving(folder: Path, *arguments: str, page: bool = False, program: tuple[str, ...] = ("-m", "serve")) -> Iterator[RunningServer]:
    port = free_port()
    log = folder / f"serve-{port}.log"
    model = () if "--model" in arguments else ("--model", str(ROOT / "models/storyteller"))
    command = [sys.executable, *program, "--port", str(port), "--ui.enabled", str(page), "--jobs.folder", str(folder / "jobs")]
    command += ["--jobs.train_nice", "0"]  # other tests leave nothing of the processor
    command += [*model, *arguments]
    with log.open("wb") as out:
        environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
    running = RunningServer(process, f"http://127.0.0.1:{port}", log)
    processes: list[psutil.Process] = []
    try:
        running.wait_ready()
        processes = running.children()
        yield running
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in psutil.wait_procs(processes, timeout=5)[1]:
            child.kill()


def failed_start(*arguments: str) -> str:
    """What `python -m serve` says, on a free port and without a page, when it cannot start."""
    command = [sys.executable, "-m", "serve", "--port", str(free_port()), "--ui.enabled", "false", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=START_S, check=False)
    assert result.returncode == 2, result.stderr
    return result.stderr
