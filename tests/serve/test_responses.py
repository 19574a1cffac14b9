"""The official client's Responses API against the bundled model: whole, streamed, parsed, with tools."""

import asyncio
import json
from typing import Any, Literal

import jsonschema
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, Field, TypeAdapter
from serving import RunningServer

STORY = "Tell me a story about a fox and a crow."
PLACE = {
    "type": "object",
    "properties": {"place": {"enum": ["wood", "hill", "mill"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["place", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "name": "weather", "description": "The weather at a place.", "parameters": PLACE, "strict": True}
BELL: Any = {"type": "function", "name": "ring_bell", "description": "Ring the bell."}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


class Thief(BaseModel):
    animal: Literal["fox", "crow", "wolf"]
    age: int = Field(ge=0, le=99)
    guilty: bool


def fields(**more: Any) -> Any:
    return {"model": "storyteller", "input": STORY, "max_output_tokens": 24, "extra_body": {"seed": 3}, **more}


def checked(response: Any) -> Any:
    """The response, after the client's own type has been held to every field of it."""
    Response.model_validate(response.model_dump(by_alias=True, mode="json", warnings=False))
    return response


def test_a_response_is_the_answer_of_the_same_chat(client: openai.OpenAI) -> None:
    response = checked(client.responses.create(**fields(instructions="You tell tales.", metadata={"shelf": "tales"})))
    chat = client.chat.completions.create(
        model="storyteller",
        messages=[{"role": "system", "content": "You tell tales."}, {"role": "user", "content": STORY}],
        max_tokens=24,
        seed=3,
    )
    assert response.output_text == chat.choices[0].message.content
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert chat.usage is not None and response.usage.input_tokens == chat.usage.prompt_tokens
    assert (response.usage.output_tokens, response.usage.total_tokens) == (24, 24 + chat.usage.prompt_tokens)
    assert (response.instructions, response.metadata, response.store) == ("You tell tales.", {"shelf": "tales"}, False)
    assert response.id.startswith("resp_") and response.error is None


def test_items_of_every_kind_make_a_conversation(client: openai.OpenAI) -> None:
    items: Any = [
        {"role": "developer", "content": "You tell tales."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "A "}, {"type": "input_text", "text": "fox?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "A fox is asked for."}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "There was a fox.", "annotations": []}]},
        {"role": "user", "content": "And then?"},
    ]
    response = client.responses.create(**fields(input=items))
    chat = client.chat.completions.create(
        model="storyteller",
        messages=[
            {"role": "developer", "content": "You tell tales."},
            {"role": "user", "content": "A fox?"},
            {"role": "assistant", "content": "There was a fox."},
            {"role": "user", "content": "And then?"},
        ],
        max_tokens=24,
        seed=3,
    )
    assert response.output_text == chat.choices[0].message.content


def test_an_answer_goes_back_as_it_came(client: openai.OpenAI) -> None:
    first = client.responses.create(**fields())
    second: Any = client.responses.with_raw_response.create(
        **fields(input=[{"role": "user", "content": STORY}, *first.output, {"role": "user", "content": "And then?"}])
    )
    assert "x-litmus-ignored" not in second.headers and second.parse().output_text


def test_a_stream_is_the_response_in_pieces(client: openai.OpenAI) -> None:
    whole = client.responses.create(**fields())
    events = list(client.responses.create(**fields(stream=True)))
    for event in events:
        EVENT.validate_python(event.model_dump(by_alias=True, mode="json", warnings=False))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type for event in events]
    assert types[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert types[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(types[4:-4]) == {"response.output_text.delta"}
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    last: Any = events[-1]
    assert last.response.output_text == whole.output_text and last.response.usage.output_tokens == 24


def test_the_clients_stream_helper_collects_the_final_response(client: openai.OpenAI) -> None:
    with client.responses.stream(**fields(text_format=Thief, max_output_tokens=120)) as events:
        snapshots = [event.snapshot for event in events if event.type == "response.output_text.delta"]
        final = checked(events.get_final_response())
    assert isinstance(final.output_parsed, Thief) and final.status == "completed"
    assert snapshots[-1] == final.output_text


@pytest.mark.parametrize("seed", range(3))
def test_parse_gives_a_pydantic_model(client: openai.OpenAI, seed: int) -> None:
    response = client.responses.parse(
        **fields(text_format=Thief, temperature=1.5, max_output_tokens=120, extra_body={"seed": seed}),
    )
    assert isinstance(response.output_parsed, Thief) and response.status == "completed"
    assert response.text is not None and response.text.format is not None and response.text.format.type == "json_schema"


def test_any_json_object(client: openai.OpenAI) -> None:
    response = client.responses.create(**fields(text={"format": {"type": "json_object"}}, max_output_tokens=200, temperature=0.2))
    assert response.output_text.startswith("{")
    if response.status == "completed":
        assert isinstance(json.loads(response.output_text), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_function_that_must_be_called_is_called_with_valid_arguments(client: openai.OpenAI, choice: Any) -> None:
    response = client.responses.parse(
        **fields(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, max_output_tokens=120, temperature=1.2)
    )
    checked(response)
    (call,) = response.output
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
    jsonschema.validate(call.parsed_arguments, PLACE)
    assert response.status == "completed" and response.output_text == ""


def test_a_tool_round_trip(client: openai.OpenAI) -> None:
    """The client sends the output items back unchanged, with the result behind them."""
    ask: Any = {"tools": [WEATHER, BELL], "max_output_tokens": 120}
    first = client.responses.create(**fields(**ask, tool_choice="required", parallel_tool_calls=False))
    (call,) = first.output
    assert call.type == "function_call"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "grey"}'}
    items: Any = [{"role": "user", "content": STORY}, *first.output, result]
    second = client.responses.create(**fields(**ask, input=items, tool_choice="none"))
    assert second.output_text
    message: Any = {
        "role": "assistant",
        "tool_calls": [{"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}],
    }
    answer: Any = {"role": "tool", "tool_call_id": call.call_id, "content": '{"sky": "grey"}'}
    chat = client.chat.completions.create(
        model="storyteller", messages=[{"role": "user", "content": STORY}, message, answer], max_tokens=120, seed=3
    )
    assert second.output_text == chat.choices[0].message.content


def test_a_streamed_call_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    ask = fields(tools=[WEATHER, BELL], tool_choice="required", max_output_tokens=160)
    whole = client.responses.create(**ask)
    with client.responses.stream(**ask) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [(call.name, call.arguments) for call in final.output] == [(call.name, call.arguments) for call in whole.output]  # type: ignore[union-attr]
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == [call.arguments for call in whole.output]  # type: ignore[union-attr]
    for event in client.responses.create(**ask, stream=True):
        EVENT.validate_python(event.model_dump(by_alias=True, mode="json", warnings=False))


def test_async_clients_stream_at_once(api: RunningServer, client: openai.OpenAI) -> None:
    async def ask(many: openai.AsyncOpenAI, seed: int) -> str:
        stream: Any = await many.responses.create(**fields(extra_body={"seed": seed}, stream=True))
        return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0) as many:
            return await asyncio.gather(*(ask(many, seed) for seed in range(4)))

    alone = [client.responses.create(**fields(extra_body={"seed": seed})).output_text for seed in range(4)]
    assert asyncio.run(ask_all()) == alone


def test_log_probabilities(client: openai.OpenAI) -> None:
    response = client.responses.create(**fields(include=["message.output_text.logprobs"], top_logprobs=2))
    part: Any = response.output[0].content[0]  # type: ignore[union-attr]
    assert len(part.logprobs) == 24 and all(len(entry.top_logprobs) == 2 for entry in part.logprobs)
    assert "".join(entry.token for entry in part.logprobs) == response.output_text
    streamed = [
        entry
        for event in client.responses.create(**fields(top_logprobs=2, stream=True))
        if event.type == "response.output_text.delta"
        for entry in event.logprobs
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in part.logprobs]


def test_errors_are_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(**fields(model="gpt-4"))
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="previous_response_id") as stored:
        client.responses.create(**fields(previous_response_id="resp_1"))
    assert (stored.value.param, stored.value.code) == ("previous_response_id", "unsupported_parameter")
    with (
        pytest.raises(openai.BadRequestError, match="max_output_tokens is 5000") as too_long,
        client.responses.stream(**fields(max_output_tokens=5000)),
    ):
        pass
    assert (too_long.value.param, too_long.value.code) == ("max_output_tokens", "context_length_exceeded")
