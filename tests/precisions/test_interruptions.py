"""A worker dies in the middle of any kind of request, in every precision: the answer is the one of an undisturbed worker."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from inprocess import CHAT, TEXT, LocalModel
from precisions.test_crowd import check_same, requests

STREAMED: dict[str, Any] = {
    "prompt": "Once upon a time",
    "temperature": 1.3,
    "seed": 5,
    "max_tokens": 24,
    "ignore_eos": True,
    "logprobs": 1,
}


@pytest.fixture
def exact(steady: LocalModel) -> LocalModel:
    """The model, in the precisions in which a token's logits do not depend on whether it was sampled or read."""
    if steady.name == "nf4":
        pytest.skip("bitsandbytes' 4-bit layers round a row by itself otherwise than one of many")
    return steady


def texts_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def test_each_kind_of_request_goes_on_after_a_death(exact: LocalModel) -> None:
    kinds, before = requests(), exact.worker.deaths
    for path, body in kinds[: len(kinds) // 2]:
        undisturbed = exact.post(path, **body)
        for steps in (0, 1, 7):
            exact.worker.dies_after = steps
            check_same(undisturbed, exact.post(path, **body), f"{path} {sorted(body)} after {steps} steps")
            exact.worker.dies_after = None
    assert exact.worker.deaths - before > 2 * len(kinds) // 2, "most requests were answered before the worker could die"


def test_all_requests_of_a_crowd_go_on_after_a_death(exact: LocalModel) -> None:
    sent = requests()
    alone = [exact.post(path, **body) for path, body in sent]
    exact.worker.dies_after = 9
    with ThreadPoolExecutor(len(sent)) as pool:
        together = list(pool.map(lambda request: exact.post(request[0], **request[1]), sent))
    assert exact.worker.dies_after is None
    for (path, body), one, other in zip(sent, alone, together, strict=True):
        check_same(one, other, f"{path} {sorted(body)}")


def test_a_stream_says_that_it_was_interrupted_and_repeats_nothing(steady: LocalModel) -> None:
    whole = steady.stream(TEXT, **STREAMED)
    steady.worker.dies_after = 6
    response = steady.http.post(TEXT, json={"model": steady.name, "stream": True, **STREAMED})
    comments = [line for line in response.text.split("\n") if line.startswith(": interrupted")]
    assert len(comments) == 1 and steady.worker.dies_after is None
    assert texts_of(whole) and texts_of(steady.stream(TEXT, **STREAMED)) == texts_of(whole)
    pieces = [line for line in response.text.split("\n") if line.startswith("data: ")]
    assert len(pieces) == len(whole) + 1  # [DONE]


def test_a_stop_string_across_the_death_is_found(exact: LocalModel) -> None:
    text = exact.post(TEXT, **STREAMED)["choices"][0]["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 5]
    undisturbed = exact.post(TEXT, **STREAMED, stop=stop)
    for steps in range(1, undisturbed["usage"]["completion_tokens"]):
        exact.worker.dies_after = steps
        check_same(undisturbed, exact.post(TEXT, **STREAMED, stop=stop))
    assert exact.worker.dies_after is None


def test_a_form_goes_on_from_every_token(exact: LocalModel) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["the fox", "the crow", "a wolf"]}}}
    body = {"messages": [{"role": "user", "content": "Who?"}], "seed": 3, "temperature": 1.2, "max_tokens": 30, "response_format": form}
    undisturbed = exact.post(CHAT, **body)
    for steps in range(undisturbed["usage"]["completion_tokens"]):
        exact.worker.dies_after = steps
        check_same(undisturbed, exact.post(CHAT, **body))
        assert exact.worker.dies_after is None, "the answer was complete before the worker could die"
