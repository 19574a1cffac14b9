"""litellm, with the provider openai/."""

import asyncio
import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise the import asks the network

import litellm
import pytest
from questions import CUT, ENDLESS, FORMAL, GREEDY, PLACES, QUESTION, TOOL, Thief

MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def fields(server):
    return {"model": f"openai/{server.model}", "api_base": server.base_url, "api_key": "none", "max_retries": 0}


def test_a_chat(fields, server):
    assert litellm.completion(messages=MESSAGES, **fields, **GREEDY).choices[0].message.content == server.answer()


def test_a_stream(fields, server):
    pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(messages=MESSAGES, stream=True, **fields, **GREEDY)]
    assert len(pieces) > 5 and "".join(pieces) == server.answer()


def test_a_tool_call(fields):
    answer = litellm.completion(messages=MESSAGES, tools=[TOOL], tool_choice="required", **fields, **FORMAL)
    call = answer.choices[0].message.tool_calls[0].function
    assert call.name == "weather" and json.loads(call.arguments)["place"] in PLACES


def test_a_form(fields):
    answer = litellm.completion(messages=MESSAGES, response_format=Thief, **fields, **FORMAL)
    Thief.model_validate_json(answer.choices[0].message.content)


def test_an_error(fields):
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(messages=MESSAGES, temperature=5, **fields)


def test_a_cancel(fields, server):
    async def leave():
        stream = await litellm.acompletion(messages=MESSAGES, stream=True, max_tokens=CUT, extra_body=ENDLESS, **fields)
        await anext(aiter(stream))
        await stream.aclose()
        return await asyncio.to_thread(server.cut_the_last_answer)

    assert asyncio.run(leave())


def test_a_response(fields, server):
    answer = litellm.responses(input=QUESTION, temperature=0, max_output_tokens=GREEDY["max_tokens"], **fields)
    assert answer.output_text == server.answer()


def test_embeddings(fields):
    vectors = [entry["embedding"] for entry in litellm.embedding(input=["a fox", "a crow"], **fields).data]
    assert len(vectors) == 2 and vectors[0] != vectors[1]
