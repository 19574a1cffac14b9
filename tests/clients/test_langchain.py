"""langchain-openai: ChatOpenAI and OpenAIEmbeddings."""

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from questions import CUT, ENDLESS, FORMAL, GREEDY, PLACES, QUESTION, TOOL, Thief


def model(server, **fields):
    return ChatOpenAI(**{"model": server.model, "base_url": server.base_url, "api_key": "none", "max_retries": 0} | GREEDY | fields)


def test_a_chat(server):
    assert model(server).invoke(QUESTION).content == server.answer()


def test_a_stream(server):
    pieces = [chunk.content for chunk in model(server).stream(QUESTION)]
    assert len(pieces) > 5 and "".join(pieces) == server.answer()


def test_a_tool_call(server):
    calls = model(server, **FORMAL).bind_tools([TOOL], tool_choice="weather").invoke(QUESTION).tool_calls
    assert calls and all(call["name"] == "weather" and call["args"]["place"] in PLACES for call in calls)


def test_a_tool_that_may_be_called(server):
    answer = model(server, **FORMAL).bind_tools([TOOL]).invoke(QUESTION)
    assert answer.content or answer.tool_calls


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_form(server, method):
    assert isinstance(model(server, **FORMAL).with_structured_output(Thief, method=method).invoke(QUESTION), Thief)


def test_an_error(server):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        model(server, temperature=5).invoke(QUESTION)


def test_a_cancel(server):
    stream = model(server, max_tokens=CUT, extra_body=ENDLESS).stream(QUESTION)
    next(stream)
    stream.close()
    assert server.cut_the_last_answer()


def test_a_response(server):
    assert model(server, use_responses_api=True).invoke(QUESTION).text == server.answer()


def test_embeddings(server):
    vectors = OpenAIEmbeddings(model=server.model, base_url=server.base_url, api_key="none", check_embedding_ctx_length=False)
    fox, crow = vectors.embed_documents(["a fox", "a crow"])
    assert len(fox) == len(crow) and fox != crow
