"""A page that asks while the server loads its model: what it says, and that it goes on by itself."""

import asyncio

import pytest

from app.schemas import Readiness
from tests.ui.fakelitmus import Fake
from ui import loading
from ui.chat.answer import Answer
from ui.client import Chunk, Client, ServerError

HALF = {"storyteller": {"stage": "downloading", "done_bytes": 50_000_000, "total_bytes": 100_000_000}}


def readiness(**fields: object) -> Readiness:
    return Readiness.model_validate({"status": "loading", **fields})


def test_what_is_loading_is_said_with_how_far_it_is() -> None:
    models = {"a": "ready", "b": "loading", "c": "loading"}
    progress = {"b": {"stage": "downloading", "done_bytes": 49_000_000, "total_bytes": 98_000_000}, "c": {"stage": "warming up"}}
    said = loading.sentence(readiness(models=models, progress=progress))
    assert said == "The server is loading b (downloading, 50% of 98 MB), c (warming up)."
    assert loading.sentence(readiness()) == "The server is loading its model."


def test_a_question_waits_for_the_model_and_is_then_sent(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "POLL_S", 0.01)
    fake.loading = HALF

    async def main() -> list[Chunk]:
        chunks = []
        async for chunk in loading.answer(Client(fake.url), {"messages": []}):
            fake.loading = None
            chunks.append(chunk)
        return chunks

    first, *rest = asyncio.run(main())
    assert first.loading == ("The server is loading storyteller (downloading, 50% of 100 MB). Your question is sent when it is ready.")
    assert "".join(chunk.text for chunk in rest) == "".join(fake.words) and not any(chunk.loading for chunk in rest)


@pytest.mark.parametrize("thoughts", [[], ["Hm. "]], ids=["text", "thought"])
def test_an_answer_that_has_begun_is_not_asked_for_again(fake: Fake, thoughts: list[str]) -> None:
    fake.thoughts, fake.error_after, fake.error_code = thoughts, 0 if thoughts else 2, "not_ready"

    async def main() -> Answer:
        answer = Answer(0.0)
        with pytest.raises(ServerError, match="the worker died"):
            async for chunk in loading.answer(Client(fake.url), {"messages": []}):
                assert not chunk.loading
                answer.add(chunk, 1.0)
        return answer

    answer = asyncio.run(main())
    assert (answer.text, answer.thought, len(fake.requests)) == ("" if thoughts else "Once upon ", "".join(thoughts), 1)


def test_a_question_that_the_server_gave_up_before_its_answer_is_sent_again(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "POLL_S", 0.01)
    fake.error_after, fake.error_code = 0, "not_ready"

    async def main() -> str:
        text = ""
        async for chunk in loading.answer(Client(fake.url), {"messages": []}):
            text += chunk.text
            if chunk.loading:
                fake.error_after = None
        return text

    assert asyncio.run(main()) == "".join(fake.words) and len(fake.requests) == 2


def test_a_text_waits_for_the_model_and_is_then_scored(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "POLL_S", 0.01)
    fake.loading, said = {}, []

    def say(words: str) -> None:
        said.append(words)
        fake.loading = None

    client = Client(fake.url)
    result = asyncio.run(loading.ask(client, lambda: client.score("A text.", None), say))
    assert result.model == "storyteller" and said == ["The server is loading storyteller.", ""]


def test_another_refusal_is_raised_without_routes(fake: Fake) -> None:
    fake.ready = (503, "degraded")
    error = ServerError("no server that answers for 'a' can be reached at the moment; GET /ready says when one can.", code="not_ready")
    with pytest.raises(ServerError) as raised:
        asyncio.run(loading.words_of(Client(fake.url), error))
    assert raised.value.message == "no server that answers for 'a' can be reached at the moment."
    full = ServerError("The queue is full.", code="rate_limit_exceeded")
    with pytest.raises(ServerError) as raised:
        asyncio.run(loading.words_of(Client(fake.url), full))
    assert raised.value is full
