"""The server in a process of its own, with real models and the official client: under load, killed, stopped, misconfigured."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from serving import ENVIRONMENT, ROOT, RunningServer, serving, wait_for

SLOW = '''"""A model that takes an hour to load."""

import time


def build(settings, assignment):
    time.sleep(3600)


if __name__ == "__main__":
    from serve import __main__, server

    create = server.create_server
    server.create_server = lambda settings, build, add_routes: create(settings, "slow:build", add_routes)
    __main__.main()
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


def stream(client: openai.OpenAI, prompt: str, seed: int, max_tokens: int = 24) -> str:
    chunks = client.chat.completions.create(
        model="storyteller", messages=[{"role": "user", "content": prompt}], seed=seed, max_tokens=max_tokens, temperature=0.9, stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def score(url: str, text: str) -> dict[str, Any]:
    (item,) = httpx.post(f"{url}/v1/score", json={"text": text}, timeout=120).raise_for_status().json()["data"]
    return item


def test_the_official_client_chats_and_completes(server: RunningServer) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["storyteller"]
    answer = client.chat.completions.create(
        model="storyteller", messages=[{"role": "user", "content": "Tell me a story about a fox."}], seed=3, max_tokens=24, temperature=0.9
    )
    assert answer.usage is not None and 1 <= answer.usage.completion_tokens <= 24
    assert answer.choices[0].message.content == stream(client, "Tell me a story about a fox.", 3)
    text = client.completions.create(model="storyteller", prompt="Once upon a time", max_tokens=5, temperature=0).choices[0]
    assert (text.finish_reason, bool(text.text)) == ("length", True)
    with pytest.raises(openai.BadRequestError, match="suffix") as refused:
        client.completions.create(model="storyteller", prompt="a", suffix="b")
    assert refused.value.param == "suffix"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt="a")


def test_stop_strings_end_the_answer(server: RunningServer) -> None:
    client = server.client()
    whole = client.completions.create(model="storyteller", prompt="Once upon a time", max_tokens=40, temperature=0).choices[0].text
    stop = whole.split()[5]
    cut = client.completions.create(model="storyteller", prompt="Once upon a time", max_tokens=40, temperature=0, stop=stop).choices[0]
    assert (cut.text, cut.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_32_chats_and_64_scores_at_once_each_get_their_own_answer(server: RunningServer) -> None:
    """No answer is lost or mixed up: each equals the answer to the same request sent alone."""
    client, rng = server.client(), random.Random(0)
    nouns = "fox crow king wolf girl bear lamp ship tower garden mouse giant witch well road storm".split()
    prompts = [f"Tell me a story about a {rng.choice(nouns)} and a {rng.choice(nouns)}." for _ in range(32)]
    texts = [" ".join(rng.choice(nouns) for _ in range(rng.randint(5, 300))) for _ in range(64)]
    with ThreadPoolExecutor(96) as pool:
        chats = [pool.submit(stream, client, prompt, seed) for seed, prompt in enumerate(prompts)]
        scores = [pool.submit(score, server.url, text) for text in texts]
        together = [future.result(180) for future in chats], [future.result(180) for future in scores]
    alone = [stream(client, prompt, seed) for seed, prompt in enumerate(prompts)]
    assert together[0] == alone
    assert len(set(alone)) == 32
    for item, text in zip(together[1], texts, strict=True):
        single = score(server.url, text)
        assert item["scored_tokens"] == single["scored_tokens"]
        assert item["scores"]["binoculars"] == pytest.approx(single["scores"]["binoculars"], abs=1e-4)


def test_the_docs_and_the_schema_come_from_this_machine(server: RunningServer) -> None:
    page = httpx.get(f"{server.url}/docs").text
    assert "https://" not in page
    assert httpx.get(f"{server.url}/docs/static/swagger-ui-bundle.js").status_code == 200
    schema = httpx.get(f"{server.url}/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/score", "/health", "/ready"} <= set(schema["paths"])
    assert schema["components"]["schemas"]["ScoreRequest"]["examples"]
    assert not [path for path in schema["paths"] if "internal" in path]


def test_a_body_of_ten_megabytes_is_refused(server: RunningServer) -> None:
    response = httpx.post(f"{server.url}/v1/score", json={"text": "a" * 10_000_000}, timeout=30)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def test_only_the_worker_holds_torch(server: RunningServer) -> None:
    processes = [psutil.Process(server.process.pid), *server.children()]
    with_torch = [process.pid for process in processes if "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()]
    assert with_torch == [server.worker().pid]


def test_no_text_reaches_the_log(server: RunningServer) -> None:
    secret = "xylophone-quartz"
    score(server.url, secret)
    stream(server.client(), secret, 1)
    httpx.post(f"{server.url}/v1/score", json={"text": secret, "methods": ["magic"]})
    assert secret not in server.log.read_text()


def test_clients_that_leave_free_their_slots(tmp_path: Path, endless_folder: Path) -> None:
    """One slot and one waiting place: a third request is refused while two streams run, and served after their clients left."""
    arguments = ["--model", str(endless_folder), "--model.context", "100000", "--model.slots", "1", "--queue.max_waiting", "1"]
    with serving(tmp_path, *arguments) as running:
        body = {"prompt": "Once", "max_tokens": 90_000, "stream": True}
        with httpx.Client(timeout=60) as client:
            with client.stream("POST", f"{running.url}/v1/completions", json=body) as first:
                lines = first.iter_lines()  # keep a reference: a garbage-collected iterator closes its response
                next(lines)
                with client.stream("POST", f"{running.url}/v1/completions", json=body) as second:
                    assert second.status_code == 200
                    third = client.post(f"{running.url}/v1/completions", json={"prompt": "a", "max_tokens": 1})
                    assert (third.status_code, third.headers["retry-after"]) == (429, "1")
            began = time.monotonic()

            def served() -> bool:
                return client.post(f"{running.url}/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200

            wait_for(served, 5)
            # a request that is not streamed must free its slots, too, when its client gives up
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{running.url}/v1/completions", json={**body, "stream": False, "n": 2}, timeout=0.5)
            wait_for(served, 5)
            assert time.monotonic() - began < 12


def test_a_worker_killed_or_stopped_under_load_loses_no_answer(tmp_path: Path, endless_folder: Path) -> None:
    """24 requests are in flight, 12 of them wait. All answers are those of an undisturbed worker."""
    arguments = ["--model", str(endless_folder), "--model.slots", "12"]
    with serving(tmp_path, *arguments) as running, ThreadPoolExecutor(24) as pool:

        def read(seed: int, started: threading.Semaphore) -> tuple[str, int]:
            """The answer, and how often it was interrupted."""
            body = {"prompt": "Once", "max_tokens": 400, "seed": seed, "temperature": 1, "stream": seed % 3 > 0}
            text, interruptions = "", 0
            with httpx.stream("POST", f"{running.url}/v1/completions", json=body, timeout=60) as response:
                started.release()
                for line in response.iter_lines():
                    interruptions += line.startswith(": interrupted")
                    data = line.removeprefix("data: ")
                    if data.startswith("{"):
                        text += "".join(choice["text"] for choice in json.loads(data)["choices"])
                        started.release()
            return text, interruptions

        def read_all(disturb: Callable[[], None] | None = None) -> list[tuple[str, int]]:
            started = threading.Semaphore(0)
            jobs = [pool.submit(read, seed, started) for seed in range(24)]
            for _ in range(200):
                assert started.acquire(timeout=30)
            if disturb is not None:
                disturb()
            return [job.result(60) for job in jobs]

        undisturbed = read_all()
        worker = running.worker()
        killed = read_all(worker.kill)
        assert [text for text, _ in killed] == [text for text, _ in undisturbed]
        assert sum(interruptions for _, interruptions in killed) > 0
        running.wait_ready()
        stopped = running.worker()
        assert stopped.pid != worker.pid
        assert [text for text, _ in read_all(stopped.suspend)] == [text for text, _ in undisturbed]
        assert psutil.wait_procs([stopped], timeout=1)[1] == []


def test_sigterm_under_load_finishes_what_is_in_flight_and_leaves_no_process(tmp_path: Path, endless_folder: Path) -> None:
    with serving(tmp_path, "--model", str(endless_folder)) as running, ThreadPoolExecutor(8) as pool:
        processes = running.children()
        started = threading.Semaphore(0)

        def read_stream(seed: int) -> str:
            body = {"prompt": "Once", "max_tokens": 600, "stream": True, "seed": seed}
            text = ""
            with httpx.stream("POST", f"{running.url}/v1/completions", json=body, timeout=60) as response:
                for piece in response.iter_text():
                    if not text:
                        started.release()
                    text += piece
            return text

        jobs = [pool.submit(read_stream, seed) for seed in range(8)]
        for _ in jobs:
            assert started.acquire(timeout=30)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert not all(job.done() for job in jobs), "the answers were too short to be caught in flight"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{running.url}/ready", timeout=3)
        for job in jobs:
            text = job.result(60)
            assert text.rstrip().endswith("data: [DONE]")
            assert '"error"' not in text
        assert running.process.wait(40) == 0
        assert psutil.wait_procs(processes, timeout=5)[1] == []
        assert not re.search("Traceback|leaked", running.log.read_text())


def test_a_killed_main_process_takes_the_others_with_it_and_frees_the_port(tmp_path: Path, tiny_folder: Path) -> None:
    with serving(tmp_path, "--model", str(tiny_folder)) as running:
        processes = running.children()
        assert len(processes) >= 3
        running.process.kill()
        assert psutil.wait_procs(processes, timeout=10)[1] == []
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", int(running.url.rsplit(":", 1)[1])))


def test_a_killed_api_process_ends_the_server(tmp_path: Path, tiny_folder: Path) -> None:
    with serving(tmp_path, "--model", str(tiny_folder)) as running:
        processes = running.children()
        forked = [process for process in processes if process.cmdline() == psutil.Process(running.process.pid).cmdline()]
        max(forked, key=lambda process: process.create_time()).kill()  # the other one holds the queues
        assert running.process.wait(20) == 2
        assert psutil.wait_procs(processes, timeout=5)[1] == []
        assert running.log.read_text().splitlines()[-1].startswith("litmus: the process that answers requests ended")


def test_a_server_listens_while_its_model_loads_and_can_be_stopped_meanwhile(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, str(tmp_path / "slow.py"), "--port", "18768", "--ui.enabled", "false", "--model", str(tiny_folder)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        url = "http://127.0.0.1:18768"
        wait_for(lambda: listens(url), 60)
        assert httpx.get(f"{url}/health").status_code == 200
        readiness = httpx.get(f"{url}/ready")
        assert (readiness.status_code, readiness.json()["status"]) == (503, "loading")
        refused = httpx.post(f"{url}/v1/completions", json={"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (503, "not_ready", "1")
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(20) == 0
        assert psutil.wait_procs(children, timeout=5)[1] == []


def listens(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/no/such/model"], "model.path: /no/such/model is neither a folder with a config.json nor a GGUF file"),
        (["--device", "cuda:9"], "cuda:9 does not exist"),
        (["--quantize", "int3"], "model.quantize"),
        (["--model.slots", "1024", "--model.context", "1000000", "--model", "{endless}"], "slots do not fit cpu"),
    ],
)
def test_a_start_that_cannot_work_ends_with_a_message(endless_folder: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "serve", "--port", "18765", *[word.format(endless=endless_folder) for word in arguments]]
    result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=90, check=False)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_ends_with_a_message() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "serve", "--port", str(port)]
        result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr == f"litmus: port {port} on 127.0.0.1 cannot be used (Address already in use); choose another with --port\n"
