"""Embeddings by the official `openai` client, sync and async, of the bundled model."""

import asyncio
import base64
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from serving import RunningServer

ROUNDING = 2e-3  # between the embeddings of a text in two batches, where no compiled kernel runs


def embed(client: openai.OpenAI, texts: Any, **fields: Any) -> np.ndarray:
    """`[texts, hidden]`. The client asks for base64 unless told otherwise, and decodes it."""
    answer = client.embeddings.create(model="storyteller", input=texts, **fields)
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    return np.array([item.embedding for item in answer.data])


def test_embeddings_in_every_shape_and_encoding(client: openai.OpenAI, api: RunningServer) -> None:
    texts = ["Once upon a time", "A fox stole the cheese.", "The crow sang to the king, and the king was glad. " * 20]
    together = embed(client, texts)
    assert np.linalg.norm(together, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    raw: Any = client.embeddings.create(model="storyteller", input=texts[0], encoding_format="base64").data[0].embedding
    assert np.frombuffer(base64.b64decode(raw), "<f4") == pytest.approx(together[0], abs=ROUNDING)
    assert embed(client, texts, encoding_format="float") == pytest.approx(together, abs=ROUNDING)
    ids = [httpx.post(f"{api.url}/tokenize", json={"prompt": text}).json()["tokens"] for text in texts]
    for same in (embed(client, ids), np.concatenate([embed(client, each) for each in texts]), embed(client, texts[::-1])[::-1]):
        assert same == pytest.approx(together, abs=ROUNDING)
    assert embed(client, ids[1], dimensions=together.shape[1]) == pytest.approx(together[1:2], abs=ROUNDING)
    last = embed(client, texts, extra_body={"pooling": "last"})
    assert (np.sum(last * together, axis=1) < 0.999).all()


def test_embeddings_of_256_texts_by_the_async_client_keep_their_order(api: RunningServer, client: openai.OpenAI) -> None:
    texts = [f"{'A fox and a crow. ' * (index % 5)}Tale {index}" for index in range(256)]

    async def ask() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0) as many:
            answers = await asyncio.gather(*(many.embeddings.create(model="storyteller", input=texts[at : at + 32]) for at in (0, 32, 64)))
        return [item.embedding for answer in answers for item in answer.data]

    together, some = embed(client, texts), np.array(asyncio.run(ask()))
    assert some == pytest.approx(together[:96], abs=ROUNDING) and ((some @ together.T).argmax(1) == np.arange(96)).all()


def test_more_texts_than_the_queue_holds_come_in_portions(client: openai.OpenAI) -> None:
    texts = [f"Tale {index}" for index in range(300)]
    vectors = embed(client, texts)
    assert vectors.shape[0] == 300
    assert embed(client, texts[290:291])[0] == pytest.approx(vectors[290], abs=ROUNDING)


def test_embeddings_that_cannot_be_made_are_refused_by_name(client: openai.OpenAI) -> None:
    for field, value, message in (
        ("input", "", "at least 1 character"),
        ("input.1", ["a", ""], "at least 1 character"),
        ("input", ["a"] * 2049, "at most 2048"),
    ):
        with pytest.raises(openai.BadRequestError, match=message) as refused:
            embed(client, value)
        assert refused.value.param == field
    with pytest.raises(openai.BadRequestError, match=r"have \d+ dimensions and are not shortened") as shortened:
        embed(client, "a", dimensions=5)
    assert shortened.value.param == "dimensions"
    with pytest.raises(openai.BadRequestError, match="but storyteller reads at most 1024 of a text in one piece") as too_long:
        embed(client, "fox " * 2000)
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "input")
