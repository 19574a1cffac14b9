"""The server with the bundled models and the official client: many requests at once, the documents, what its processes hold and log."""

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from serving import RunningServer, wait_for


def stream(client: openai.OpenAI, prompt: str, seed: int, max_tokens: int = 24) -> str:
    chunks = client.chat.completions.create(
        model="storyteller", messages=[{"role": "user", "content": prompt}], seed=seed, max_tokens=max_tokens, temperature=0.9, stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def score(url: str, text: str) -> dict[str, Any]:
    (item,) = httpx.post(f"{url}/v1/score", json={"text": text}, timeout=600).raise_for_status().json()["data"]
    return item


def test_the_official_client_chats_and_completes(api: RunningServer) -> None:
    client = api.client()
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


def test_stop_strings_end_the_answer(api: RunningServer) -> None:
    client = api.client()
    whole = client.completions.create(model="storyteller", prompt="Once upon a time", max_tokens=40, temperature=0).choices[0].text
    stop = whole.split()[5]
    cut = client.completions.create(model="storyteller", prompt="Once upon a time", max_tokens=40, temperature=0, stop=stop).choices[0]
    assert (cut.text, cut.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_32_chats_and_64_scores_at_once_each_get_their_own_answer(api: RunningServer) -> None:
    """No answer is lost or mixed up: each equals the answer to the same request sent alone."""
    client, rng = api.client(), random.Random(0)
    nouns = "fox crow king wolf girl bear lamp ship tower garden mouse giant witch well road storm".split()
    prompts = [f"Tell me a story about a {rng.choice(nouns)} and a {rng.choice(nouns)}." for _ in range(32)]
    lengths = [rng.randint(200, 300) if number % 8 == 0 else rng.randint(5, 40) for number in range(64)]
    texts = [" ".join(rng.choice(nouns) for _ in range(length)) for length in lengths]
    with ThreadPoolExecutor(96) as pool:
        chats = [pool.submit(stream, client, prompt, seed, 12) for seed, prompt in enumerate(prompts)]
        scores = [pool.submit(score, api.url, text) for text in texts]
        together = [future.result(600) for future in chats], [future.result(600) for future in scores]
    alone = [stream(client, prompt, seed, 12) for seed, prompt in enumerate(prompts)]
    assert together[0] == alone
    assert len(set(alone)) == 32
    for item, text in zip(together[1], texts, strict=True):
        single = score(api.url, text)
        assert item["scored_tokens"] == single["scored_tokens"]
        assert item["scores"]["combined"] == pytest.approx(single["scores"]["combined"], abs=1e-3)


def test_the_docs_and_the_schema_come_from_this_machine(api: RunningServer) -> None:
    page = httpx.get(f"{api.url}/docs").text
    assert "https://" not in page
    assert httpx.get(f"{api.url}/docs/static/swagger-ui-bundle.js").status_code == 200
    schema = httpx.get(f"{api.url}/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/score", "/health", "/ready"} <= set(schema["paths"])
    assert schema["components"]["schemas"]["ScoreRequest"]["examples"]
    assert not [path for path in schema["paths"] if "internal" in path]


def test_a_body_of_ten_megabytes_is_refused(api: RunningServer) -> None:
    response = httpx.post(f"{api.url}/v1/score", json={"text": "a" * 10_000_000}, timeout=120)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def test_only_the_worker_and_the_process_it_is_forked_from_hold_torch(api: RunningServer) -> None:
    def with_torch() -> list[int]:
        found = []
        for process in (psutil.Process(api.process.pid), *api.children()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                found += [process.pid] if "libtorch" in Path(f"/proc/{process.pid}/maps").read_text() else []
        return found

    wait_for(lambda: with_torch() == [api.worker().ppid(), api.worker().pid])  # a process that trained a model may be about to end
    assert api.worker().ppid() != api.process.pid


def test_no_text_reaches_the_log(api: RunningServer) -> None:
    secret = "xylophone-quartz"
    score(api.url, secret)
    stream(api.client(), secret, 1)
    httpx.post(f"{api.url}/v1/score", json={"text": secret, "methods": ["magic"]})
    assert secret not in api.log.read_text()
