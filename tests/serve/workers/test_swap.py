"""A whole server whose models are loaded, swapped, unloaded and loaded again while clients are served. Its engines need no model."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serving import ROOT, RunningServer, serving, wait_for

CLIENTS = 16
TOKENS = 50
STREAMED = 20  # tokens of an answer during which something happens
WAIT_S = 60  # for what takes a second on a machine that is not busy


@dataclass
class Models:
    """The server, and a folder with a model for each version."""

    server: RunningServer
    folder: Path

    def post(self, name: str, **fields: Any) -> httpx.Response:
        return httpx.post(f"{self.server.url}/admin/models/{name}", json=fields)

    def delete(self, name: str, **query: str) -> httpx.Response:
        return httpx.delete(f"{self.server.url}/admin/models/{name}", params=query)

    def versions(self, name: str) -> list[dict[str, Any]]:
        listed = httpx.get(f"{self.server.url}/admin/models").json()["data"]
        return [version for version in listed if version["id"] == name]

    def wait_for(self, name: str, *statuses: str) -> list[dict[str, Any]]:
        wait_for(lambda: [version["status"] for version in self.versions(name)] == list(statuses))
        return self.versions(name)

    @contextmanager
    def stopped(self, version: str, file: str) -> Iterator[Path]:
        """While open, the version's workers do not load its model (`hold`), or give each answer one word (`stall`)."""
        path = self.folder / version / file
        path.touch()
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def workers(self) -> list[psutil.Process]:
        return self.server.workers()

    def stream(self, model: str, started: threading.Semaphore | None = None, tokens: int = TOKENS) -> "Streamed":
        """`started` is released at the first word, or comment."""
        body = {"model": model, "prompt": "Once", "max_tokens": tokens, "stream": True}
        streamed = Streamed([], set(), [], None)
        with httpx.stream("POST", f"{self.server.url}/v1/completions", json=body, timeout=120) as response:
            for line in response.iter_lines():
                is_first = not (streamed.words or streamed.comments)
                streamed.read(line)
                if started is not None and is_first and (streamed.words or streamed.comments):
                    started.release()
        return streamed


@dataclass
class Streamed:
    """What a stream brought: words, fingerprints, comments, and the error at its end."""

    words: list[str]
    fingerprints: set[str]
    comments: list[str]
    error: dict[str, Any] | None

    def read(self, line: str) -> None:
        data = line.removeprefix("data: ")
        if line.startswith(":"):
            self.comments.append(line)
        elif data.startswith("{"):
            chunk = json.loads(data)
            self.error = chunk.get("error", self.error)
            for choice in chunk.get("choices", ()):
                self.words += choice["text"].split()
                self.fingerprints.add(chunk["system_fingerprint"])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, endless_folder: Path) -> Iterator[Models]:
    folder = tmp_path_factory.mktemp("models")
    for name in ("one", "two", "slow", "refused", "hanging"):
        shutil.copytree(endless_folder, folder / name)
    (folder / "refused" / "worker.json").write_text(json.dumps({"refuse": "layers are missing"}))
    (folder / "hanging" / "hold").touch()
    (folder / "leaving").mkdir()
    (folder / "leaving" / "config.json").symlink_to("/etc/hostname")
    further = json.dumps([{"path": str(folder / "slow"), "name": "lazy", "idle_unload_s": 0.5}])
    arguments = ("--model", str(folder / "one"), "--model.name", "main", "--models", further)
    limits = ("--server.drain_s", "60", "--security.model_paths", json.dumps([str(folder)]))
    with serving(folder, *arguments, *limits, program=(str(ROOT / "tests/swapping.py"),)) as server:
        yield Models(server, folder)


def under_load(models: Models, name: str, act: Callable[[list["Streamed"]], None]) -> list[Streamed]:
    """What `CLIENTS` clients get that stream one answer after the other, from before `act` until after it; `act` sees what they have."""
    acted, started, answers = threading.Event(), threading.Semaphore(0), list[Streamed]()

    def client() -> None:
        while not acted.is_set():
            answers.append(models.stream(name, started))

    with ThreadPoolExecutor(CLIENTS) as pool:
        jobs: list[Future[None]] = [pool.submit(client) for _ in range(CLIENTS)]
        for _ in jobs:
            assert started.acquire(timeout=WAIT_S)
        try:
            act(answers)
        finally:
            acted.set()
        for job in jobs:
            job.result(WAIT_S)
    return answers


def test_a_swap_under_sixteen_streams_drops_none_and_each_answer_is_wholly_by_one_version(models: Models) -> None:
    (old,) = models.versions("main")
    assert (old["status"], old["revision"], old["loaded"], old["message"]) == ("served", "one", 1.0, None)
    models.wait_for("lazy", "unloaded")
    (worker,) = models.workers()

    def swap(answers: list[Streamed]) -> None:
        with models.stopped("two", "hold"):
            accepted = models.post("main", path=str(models.folder / "two"))
            assert accepted.status_code == 202, accepted.text
            loading = {"revision": None, "status": "loading", "loaded": None, "in_flight": 0, "bytes": None}
            assert accepted.json() == {**old, "path": str(models.folder / "two"), **loading}
            assert models.post("main").json()["error"]["code"] == models.delete("main").json()["error"]["code"] == "model_busy"
        wait_for(lambda: any(answer.words[-1:] == ["two"] for answer in answers))
        (new,) = [version for version in models.wait_for("main", "served") if version["revision"] == "two"]
        assert new["bytes"] > 0

    answers = under_load(models, "main", swap)
    assert all(answer.error is None and len(answer.words) == TOKENS for answer in answers)
    assert {(*sorted(set(answer.words)), *answer.fingerprints) for answer in answers} == {("one", "fp_one"), ("two", "fp_two")}
    card = httpx.get(f"{models.server.url}/v1/models/main").json()
    assert (card["revision"], card["default"], card["status"]) == ("two", True, "ready")
    assert b'fingerprint="fp_two"' in httpx.get(f"{models.server.url}/metrics").content
    assert models.server.slots()["model"] == "main"
    assert not worker.is_running() and len(models.workers()) == 1


@pytest.mark.parametrize(
    ("path", "reason"), [("refused", "layers are missing"), ("nowhere", "is neither a folder with a config.json"), ("hanging", "SIGKILL")]
)
def test_a_version_that_cannot_be_loaded_leaves_the_present_one_serving(models: Models, path: str, reason: str) -> None:
    before, workers = models.stream("main", tokens=3), models.workers()
    assert models.post("main", path=str(models.folder / path)).status_code == 202
    if path == "hanging":
        wait_for(lambda: len(models.workers()) > len(workers))
        next(worker for worker in models.workers() if worker not in workers).kill()
    _, failed = models.wait_for("main", "served", "failed")
    assert reason in failed["message"] and failed["bytes"] is None
    assert models.stream("main", tokens=3) == before
    assert models.workers() == workers
    assert httpx.get(f"{models.server.url}/ready").status_code == 200


def test_a_worker_that_was_swapped_in_is_replaced_when_it_dies(models: Models) -> None:
    """Its answers go on in the next one, and the version does not change."""
    before = httpx.get(f"{models.server.url}/v1/models/main").json()
    streamed = while_streaming(models, "main", "two", models.workers()[-1].kill)
    assert len(streamed.words) == STREAMED and any("interrupted" in comment for comment in streamed.comments)
    models.server.wait_ready()
    assert httpx.get(f"{models.server.url}/v1/models/main").json() == before


def test_an_idle_model_is_unloaded_and_a_request_loads_it_and_is_told(models: Models) -> None:
    (idle,) = models.wait_for("lazy", "unloaded")
    assert "no request for 0.5 s" in idle["message"] and (idle["bytes"], idle["loaded"]) == (None, 0)
    ready = httpx.get(f"{models.server.url}/ready")
    assert (ready.status_code, ready.json()["models"]["lazy"]) == (200, "unloaded")
    assert httpx.get(f"{models.server.url}/v1/models/lazy").json()["status"] == "unloaded"
    assert "was idle" in httpx.get(f"{models.server.url}/slots", params={"model": "lazy"}).json()["error"]["message"]
    with ThreadPoolExecutor(2) as pool, models.stopped("slow", "hold") as hold:
        late = httpx.post(f"{models.server.url}/v1/completions", json={"model": "lazy", "prompt": "a", "timeout_s": 0.05})
        assert late.json()["error"]["code"] == "deadline_exceeded"
        told = threading.Semaphore(0)
        waiting = [pool.submit(models.stream, "lazy", told, 5) for _ in range(2)]
        assert all(told.acquire(timeout=WAIT_S) for _ in waiting)
        hold.unlink()
        answers = [job.result(WAIT_S) for job in waiting]
    assert [answer.words for answer in answers] == [["slow"] * 5] * 2
    assert answers[0].comments and all(comment.startswith(": loading") for comment in answers[0].comments)
    models.wait_for("lazy", "unloaded")


def test_an_adapter_survives_the_death_of_a_worker_and_a_swap_and_is_unloaded(models: Models) -> None:
    """Its answers are wholly by one version of its base, and none is lost. Of one that cannot be loaded again it is said why."""
    url = models.server.url
    for name in ("pirate", "lost"):
        (models.folder / name).mkdir()
        body = {"lora_name": name, "lora_path": str(models.folder / name)}
        loaded = httpx.post(f"{url}/v1/load_lora_adapter", json=body)
        assert (loaded.status_code, loaded.text) == (200, f"Success: LoRA adapter '{name}' added successfully.")
    assert httpx.get(f"{url}/v1/models/pirate").json()["parent"] == "main"
    taken = models.post("lost", path=str(models.folder / "one"))
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "conflict")
    streamed = while_streaming(models, "pirate", "two", models.workers()[-1].kill)
    assert streamed.words == ["two+pirate"] * STREAMED and any("interrupted" in comment for comment in streamed.comments)
    models.server.wait_ready()
    (models.folder / "lost" / "worker.json").write_text(json.dumps({"refuse": "it is of another base"}))

    def swap(answers: list[Streamed]) -> None:
        assert models.post("main", path=str(models.folder / "one")).status_code == 202
        wait_for(lambda: [version["revision"] for version in models.versions("main")] == ["one"])
        wait_for(lambda: any(answer.words[-1:] == ["one+pirate"] for answer in answers))

    answers = under_load(models, "pirate", swap)
    assert all(answer.error is None and len(answer.words) == TOKENS for answer in answers)
    assert {(*sorted(set(answer.words)), *answer.fingerprints) for answer in answers} == {
        ("two+pirate", "fp_two_pirate"),
        ("one+pirate", "fp_one_pirate"),
    }
    assert models.versions("main")[0]["message"] == "it is of another base" and models.stream("main", tokens=3).words == ["one"] * 3
    lost = httpx.post(f"{url}/v1/completions", json={"model": "lost", "prompt": "a"})
    assert (lost.status_code, lost.json()["error"]["code"]) == (503, "adapter_not_loaded")
    unloaded = []

    def unload_all() -> None:
        unloaded.extend(unload(url, name) for name in ("pirate", "lost", "lost"))

    def gone() -> tuple[int, str]:
        refused = httpx.post(f"{url}/v1/completions", json={"model": "pirate", "prompt": "a", "max_tokens": 1})
        return refused.status_code, refused.json().get("error", {}).get("code", "")

    unloading = threading.Thread(target=unload_all)
    streamed = while_streaming(models, "pirate", "one", lambda: (unloading.start(), wait_for(lambda: gone() == (404, "model_not_found"))))
    unloading.join(WAIT_S)
    assert unloaded == [200, 200, 404] and streamed.words == ["one+pirate"] * STREAMED
    assert gone() == (404, "model_not_found")
    assert models.versions("main")[0]["message"] is None


def while_streaming(models: Models, name: str, version: str, act: Callable[[], object]) -> Streamed:
    """An answer by that version that begins before `act` and goes on after it."""
    with ThreadPoolExecutor(1) as pool:
        started = threading.Semaphore(0)
        with models.stopped(version, "stall"):
            answer = pool.submit(models.stream, name, started, STREAMED)
            assert started.acquire(timeout=WAIT_S)
            act()
        return answer.result(WAIT_S)


def unload(url: str, name: str) -> int:
    return httpx.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": name}, timeout=60).status_code


def test_a_new_model_is_added_and_deleted_under_load(models: Models) -> None:
    with models.stopped("one", "hold"):
        assert models.post("added", path=str(models.folder / "one"), slots=5).status_code == 202
        loading = httpx.post(f"{models.server.url}/v1/completions", json={"model": "added", "prompt": "a"})
        assert loading.status_code == 503 and "is being loaded" in loading.json()["error"]["message"]
    models.wait_for("added", "served")
    assert httpx.get(f"{models.server.url}/v1/models/added").json()["slots"] == 5
    assert "the default model" in models.delete("main").json()["error"]["message"]

    def delete(_: list[Streamed]) -> None:
        assert models.delete("added").status_code == 202
        assert models.wait_for("added", "unloaded")[0]["bytes"] is None

    answers = under_load(models, "added", delete)
    complete = [answer for answer in answers if answer.words]
    assert len(complete) >= CLIENTS and all(answer.words == ["one"] * TOKENS and answer.error is None for answer in complete)
    gone = httpx.post(f"{models.server.url}/v1/completions", json={"model": "added", "prompt": "a"})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
    assert "was unloaded" in gone.json()["error"]["message"]
    assert "added" not in httpx.get(f"{models.server.url}/ready").json()["models"]


def test_the_default_model_goes_when_another_one_takes_its_place(models: Models) -> None:
    """The last test of this server, which is stopped while it loads a model."""
    assert models.delete("main", default="nobody").status_code == 404
    assert models.delete("main", default="lazy").status_code == 202
    models.wait_for("main", "unloaded")
    (card,) = httpx.get(f"{models.server.url}/v1/models").json()["data"]
    assert (card["id"], card["default"]) == ("lazy", True)
    assert models.post("late", path=str(models.folder / "hanging")).status_code == 202
    wait_for(lambda: len(models.workers()) > 0)
    processes = models.server.children()
    models.server.process.terminate()
    assert models.server.process.wait(WAIT_S) == 0
    assert psutil.wait_procs(processes, timeout=WAIT_S)[1] == []
