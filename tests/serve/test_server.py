"""The server in a process of its own: under load, killed, stopped, misconfigured."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from ports import free_port
from serving import ENVIRONMENT, ROOT, RunningServer, failed_start, serving, wait_for

from serve.server import _add_docs

SLOW = '''"""A model that takes an hour to load."""

import time


def build(settings, assignment):
    time.sleep(3600)


if __name__ == "__main__":
    from serve import __main__, server
    from serve.workers import forkserver

    forkserver.PRELOAD = "time"
    create = server.create_server
    server.create_server = lambda settings, build, add_routes: create(settings, "slow:build", add_routes)
    __main__.main()
'''


ENDLESS = ("--model.context", "100000", "--model.slots", "12", "--queue.max_waiting", "4", "--server.drain_s", "120")
WAIT_S = 60  # for what takes no time on a machine that is not busy


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory, endless_folder: Path) -> Iterator[RunningServer]:
    """A server whose answers take long."""
    with serving(tmp_path_factory.mktemp("endless"), "--model", str(endless_folder), *ENDLESS) as running:
        yield running


def test_clients_that_leave_free_their_slots(endless: RunningServer) -> None:
    """A third request is refused while two streams take all slots and waiting places, and served after their clients left."""
    url, body = f"{endless.url}/v1/completions", {"prompt": "Once", "max_tokens": 90_000, "stream": True}
    with httpx.Client(timeout=60) as client:
        with client.stream("POST", url, json={**body, "n": 12}) as first:
            lines = first.iter_lines()  # keep a reference: a garbage-collected iterator closes its response
            next(lines)
            with client.stream("POST", url, json={**body, "n": 4}) as second:
                assert second.status_code == 200
                third = client.post(url, json={"prompt": "a", "max_tokens": 1})
                assert (third.status_code, third.headers["retry-after"]) == (429, "1")

        def served() -> bool:
            """Whether none of the slots and waiting places is taken."""
            return client.post(url, json={"prompt": "a", "max_tokens": 1, "n": 16}).status_code == 200

        wait_for(served)
        # a request that is not streamed must free its slots, too, when its client gives up
        with pytest.raises(httpx.ReadTimeout):
            client.post(url, json={**body, "stream": False, "n": 16}, timeout=0.5)
        wait_for(served)  # far longer than that, and far shorter than its answer takes


def test_a_worker_killed_or_stopped_under_load_loses_no_answer(endless: RunningServer) -> None:
    """16 requests are in flight, 4 of them wait. All answers are those of an undisturbed worker."""

    def read(seed: int, started: threading.Semaphore) -> tuple[str, int]:
        """The answer, and how often it was interrupted."""
        body = {"prompt": "Once", "max_tokens": 400, "seed": seed, "temperature": 1, "stream": seed % 3 > 0}
        text, interruptions = "", 0
        with httpx.stream("POST", f"{endless.url}/v1/completions", json=body, timeout=180) as response:
            started.release()
            for line in response.iter_lines():
                interruptions += line.startswith(": interrupted")
                data = line.removeprefix("data: ")
                if data.startswith("{"):
                    text += "".join(choice["text"] for choice in json.loads(data)["choices"])
                    started.release()
        return text, interruptions

    with ThreadPoolExecutor(16) as pool:

        def read_all(disturb: Callable[[], None] | None = None) -> tuple[list[str], int]:
            started = threading.Semaphore(0)
            jobs = [pool.submit(read, seed, started) for seed in range(16)]
            for _ in range(200):
                assert started.acquire(timeout=WAIT_S)
            if disturb is not None:
                disturb()
            results = [job.result(180) for job in jobs]
            return [text for text, _ in results], sum(interruptions for _, interruptions in results)

        def kill(worker: psutil.Process) -> None:
            with endless.no_new_workers():
                worker.kill()
                wait_for(lambda: httpx.get(f"{endless.url}/ready").status_code == 503)
                refused = httpx.post(f"{endless.url}/v1/completions", json={"prompt": "a"})
                assert (refused.status_code, refused.json()["error"]["code"]) in {(503, "not_ready"), (429, "queue_full")}

        undisturbed, _ = read_all()
        for disturb in (kill, psutil.Process.suspend):
            interruptions, tries = 0, 0
            while not interruptions:  # all may be complete before a busy machine comes to it
                tries += 1
                worker = endless.worker()
                answers, interruptions = read_all(partial(disturb, worker))
                assert answers == undisturbed and tries < 5
                assert psutil.wait_procs([worker], timeout=WAIT_S)[1] == []
                endless.wait_ready()
            assert endless.worker().pid != worker.pid


def test_sigterm_under_load_finishes_what_is_in_flight_and_leaves_no_process(endless: RunningServer) -> None:
    """Four answers have begun, and the worker, which is stopped meanwhile, has not heard of four others. The last test of this server: it
    ends it.
    """
    with ThreadPoolExecutor(8) as pool:
        processes, worker = endless.children(), endless.worker()
        started = threading.Semaphore(0)

        def read_stream(seed: int) -> str:
            body = {"prompt": "Once", "max_tokens": 600, "stream": True, "seed": seed}
            text = ""
            with httpx.stream("POST", f"{endless.url}/v1/completions", json=body, timeout=180) as response:
                for piece in response.iter_text():
                    if not text:
                        started.release()
                    text += piece
            return text

        for _ in range(5):  # all may be complete before a busy machine comes to it
            begun = [pool.submit(read_stream, seed) for seed in range(4)]
            for _ in begun:
                assert started.acquire(timeout=WAIT_S)
            worker.suspend()
            if in_flight(endless.url) == 4:
                break
            worker.resume()
            assert all(job.result(WAIT_S) for job in begun)
        later = [pool.submit(read_stream, seed) for seed in range(4, 8)]
        wait_for(lambda: in_flight(endless.url) == 8)
        for process in [*processes, endless.process]:  # as a service manager may do, or a shell
            process.send_signal(signal.SIGTERM)
        wait_for(lambda: refuses(endless.url))
        assert not any(job.done() for job in later)
        worker.resume()
        for job in [*begun, *later]:
            text = job.result(2 * WAIT_S)
            assert text.rstrip().endswith("data: [DONE]")
            assert '"error"' not in text
        assert endless.process.wait(WAIT_S) == 0
        assert psutil.wait_procs(processes, timeout=WAIT_S)[1] == []
        assert not re.search("Traceback|leaked", endless.log.read_text())


def in_flight(url: str) -> int:
    """Answers that the first model has been asked for and has not finished."""
    count: int = httpx.get(f"{url}/admin/models").json()["data"][0]["in_flight"]
    return count


def refuses(url: str) -> bool:
    """Whether nobody accepts connections."""
    try:
        httpx.get(f"{url}/ready")
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        return False
    return False


def test_a_server_listens_while_its_model_loads_and_can_be_stopped_meanwhile(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    port = free_port()
    command = [sys.executable, str(tmp_path / "slow.py"), "--port", str(port), "--ui.enabled", "false", "--model", str(tiny_folder)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: listens(url), 2 * WAIT_S)
        assert httpx.get(f"{url}/health").status_code == 200
        readiness = httpx.get(f"{url}/ready")
        assert (readiness.status_code, readiness.json()["status"]) == (503, "loading")
        refused = httpx.post(f"{url}/v1/completions", json={"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (503, "not_ready", "1")
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(WAIT_S) == 0
        assert psutil.wait_procs(children, timeout=WAIT_S)[1] == []


def listens(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/no/such/model"], "model.path: /no/such/model is neither a folder with a config.json nor a GGUF file"),
        (["--quantize", "int3"], "model.quantize"),
        (["--model.cache_tokens", "1000000000000", "--model", "{endless}"], "GiB does not fit cpu"),
    ],
)
def test_a_start_that_cannot_work_ends_with_a_message(endless_folder: Path, arguments: list[str], message: str) -> None:
    said = failed_start(*[word.format(endless=endless_folder) for word in arguments])
    assert message in said
    assert "Traceback" not in said


def test_a_port_in_use_ends_with_a_message() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "serve", "--port", str(port)]
        result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 2
    assert result.stderr == f"litmus: port {port} on 127.0.0.1 cannot be used (Address already in use); choose another with --port\n"


def test_the_documentation_answers_head_as_well() -> None:
    app = FastAPI()
    _add_docs(app)
    client = TestClient(app)
    assert [client.head(path).status_code for path in ("/docs", "/docs/static/swagger-ui.css")] == [200, 200]
    assert "swagger-ui" in client.get("/docs").text
