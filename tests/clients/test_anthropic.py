"""The official client of Anthropic, whose other tests are in tests/serve/test_anthropic.py: here the six cases."""

from typing import Literal

import anthropic
import pytest
from pydantic import BaseModel
from questions import CUT, GREEDY, PLACES, QUESTION, WEATHER, Herd

TOOL = {"name": WEATHER["name"], "description": WEATHER["description"], "input_schema": WEATHER["parameters"]}


class Suspect(BaseModel):
    animal: Literal["fox", "crow", "wolf"]
    guilty: bool


@pytest.fixture(scope="module")
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def fields(server):
    messages = [{"role": "user", "content": QUESTION}]
    return {"model": server.model, "messages": messages, "max_tokens": GREEDY["max_tokens"], "extra_body": {"temperature": 0}}


def test_a_chat(client, fields, server):
    assert client.messages.create(**fields).content[0].text == server.answer()


def test_a_stream(client, fields, server):
    with client.messages.stream(**fields) as stream:
        pieces = list(stream.text_stream)
    assert len(pieces) > 5 and "".join(pieces) == server.answer()


def test_a_tool_call(client, fields):
    calls = client.messages.create(tools=[TOOL], tool_choice={"type": "any"}, **fields | {"max_tokens": 100}).content
    assert calls and all((call.type, call.name) == ("tool_use", "weather") and call.input["place"] in PLACES for call in calls)


def test_a_form(client, fields):
    """Of one without numbers: this client takes the bounds of a number out of the schema."""
    assert isinstance(client.messages.parse(output_format=Suspect, **fields | {"max_tokens": 100}).parsed_output, Suspect)


def test_an_error(client, fields):
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(**fields | {"extra_body": {"temperature": 5}})


def test_a_cancel(client, fields, server):
    herd = {"name": "count", "input_schema": Herd.model_json_schema()}
    with client.messages.stream(tools=[herd], tool_choice={"type": "any"}, **fields | {"max_tokens": CUT}) as stream:
        next(event for event in stream if event.type == "input_json")
    assert server.cut_the_last_answer()
