"""instructor over the official client. Its modes JSON and MD_JSON ask for a form in words only, which a small model need not follow."""

import asyncio

import instructor
import openai
import pytest
from instructor.core import InstructorRetryException
from questions import CUT, FORMAL, GREEDY, QUESTION, Herd, Thief

MESSAGES = [{"role": "user", "content": QUESTION}]
MODES = [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA]


@pytest.fixture(scope="module", params=MODES, ids=lambda mode: mode.name)
def client(server, request):
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        yield instructor.from_openai(client, mode=request.param, model=server.model)


def test_a_chat(client, server):
    assert client.create(response_model=None, messages=MESSAGES, **GREEDY).choices[0].message.content == server.answer()


def test_a_form(client):
    """In mode TOOLS it is a tool call."""
    assert isinstance(client.create(response_model=Thief, messages=MESSAGES, max_retries=0, **FORMAL), Thief)


def test_a_stream(client):
    thieves = list(client.create_partial(response_model=Thief, messages=MESSAGES, max_retries=0, **FORMAL))
    assert len(thieves) > 3 and thieves[0] != thieves[-1]
    Thief.model_validate(thieves[-1].model_dump())


def test_an_error(client):
    with pytest.raises((openai.BadRequestError, InstructorRetryException), match="temperature"):
        client.create(response_model=Thief, messages=MESSAGES, max_retries=0, **FORMAL | {"temperature": 5})


def test_a_cancel(server):
    """In mode TOOLS, and in the synchronous client, this library reads a stream to its end before it gives out the first part."""

    async def leave():
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as raw:
            client = instructor.from_openai(raw, mode=instructor.Mode.JSON_SCHEMA, model=server.model)
            parts = client.create_partial(response_model=Herd, messages=MESSAGES, max_tokens=CUT, max_retries=0)
            await anext(parts)
            await parts.aclose()
            return await asyncio.to_thread(server.cut_the_last_answer)

    assert asyncio.run(leave())
