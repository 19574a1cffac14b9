import asyncio
from collections.abc import Awaitable
from contextlib import aclosing
from typing import Any

import pytest

from app.engine.request import Waiting
from serve.wire.answers import queued
from tests.ui.conftest import SOURCE
from ui.client import QUEUED, Chunk, Client, Place, ServerError

BODY = {"messages": [{"role": "user", "content": "Hello"}], "seed": 7}


async def read(client: Client, body: dict[str, Any] = BODY) -> list[Chunk]:
    return [chunk async for chunk in client.chat(body)]


async def read_until_error(client: Client) -> tuple[str, str]:
    text = ""
    try:
        async for chunk in client.chat(BODY):
            text += chunk.text
    except ServerError as error:
        return text, error.message
    raise AssertionError("no error came")


def sentence(call: Awaitable[object]) -> str:
    async def run() -> object:
        return await call

    with pytest.raises(ServerError) as raised:
        asyncio.run(run())
    return raised.value.message


def test_a_stream_gives_text_reason_and_usage(fake):
    chunks = asyncio.run(read(Client(fake.url)))
    assert "".join(chunk.text for chunk in chunks) == "".join(fake.words)
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(fake.words)


def test_a_stream_asks_for_usage_and_sends_the_rest_as_given(fake):
    asyncio.run(read(Client(fake.url)))
    assert fake.asked == [{**BODY, "stream": True, "stream_options": {"include_usage": True}}]


def test_text_comes_while_the_answer_is_still_being_written(fake):
    fake.wait_s = 5.0

    async def first() -> str:
        async with aclosing(Client(fake.url).chat(BODY)) as chunks:
            return await anext(chunk.text async for chunk in chunks if chunk.text)

    assert asyncio.run(asyncio.wait_for(first(), 3)) == "Once "


def test_leaving_a_stream_tells_the_server(fake):
    fake.wait_s = 0.05
    fake.words = ["word "] * 200

    async def leave() -> None:
        async with aclosing(Client(fake.url).chat(BODY)) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    return

    asyncio.run(leave())
    assert fake.left.wait(3)


def test_an_error_inside_a_stream_comes_after_the_text_so_far(fake):
    fake.error_after = 2
    assert asyncio.run(read_until_error(Client(fake.url))) == ("Once upon ", "the worker died.")


def test_a_stream_without_done_is_not_taken_for_complete(fake):
    fake.break_after = 3
    text, words = asyncio.run(read_until_error(Client(fake.url)))
    assert text == "Once upon a "
    assert "broke off" in words


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((400, "temperature must be at most 2"), "temperature must be at most 2."),
        ((429, "256 requests wait already."), "256 requests wait already. Try again in 7 s."),
        ((503, "the model is still loading"), "the model is still loading."),
    ],
)
def test_a_refusal_is_the_servers_own_sentence(fake, refusal, words):
    fake.refusal = refusal
    client = Client(fake.url)
    assert sentence(read(client)) == words
    assert sentence(client.score("text", None)) == words
    assert sentence(client.models()) == words


def test_what_is_no_envelope_is_not_shown(fake):
    fake.plain_failure = True
    assert sentence(read(Client(fake.url))) == "The server answered with status 502 and no explanation."


def test_a_server_that_is_not_there():
    words = sentence(Client("http://127.0.0.1:9").models())
    assert "No Litmus server answers at http://127.0.0.1:9." in words
    assert "make run" in words


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://127.0.0.1"])
def test_what_is_no_address(address):
    assert "not the address of a server" in sentence(Client(address).models())


def test_models_and_readiness(fake):
    client = Client(fake.url)
    assert asyncio.run(client.models())[0].id == "storyteller"
    assert asyncio.run(client.ready()).status == "ready"
    fake.ready = (503, "loading")
    assert asyncio.run(client.ready()).status == "loading"


def test_another_kind_of_server_is_not_understood(fake):
    fake.ready = (200, "fine, thanks")
    assert "status 200" in sentence(Client(fake.url).ready())
    fake.score_changes = {"verdict": "guilty"}
    assert "/v1/score" in sentence(Client(fake.url).score("text", None))


@pytest.mark.parametrize(
    ("chosen", "sent"),
    [
        ((None,), {}),
        (("fast_detect",), {"methods": ["fast_detect"]}),
        ((None, "base"), {"model": "base"}),
        (("fast_detect", "base"), {"methods": ["fast_detect"], "model": "base"}),
    ],
)
def test_a_score_asks_for_all_detail_and_for_a_method_and_a_model_only_when_chosen(fake, chosen, sent):
    result = asyncio.run(Client(fake.url).score("A fox.", *chosen))
    assert fake.asked == [{"text": "A fox.", "granularity": "token", **sent}]
    assert result.score.verdict == "machine"
    assert result.score.tokens and result.score.sentences
    assert (result.calibration.source, result.total_s) == (SOURCE, 0.25)


def test_a_score_without_a_calibration_brings_the_reason(fake):
    fake.calibration = {"source": None, "reason": "none was asked for"}
    assert asyncio.run(Client(fake.url).score("A fox.", None)).calibration.reason == "none was asked for"


def test_an_answer_without_a_score_is_not_understood(fake):
    fake.no_scores = True
    assert sentence(Client(fake.url).score("A fox.", None)) == "The server answered one text with 0 scores."


def test_a_text_that_could_not_be_scored(fake):
    fake.score_failure = {"index": 0, "object": "error", "message": "the text has no tokens", "code": "empty"}
    assert sentence(Client(fake.url).score("x", None)) == "the text has no tokens."


@pytest.mark.parametrize("wait_s", [None, 1.2])
def test_what_the_server_says_of_the_queue_is_understood(wait_s: float | None):
    said = QUEUED.fullmatch(queued(Waiting("a", 3, wait_s)).strip("\n"))
    assert said and said.groups() == ("3", None if wait_s is None else "2")


def test_a_place_in_the_queue_comes_before_the_text(fake):
    fake.queued = ": queued position=2 eta_s=4"
    chunks = asyncio.run(read(Client(fake.url)))
    assert next(chunk.queued for chunk in chunks if chunk.queued) == Place(2, 4)
    assert "".join(chunk.text for chunk in chunks) == "".join(fake.words)
