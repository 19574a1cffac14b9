"""Two models in one server: the `model` field selects one, and the death of one worker leaves the other model served."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import torch
from ports import free_port
from serving import ENVIRONMENT, ROOT, RunningServer, failed_start, serving, wait_for
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "Once upon a time"
LATE = '''"""A model whose loading fails only after another one is served."""

import contextlib
import sys
import time
from dataclasses import replace

import httpx
from fakes import FACTS
from swapping import SlowEngine

from app.errors import SetupError


def build(settings, assignment):
    if assignment.worker == 0:
        return SlowEngine("first"), replace(FACTS, name=settings.served_name)
    while True:
        with contextlib.suppress(httpx.TransportError):
            if "ready" in httpx.get(f"http://127.0.0.1:{sys.argv[2]}/ready").json()["models"].values():
                raise SetupError("came too late")
        time.sleep(0.1)


if __name__ == "__main__":
    from serve import __main__, server
    from serve.workers import forkserver

    forkserver.PRELOAD = "fakes"
    create = server.create_server
    server.create_server = lambda settings, build, add_routes: create(settings, "late:build", add_routes)
    __main__.main()
'''


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, other_folder: Path) -> Iterator[RunningServer]:
    further = json.dumps([{"path": str(other_folder), "name": "other", "slots": 3}])
    with serving(
        tmp_path_factory.mktemp("models"), "--model", str(tiny_folder), "--model.name", "one", "--model.slots", "2", "--models", further
    ) as running:
        yield running


def complete(running: RunningServer, **fields: Any) -> httpx.Response:
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, **fields}
    return httpx.post(f"{running.url}/v1/completions", json=body, timeout=60)


def expected(folder: Path) -> str:
    """The greedy answer of transformers' `generate`."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_both_are_listed_and_the_first_is_the_default(running: RunningServer) -> None:
    one, other = httpx.get(f"{running.url}/v1/models").json()["data"]
    assert (one["id"], one["default"], one["max_model_len"], one["slots"]) == ("one", True, 128, 2)
    assert (other["id"], other["default"], other["max_model_len"], other["slots"]) == ("other", False, 96, 3)
    assert one["revision"] != other["revision"]
    assert httpx.get(f"{running.url}/v1/models/other").json() == other
    assert httpx.get(f"{running.url}/ready").json() == {"status": "ready", "models": {"one": "ready", "other": "ready"}}
    slots = running.slots(model="other")
    assert (slots["model"], len(slots["slots"])) == ("other", 3)
    assert httpx.get(f"{running.url}/slots", params={"model": "none"}).status_code == 404


def test_each_answers_for_itself(running: RunningServer, tiny_folder: Path, other_folder: Path) -> None:
    for fields, name, folder in (
        ({}, "one", tiny_folder),
        ({"model": "one"}, "one", tiny_folder),
        ({"model": "other"}, "other", other_folder),
    ):
        answer = complete(running, **fields).raise_for_status().json()
        assert (answer["model"], answer["choices"][0]["text"]) == (name, expected(folder))
        stream = running.client().completions.create(model=name, prompt=PROMPT, max_tokens=12, temperature=0, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == expected(folder)
    scores = [
        httpx.post(f"{running.url}/v1/score", json={"text": PROMPT * 3, "model": name, "methods": ["perplexity"]}, timeout=60).json()
        for name in ("one", "other")
    ]
    assert [answer["model"] for answer in scores] == ["one", "other"]
    assert scores[0]["data"][0]["scores"] != scores[1]["data"][0]["scores"]


def test_each_has_its_own_context(running: RunningServer) -> None:
    assert complete(running, prompt="a" * 99, max_tokens=1).status_code == 200
    refused = complete(running, prompt="a" * 99, max_tokens=1, model="other").json()["error"]
    assert refused["code"] == "context_length_exceeded" and "the context of other holds 96" in refused["message"]


def test_a_model_that_is_not_served_is_a_404_that_names_those_that_are(running: RunningServer) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here; this server has 'one', 'other'"):
        running.client().completions.create(model="gpt-4", prompt="a")


def test_one_is_killed_and_the_other_serves_on(running: RunningServer) -> None:
    with running.no_new_workers():
        running.worker().kill()  # that of the first model
        wait_for(lambda: httpx.get(f"{running.url}/ready").status_code == 503)
        readiness = httpx.get(f"{running.url}/ready").json()
        assert (readiness["status"], readiness["models"]) == ("loading", {"one": "loading", "other": "ready"})
        assert complete(running, model="other").status_code == 200
        refused = complete(running)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    running.wait_ready()
    assert complete(running).json()["model"] == "one"


def test_a_killed_main_process_takes_the_others_with_it_and_frees_the_port(running: RunningServer) -> None:
    """The last test of this server: it ends it."""
    processes = running.children()
    assert len(processes) >= 3
    running.process.kill()
    assert psutil.wait_procs(processes, timeout=60)[1] == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", int(running.url.rsplit(":", 1)[1])))


def test_a_further_model_that_cannot_be_loaded_ends_the_start(tmp_path: Path, tiny_folder: Path) -> None:
    further = json.dumps([{"path": str(tiny_folder), "name": "other", "quantize": "nf4", "dtype": "float16"}])
    said = failed_start("--model", str(tiny_folder), "--models", further)
    assert "litmus: other: model.dtype: bitsandbytes computes in" in said
    assert "the worker of model 'other' ended while it was loading the model" in said


def test_a_further_model_that_fails_when_the_first_already_serves_ends_the_server(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "late.py").write_text(LATE)
    further = json.dumps([{"path": str(tiny_folder), "name": "other"}])
    command = [sys.executable, str(tmp_path / "late.py"), "--port", str(free_port()), "--ui.enabled", "false"]
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "tests"), str(ROOT)])}
    result = subprocess.run(
        [*command, "--model", str(tiny_folder), "--models", further],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("litmus: other: came too late") == 1
    assert result.stderr.splitlines()[-1].startswith("litmus: the worker of model 'other' ended while it was loading the model")
