"""pydantic-ai: an Agent over chat completions and over the Responses API."""

import asyncio
from typing import Literal

import pytest
from pydantic_ai import Agent, ModelHTTPError, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from questions import CUT, ENDLESS, FORMAL, GREEDY, PLACES, QUESTION, Thief


def agent(server, kind=OpenAIChatModel, output_type=str, **settings):
    model = kind(server.model, provider=OpenAIProvider(base_url=server.base_url, api_key="none"))
    return Agent(model, output_type=output_type, model_settings=GREEDY | settings, retries=0)


def weather(place: Literal["wood", "hill", "mill"]) -> str:
    """The weather at a place."""
    return f"rain at the {place}"


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
def test_a_chat(server, kind):
    assert agent(server, kind).run_sync(QUESTION).output == server.answer()


def test_a_stream(server):
    async def read():
        async with agent(server).run_stream(QUESTION) as result:
            return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]

    pieces = asyncio.run(read())
    assert len(pieces) > 5 and "".join(pieces) == server.answer()


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
def test_a_tool_call(server, kind):
    assert agent(server, kind, output_type=weather, **FORMAL).run_sync(QUESTION).output in [weather(place) for place in PLACES]


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
def test_a_form(server, kind):
    assert isinstance(agent(server, kind, NativeOutput(Thief), **FORMAL).run_sync(QUESTION).output, Thief)


def test_an_error(server):
    with pytest.raises(ModelHTTPError, match="temperature") as refused:
        agent(server, temperature=5).run_sync(QUESTION)
    assert refused.value.status_code == 400


def test_a_cancel(server):
    async def leave():
        async with agent(server, max_tokens=CUT, extra_body=ENDLESS).run_stream(QUESTION) as result:
            await anext(result.stream_text(debounce_by=None))
            await result.cancel()
            return await asyncio.to_thread(server.cut_the_last_answer)

    assert asyncio.run(leave())
