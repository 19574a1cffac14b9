import asyncio
from collections.abc import Awaitable
from contextlib import aclosing
from typing import Any

import pytest

from app.engine.notices import Interrupted, Loading, SetBack, Waiting
from serve.wire.sse import comments
from tests.ui.fakelitmus import CARD, SOURCE
from ui.client import QUEUE_COMMENT, Chunk, Client, Pause, PromptProgress, QueueStatus, ServerError
from ui.jobs.client import bases

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
    raise AssertionError("the stream raised no ServerError")


def error_message(call: Awaitable[object]) -> str:
    async def run() -> object:
        return await call

    with pytest.raises(ServerError) as raised:
        asyncio.run(run())
    return raised.value.message


def test_a_stream_yields_text_finish_reason_and_usage(fake):
    chunks = asyncio.run(read(Client(fake.url)))
    assert "".join(chunk.text for chunk in chunks) == "".join(fake.words)
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(fake.words)


def test_a_stream_requests_usage_and_sends_the_body_unchanged(fake):
    asyncio.run(read(Client(fake.url)))
    options = {"include_usage": True, "continuous_usage_stats": True}
    assert fake.requests == [{**BODY, "stream": True, "stream_options": options, "return_progress": True}]


def test_text_arrives_while_the_answer_is_still_being_generated(fake):
    fake.hold_after = 1

    async def first() -> str:
        async with aclosing(Client(fake.url).chat(BODY)) as chunks:
            return await anext(chunk.text async for chunk in chunks if chunk.text)

    assert asyncio.run(asyncio.wait_for(first(), 60)) == "Once "


def test_closing_a_stream_disconnects_from_the_server(fake):
    fake.hold_after = 1

    async def leave() -> None:
        async with aclosing(Client(fake.url).chat(BODY)) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    return

    asyncio.run(leave())
    assert fake.disconnected.wait(60)


def test_an_error_inside_a_stream_comes_after_the_text_so_far(fake):
    fake.error_after = 2
    assert asyncio.run(read_until_error(Client(fake.url))) == ("Once upon ", "the worker died.")


def test_a_stream_that_ends_without_done_is_an_error(fake):
    fake.break_after = 3
    text, message = asyncio.run(read_until_error(Client(fake.url)))
    assert text == "Once upon a "
    assert "broke off" in message


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((400, "temperature must be at most 2"), "temperature must be at most 2."),
        ((429, "256 requests wait already."), "256 requests wait already. Try again in 7 s."),
        ((503, "the model is still loading"), "the model is still loading."),
    ],
)
def test_a_refusal_has_the_servers_own_message(fake, refusal, message):
    fake.refusal = refusal
    client = Client(fake.url)
    assert error_message(read(client)) == message
    assert error_message(client.score("text", None)) == message
    assert error_message(client.models()) == message


def test_an_error_body_that_is_not_an_envelope_is_not_shown(fake):
    fake.plain_failure = True
    assert error_message(read(Client(fake.url))) == "The server answered /v1/chat/completions with status 502 and no explanation."


def test_an_unreachable_server_names_its_address_and_how_to_start_one():
    message = error_message(Client("http://127.0.0.1:9").models())
    assert "No Litmus server answers at http://127.0.0.1:9." in message
    assert "make run" in message


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://127.0.0.1"])
def test_an_invalid_address_is_an_error(address):
    assert "is not a server address" in error_message(Client(address).models())


def test_models_and_readiness(fake):
    client = Client(fake.url)
    assert asyncio.run(client.models())[0].id == "storyteller"
    assert asyncio.run(client.ready()).status == "ready"
    fake.ready = (503, "loading")
    assert asyncio.run(client.ready()).status == "loading"


def test_a_model_is_listed_once_whatever_further_names_it_has(fake):
    own = {**fake.cards[0], "root": "storyteller", "aliases": ["gpt-4o"]}
    fake.cards = [own, {**own, "id": "gpt-4o", "default": False}]
    assert [card.id for card in asyncio.run(Client(fake.url).models())] == ["storyteller"]
    assert asyncio.run(bases(Client(fake.url))) == ["storyteller"]


def test_what_a_newer_server_says_more_is_left_out(fake):
    fake.cards = [{**CARD, "mood": "merry", "default_sampling_params": {**CARD["default_sampling_params"], "mood": 1}}]
    fake.score_changes = {"mood": "merry"}
    assert asyncio.run(Client(fake.url).models())[0].id == "storyteller"
    assert asyncio.run(Client(fake.url).score("A fox.", None)).score.verdict == "machine"


def test_an_answer_of_another_kind_of_server_is_an_error(fake):
    fake.ready = (200, "fine, thanks")
    assert "status 200" in error_message(Client(fake.url).ready())
    fake.score_changes = {"verdict": "guilty"}
    assert "/v1/score" in error_message(Client(fake.url).score("text", None))


@pytest.mark.parametrize(
    ("args", "sent"),
    [
        ((None,), {}),
        (("fast_detect",), {"methods": ["fast_detect"]}),
        ((None, "base"), {"model": "base"}),
        (("fast_detect", "base"), {"methods": ["fast_detect"], "model": "base"}),
    ],
)
def test_a_score_requests_token_detail_and_sends_method_and_model_only_if_set(fake, args, sent):
    result = asyncio.run(Client(fake.url).score("A fox.", *args))
    assert fake.requests == [{"text": "A fox.", "granularity": "token", "distributions": True, **sent}]
    assert result.score.verdict == "machine"
    assert result.score.tokens and result.score.sentences
    assert (result.calibration.source, result.total_s) == (SOURCE, 0.25)


def test_a_score_without_a_calibration_has_the_reason(fake):
    fake.calibration = {"source": None, "reason": "none was asked for"}
    assert asyncio.run(Client(fake.url).score("A fox.", None)).calibration.reason == "none was asked for"


def test_the_intervals_of_a_score_are_read(fake):
    interval = [0.9, 1.0]
    fake.score_changes = {"p_machine": {"value": 0.97, "interval": interval}}
    score = asyncio.run(Client(fake.url).score("A fox.", None)).score
    assert score.p_machine is not None and score.p_machine.interval == tuple(interval)


def test_an_answer_without_a_score_is_an_error(fake):
    fake.no_scores = True
    assert error_message(Client(fake.url).score("A fox.", None)) == "The server returned 0 scores for one text."


def test_a_text_that_could_not_be_scored_is_an_error(fake):
    fake.score_failure = {"index": 0, "object": "error", "message": "the text has no tokens", "code": "empty"}
    assert error_message(Client(fake.url).score("x", None)) == "the text has no tokens."


@pytest.mark.parametrize("wait_s", [None, 1.2])
def test_the_queue_comment_of_the_server_is_parsed(wait_s: float | None):
    match = QUEUE_COMMENT.fullmatch(comments(Waiting("a", 3, wait_s), has_started=False)[0].strip("\n"))
    assert match and match.groups() == ("3", None if wait_s is None else "2")


@pytest.mark.parametrize(
    ("notice", "pause"),
    [
        (Loading("a", None), Pause("loading", "The server is loading the model")),
        (Loading("a", 0.4), Pause("loading", "The server is loading the model: about 40%")),
        (Interrupted("a"), Pause("paused", "The model's process died; the answer goes on in another one")),
        (Interrupted("a", "fp"), Pause("paused", "The model was replaced; the answer goes on in its new version")),
        (SetBack("a"), Pause("paused", "The cache is full; the answer goes on when there is room")),
    ],
)
def test_why_nothing_comes_for_a_while_is_read_from_the_servers_comments(fake, notice: Any, pause: Pause):
    fake.sse_comment = comments(notice, has_started=True)[0].strip("\n")
    assert [chunk.pause for chunk in asyncio.run(read(Client(fake.url))) if chunk.pause is not None] == [pause]


def test_the_queue_position_comes_before_the_text(fake):
    fake.sse_comment = ": queued position=2 eta_s=4"
    chunks = asyncio.run(read(Client(fake.url)))
    assert next(chunk.queue for chunk in chunks if chunk.queue) == QueueStatus(2, 4)
    assert "".join(chunk.text for chunk in chunks) == "".join(fake.words)


def test_the_progress_of_the_prompt_comes_before_the_thought_and_the_text(fake):
    fake.progress, fake.thoughts = (412, 1024), ["Hm. ", "Yes."]
    chunks = [chunk for chunk in asyncio.run(read(Client(fake.url))) if chunk.progress or chunk.thought or chunk.text]
    assert chunks[0].progress == PromptProgress(412, 1024)
    assert [chunk.thought for chunk in chunks[1:3]] == ["Hm. ", "Yes."]
    assert "".join(chunk.text for chunk in chunks) == "".join(fake.words)
    assert chunks[4].usage is not None and chunks[4].usage.completion_tokens == 2
