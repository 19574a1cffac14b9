"""The official client one major version before that of requirements-dev.txt, sync and async."""

import asyncio
import json

import openai
import pytest
from questions import CUT, ENDLESS, FORMAL, GREEDY, PLACES, QUESTION, TOOL, Thief

MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        yield client


def asynchronous(server):
    return openai.AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0)


def test_a_chat(client, server):
    answer = client.chat.completions.create(model=server.model, messages=MESSAGES, **GREEDY)
    assert answer.choices[0].message.content == server.answer()


def test_an_asynchronous_chat(server):
    async def ask():
        async with asynchronous(server) as client:
            return await client.chat.completions.create(model=server.model, messages=MESSAGES, **GREEDY)

    assert asyncio.run(ask()).choices[0].message.content == server.answer()


def test_a_stream(client, server):
    chunks = client.chat.completions.create(model=server.model, messages=MESSAGES, stream=True, **GREEDY)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert len(pieces) > 5 and "".join(pieces) == server.answer()


def test_a_tool_call(client, server):
    answer = client.chat.completions.create(model=server.model, messages=MESSAGES, tools=[TOOL], tool_choice="required", **FORMAL)
    call = answer.choices[0].message.tool_calls[0].function
    assert call.name == "weather" and json.loads(call.arguments)["place"] in PLACES


def test_a_form(client, server):
    answer = client.chat.completions.parse(model=server.model, messages=MESSAGES, response_format=Thief, **FORMAL)
    assert isinstance(answer.choices[0].message.parsed, Thief)


def test_an_error(client, server):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=server.model, messages=MESSAGES, temperature=5)


def test_a_cancel(client, server):
    with client.chat.completions.create(model=server.model, messages=MESSAGES, stream=True, max_tokens=CUT, extra_body=ENDLESS) as stream:
        next(stream)
    assert server.cut_the_last_answer()


def test_an_asynchronous_cancel(server):
    async def leave():
        async with (
            asynchronous(server) as client,
            await client.chat.completions.create(
                model=server.model, messages=MESSAGES, stream=True, max_tokens=CUT, extra_body=ENDLESS
            ) as stream,
        ):
            await anext(aiter(stream))

    asyncio.run(leave())
    assert server.cut_the_last_answer()


def test_a_fine_tuning_job(client, server):
    lines = [json.dumps({"messages": [*MESSAGES, {"role": "assistant", "content": f"The crow ate {count} figs."}]}) for count in "1234"]
    file = client.files.create(file=("figs.jsonl", "\n".join(lines).encode()), purpose="fine-tune")
    jobs = client.fine_tuning.jobs
    job = jobs.create(model=server.model, training_file=file.id, suffix="figs", seed=1, metadata={"of": "figs"})
    assert job.status == "validating_files" and job.id in {each.id for each in jobs.list(limit=1)}
    assert [event.level for event in jobs.list_events(job.id)][-1] == "info" and list(jobs.checkpoints.list(job.id)) == []
    assert jobs.cancel(job.id).status == "cancelled" and jobs.retrieve(job.id).finished_at is not None
