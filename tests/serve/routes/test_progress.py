"""`return_progress`: chunks with `prompt_progress` before the first token, in llama-server's form, also when a worker dies meanwhile."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inprocess import CHAT, TEXT, LocalModel, LocalServer

from app.engine.events import Delta
from app.engine.notices import Interrupted, Progress, Waiting
from app.engine.request import Generate, SamplingParams
from app.settings import ModelSettings
from serve.wire.sse import comments
from serve.workers.fleet import Replica
from serve.workers.flight import Flight, JobEvents

LONG = "It was a dark night. " * 4  # 84 bytes, a token each


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Iterator[LocalModel]:
    settings = ModelSettings(path=str(tiny_folder), name="tiny", dtype="float32", device="cpu", slots=4, step_tokens=32)
    with LocalServer({"tiny": settings}).run() as server:
        yield server.model("tiny")


def parts(chunks: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The chunks that tell progress, and the others. None of the first comes after one of the others."""
    told = [chunk for chunk in chunks if "prompt_progress" in chunk]
    assert chunks[: len(told)] == told
    return told, chunks[len(told) :]


def numbers(chunks: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    assert all(set(chunk["prompt_progress"]) == {"total", "cache", "processed", "time_ms"} for chunk in chunks)
    return [tuple(chunk["prompt_progress"][name] for name in ("total", "cache", "processed")) for chunk in chunks]


def test_a_chat_tells_how_far_its_prompt_is_read(model: LocalModel) -> None:
    body = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 3, "seed": 1, "temperature": 1.5}
    told, rest = parts(model.stream(CHAT, **body, return_progress=True))
    assert numbers(told) == [(87, 0, 32), (87, 0, 64), (87, 0, 87)]
    assert [chunk["choices"] for chunk in told] == [
        [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]
        for delta in ({"role": "assistant", "content": None}, {"content": None}, {"content": None})
    ]
    assert {(chunk["id"], chunk["object"]) for chunk in told + rest} == {(rest[0]["id"], "chat.completion.chunk")}
    times = [chunk["prompt_progress"]["time_ms"] for chunk in told]
    assert times == sorted(times) and times[0] >= 0
    asked, plain = (
        "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in each) for each in (rest, model.stream(CHAT, **body))
    )
    assert asked == plain


def test_the_cache_counts_as_read_and_nobody_else_is_told(model: LocalModel) -> None:
    model.stream(TEXT, prompt=f"Twice. {LONG}", max_tokens=1)
    told, rest = parts(model.stream(TEXT, prompt=f"Twice. {LONG}", max_tokens=2, return_progress=True))
    (first,) = numbers(told)
    assert first[0] == first[2] == first[1] + 1 == 92
    assert told[0]["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": None}]
    for asked in ({}, {"return_progress": False}, {"return_progress": None}):
        assert parts(model.stream(TEXT, prompt=LONG, max_tokens=1, **asked))[0] == []
    assert rest[-1]["choices"][0]["finish_reason"] == "length"


def test_each_prompt_of_a_request_tells_of_its_own(model: LocalModel) -> None:
    chunks = model.stream(TEXT, prompt=["Aa" * 20, "Bb" * 10], max_tokens=1, return_progress=True, stream_options={"include_usage": True})
    told = [chunk for chunk in chunks if "prompt_progress" in chunk]
    last = {chunk["choices"][0]["index"]: chunk["prompt_progress"] for chunk in told}
    assert {index: (each["processed"], each["total"]) for index, each in last.items()} == {0: (41, 41), 1: (21, 21)}
    assert all(chunk["usage"] is None for chunk in told)


def test_the_official_client_joins_the_pieces(model: LocalModel) -> None:
    body = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 9, "seed": 1, "logit_bias": {"1": 100}}  # 1 ends the answer
    with model.client().chat.completions.stream(model="tiny", extra_body={"return_progress": True, "min_tokens": 3}, **body) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.role == "assistant"
    assert message.content == model.post(CHAT, **body, min_tokens=3)["choices"][0]["message"]["content"] != ""


@pytest.mark.parametrize(("path", "prompt"), [(CHAT, {"messages": [{"role": "user", "content": "a"}]}), (TEXT, {"prompt": "a"})])
def test_it_needs_a_stream(model: LocalModel, path: str, prompt: dict[str, Any]) -> None:
    error = model.refused(path, **prompt, max_tokens=1, return_progress=True)
    assert (error["param"], error["message"]) == ("return_progress", "return_progress needs stream: true")
    assert model.refused(path, **prompt, return_progress="yes")["param"] == "return_progress"
    model.post(path, **prompt, max_tokens=1, return_progress=False)


def test_other_routes_name_what_they_have_no_place_for(model: LocalModel) -> None:
    assert model.refused("/v1/responses", input="a", return_progress=True)["param"] == "return_progress"


def test_a_prompt_whose_worker_dies_is_read_again_and_told_again(model: LocalModel) -> None:
    prompt = f"A worker dies. {LONG}"
    model.worker.dies_after = 2
    told, rest = parts(model.stream(TEXT, prompt=prompt, max_tokens=3, temperature=0, return_progress=True))
    assert model.worker.dies_after is None
    assert [done for _, _, done in numbers(told)] == [32, 64, 32, 64, 96, 100]
    assert rest[-1]["choices"][0]["finish_reason"] == "length"


def test_an_answer_that_has_begun_goes_on_without_progress(model: LocalModel) -> None:
    prompt = f"Another dies. {LONG}"
    body = {"prompt": prompt, "max_tokens": 6, "temperature": 0}
    model.worker.dies_after = 6  # four chunks, and at least one token
    told, rest = parts(model.stream(TEXT, **body, return_progress=True))
    assert model.worker.dies_after is None
    assert [done for _, _, done in numbers(told)] == [32, 64, 96, 99]
    assert "".join(chunk["choices"][0]["text"] for chunk in rest) == model.complete(**body)["text"]


@pytest.mark.parametrize("search", [None, "a search"])
def test_the_rest_of_a_begun_job_asks_for_no_progress(search: Any) -> None:
    flight = Flight(Generate("a", (1, 2), 4, SamplingParams(), search=search, progress=True), JobEvents(["a"]), Replica(0, "fake"))
    flight.deliver(Progress("a", 2, 0, 2, 0.1))
    assert flight.rest() == flight.job, "nothing is sampled yet"
    flight.deliver(Delta("a", "x", (5,)))
    assert not flight.rest().progress
    assert [type(flight.events.queue.get_nowait()) for _ in range(2)] == [Progress, Delta]


def test_progress_is_no_comment() -> None:
    assert comments(Progress("a", 9, 0, 3, 0.1), False) == []
    assert len(comments(Waiting("a", 1, None), False)) == len(comments(Interrupted("a"), True)) == 1
