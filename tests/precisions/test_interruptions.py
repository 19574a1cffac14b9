"""A worker dies in the middle of any kind of request, in every precision: the answer is the one of an undisturbed worker."""

import json
from typing import Any

import pytest
from inprocess import CHAT, TEXT, LocalModel
from precisions.asking import Plain, ask_all, check_same, requests
from precisions.conftest import PRECISIONS, RECORDED

STREAMED: dict[str, Any] = {
    "prompt": "Once upon a time",
    "temperature": 1.3,
    "seed": 5,
    "max_tokens": 24,
    "ignore_eos": True,
    "logprobs": 1,
}


def texts_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


@pytest.mark.parametrize("model", [*PRECISIONS, RECORDED], indirect=True)
def test_each_kind_of_request_goes_on_after_a_death(steady: LocalModel, plain: Plain) -> None:
    kinds, before = requests(), steady.worker.deaths
    for (path, body), undisturbed in zip(kinds, plain.requests, strict=True):
        for steps in (1, 7) if steady.name == "float32" else (4,):
            steady.worker.dies_after = steps
            check_same(undisturbed, steady.post(path, **body), f"{path} {sorted(body)} after {steps} steps")
            steady.worker.dies_after = None
    assert steady.worker.deaths - before > len(kinds) // 2, "most requests were answered before the worker could die"


@pytest.mark.parametrize("model", ["float32"], indirect=True)
def test_all_requests_of_a_crowd_go_on_after_a_death(steady: LocalModel, plain: Plain) -> None:
    sent = requests()
    steady.worker.dies_after = 9
    together = ask_all(steady, sent, at_once=True)
    assert steady.worker.dies_after is None
    for (path, body), one, other in zip(sent, plain.requests, together, strict=True):
        check_same(one, other, f"{path} {sorted(body)}")


def test_a_stream_says_that_it_was_interrupted_and_repeats_nothing(steady: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady.engine.drafter, "is_on", False)  # a step a token
    whole = steady.stream(TEXT, **STREAMED)
    steady.worker.dies_after = 6
    response = steady.http.post(TEXT, json={"model": steady.name, "stream": True, **STREAMED})
    comments = [line for line in response.text.split("\n") if line.startswith(": interrupted")]
    assert len(comments) == 1 and steady.worker.dies_after is None
    assert texts_of(whole) and texts_of(steady.stream(TEXT, **STREAMED)) == texts_of(whole)
    pieces = [line for line in response.text.split("\n") if line.startswith("data: ")]
    assert len(pieces) == len(whole) + 1  # [DONE]


def test_a_stop_string_across_the_death_is_found(steady: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady.engine.drafter, "is_on", False)  # a step a token
    text = steady.post(TEXT, **STREAMED)["choices"][0]["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 5]
    undisturbed = steady.post(TEXT, **STREAMED, stop=stop)
    for steps in range(1, undisturbed["usage"]["completion_tokens"], 1 if steady.name == "float32" else 3):
        steady.worker.dies_after = steps
        check_same(undisturbed, steady.post(TEXT, **STREAMED, stop=stop))
    assert steady.worker.dies_after is None


def test_a_form_goes_on_from_every_token(steady: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady.engine.drafter, "is_on", False)  # tokens that are certain would take no step
    form: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["the fox", "the crow", "a wolf"]}}}
    body = {"messages": [{"role": "user", "content": "Who?"}], "seed": 3, "temperature": 1.2, "max_tokens": 30, "response_format": form}
    undisturbed = steady.post(CHAT, **body)
    for steps in range(undisturbed["usage"]["completion_tokens"]):
        steady.worker.dies_after = steps
        disturbed = steady.post(CHAT, **body)
        check_same(undisturbed, disturbed)
        assert json.loads(disturbed["choices"][0]["message"]["content"]) in form["json_schema"]["schema"]["enum"]
        assert steady.worker.dies_after is None or steady.name != "float32", "the answer was complete before the worker could die"
        steady.worker.dies_after = None
