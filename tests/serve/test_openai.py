"""The official `openai` client against the bundled model: sync, async, streamed, parsed, with tools."""

import asyncio
import json
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field
from serving import RunningServer

STORY: list[Any] = [{"role": "user", "content": "Tell me a story about a fox and a crow."}]
PLACE = {
    "type": "object",
    "properties": {"place": {"enum": ["wood", "hill", "mill"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["place", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "The weather at a place.", "parameters": PLACE}}
BELL: Any = {"type": "function", "function": {"name": "ring_bell", "description": "Ring the bell."}}


class Thief(BaseModel):
    animal: Literal["fox", "crow", "wolf"]
    age: int = Field(ge=0, le=99)
    guilty: bool
    loot: list[Literal["cheese", "grapes"]] = Field(min_length=1, max_length=2)


def test_a_conversation_of_every_role_and_every_field(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="storyteller",
        messages=[
            {"role": "developer", "content": "You tell tales."},
            {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": [{"type": "text", "text": "A fox?"}]},
            {"role": "assistant", "content": "There was a fox."},
            {"role": "user", "content": "And then?"},
        ],
        temperature=0.8,
        top_p=0.9,
        n=2,
        stop=["wolf", "bear", "king", "queen"],
        max_completion_tokens=24,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        logit_bias={"300": -100},
        logprobs=True,
        top_logprobs=3,
        seed=11,
        user="someone",
        service_tier="flex",
        metadata={"shelf": "tales"},
        response_format={"type": "text"},
        extra_body={"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 2, "bad_words": ["dragon"]},
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert (answer.service_tier, answer.metadata) == ("flex", {"shelf": "tales"})  # type: ignore[attr-defined]
    assert answer.system_fingerprint and answer.system_fingerprint.startswith("fp_")
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content[0].top_logprobs) == 3


def test_a_stream_is_the_answer_in_pieces_with_one_id_and_usage_at_its_end(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "storyteller", "messages": STORY, "seed": 5, "max_tokens": 30, "temperature": 0.9}
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}, metadata={"a": "b"}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    usage = chunks[-1].usage
    assert usage is not None and whole.usage is not None and usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[0].metadata == {"a": "b"}  # type: ignore[attr-defined]


def test_async_clients_at_once_get_what_each_would_alone(api: RunningServer, client: openai.OpenAI) -> None:
    async def ask(many: openai.AsyncOpenAI, seed: int) -> str:
        pieces = await many.chat.completions.create(model="storyteller", messages=STORY, seed=seed, max_tokens=16, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in pieces if chunk.choices])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0) as many:
            return await asyncio.gather(*(ask(many, seed) for seed in range(8)))

    alone = [
        client.chat.completions.create(model="storyteller", messages=STORY, seed=seed, max_tokens=16).choices[0].message.content
        for seed in range(8)
    ]
    assert asyncio.run(ask_all()) == alone


@pytest.mark.parametrize("seed", range(4))
def test_parse_gives_a_pydantic_model(client: openai.OpenAI, seed: int) -> None:
    answer = client.chat.completions.parse(
        model="storyteller", messages=STORY, response_format=Thief, seed=seed, temperature=1.5, max_tokens=120
    )
    assert isinstance(answer.choices[0].message.parsed, Thief)
    assert answer.choices[0].finish_reason == "stop"


def test_a_parsed_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="storyteller", messages=STORY, response_format=Thief, seed=1, max_tokens=120) as events:
        for _ in events:
            pass
        parsed = events.get_final_completion().choices[0].message.parsed
    assert isinstance(parsed, Thief)


def test_any_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="storyteller", messages=STORY, response_format={"type": "json_object"}, max_tokens=200, temperature=0.2, seed=2
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)
    else:  # cut by max_tokens: still the beginning of an object
        assert (answer.choices[0].message.content or "").startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_that_must_be_called_is_called_with_valid_arguments(client: openai.OpenAI, choice: Any) -> None:
    for seed in range(3):
        answer = client.chat.completions.create(
            model="storyteller",
            messages=STORY,
            tools=[WEATHER, BELL],
            tool_choice=choice,
            parallel_tool_calls=False,
            seed=seed,
            temperature=1.2,
            max_tokens=120,
        ).choices[0]
        assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
        assert answer.message.tool_calls is not None and len(answer.message.tool_calls) == 1
        call: Any = answer.message.tool_calls[0]
        arguments = json.loads(call.function.arguments)
        if call.function.name == "weather":
            jsonschema.validate(arguments, PLACE)
        else:
            assert (call.function.name, arguments, choice) == ("ring_bell", {}, "required")


def test_a_streamed_call_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "storyteller", "messages": STORY, "tools": [WEATHER], "tool_choice": "required", "seed": 4}
    fields |= {"max_tokens": 120, "parallel_tool_calls": False}
    whole: Any = client.chat.completions.create(**fields).choices[0].message.tool_calls
    assert whole is not None
    with client.chat.completions.stream(**fields) as events:
        for _ in events:
            pass
        final: Any = events.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == (whole[0].function.name, whole[0].function.arguments)
    assert final.choices[0].finish_reason == "tool_calls"


def test_a_tool_call_and_its_result_go_back_to_the_model(client: openai.OpenAI) -> None:
    """The client sends the message object back unchanged."""
    first = client.chat.completions.create(
        model="storyteller", messages=STORY, tools=[WEATHER], tool_choice="required", seed=4, max_tokens=120, parallel_tool_calls=False
    )
    message: Any = first.choices[0].message
    result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"sky": "grey"}'}
    second = client.chat.completions.create(model="storyteller", messages=[*STORY, message, result], max_tokens=12, seed=1)
    assert second.choices[0].message.content
    assert first.usage is not None and second.usage is not None and second.usage.prompt_tokens > first.usage.prompt_tokens - 200


def test_auto_allows_text_or_calls_and_none_equals_no_tools(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "storyteller", "messages": STORY, "max_tokens": 24, "seed": 3}
    free = client.chat.completions.create(**fields, tools=[WEATHER], tool_choice="auto").choices[0]
    assert bool(free.message.content) != bool(free.message.tool_calls)
    plain = client.chat.completions.create(**fields).choices[0].message.content
    assert client.chat.completions.create(**fields, tools=[WEATHER], tool_choice="none").choices[0].message.content == plain


def test_completions_in_every_shape(client: openai.OpenAI, api: RunningServer) -> None:
    text = client.completions.create(model="storyteller", prompt="Once upon a time", max_tokens=6, temperature=0)
    two = client.completions.create(model="storyteller", prompt=["Once upon a time", "A fox"], max_tokens=6, temperature=0)
    assert [choice.text for choice in two.choices][0] == text.choices[0].text and len(two.choices) == 2
    ids = httpx.post(f"{api.url}/tokenize", json={"prompt": "Once upon a time"}).json()["tokens"]
    lists = client.completions.create(model="storyteller", prompt=[ids, ids[:2]], max_tokens=6, temperature=0)
    one = client.completions.create(model="storyteller", prompt=ids, max_tokens=6, temperature=0)
    assert lists.choices[0].text == one.choices[0].text == text.choices[0].text
    echoed = client.completions.create(model="storyteller", prompt="Once upon a time", max_tokens=0, echo=True, logprobs=2)
    logprobs = echoed.choices[0].logprobs
    assert echoed.choices[0].text == "Once upon a time" and logprobs is not None and logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:] if value is not None)
    best = client.completions.create(model="storyteller", prompt="A fox", max_tokens=8, n=2, best_of=4, seed=1, temperature=1)
    assert len(best.choices) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "a"}]),
        ("function_call", {"name": "a"}),
        ("audio", {"format": "wav", "voice": "alloy"}),
        ("modalities", ["text", "audio"]),
        ("web_search_options", {}),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: openai.OpenAI, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=field) as refused:
        client.chat.completions.create(model="storyteller", messages=STORY, extra_body={field: value})
    assert (refused.value.param, refused.value.code) == (field, "unsupported_parameter")


def test_what_the_model_has_no_use_for_is_left_out_and_named(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="storyteller",
        messages=[{"role": "user", "content": "A fox", "name": "Ann"}],
        max_tokens=4,
        reasoning_effort="low",
        service_tier="priority",
        store=True,
        verbosity="low",
    )
    named = set(raw.headers["X-Litmus-Ignored"].split(", "))
    assert named == {"messages.0.name", "reasoning_effort", "service_tier", "store", "verbosity"}
    assert raw.parse().choices[0].message.content


def test_an_image_is_refused_by_name(client: openai.OpenAI) -> None:
    parts: Any = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(openai.BadRequestError, match="image_url") as refused:
        client.chat.completions.create(model="storyteller", messages=[{"role": "user", "content": parts}])
    assert refused.value.param == "messages.0.content.1"


def test_errors_are_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=STORY)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.moderations.create(input="a")
    with pytest.raises(openai.BadRequestError, match="context") as too_long:
        client.completions.create(model="storyteller", prompt="a " * 3000)
    assert too_long.value.code == "context_length_exceeded"


def test_the_client_knows_the_ids_of_its_requests(client: openai.OpenAI) -> None:
    """Its own name for the header X-Request-Id."""
    answer = client.completions.create(model="storyteller", prompt="a", max_tokens=1, extra_headers={"X-Request-Id": "mine"})
    assert answer._request_id == "mine"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="storyteller", prompt="a", max_tokens=0)
    assert refused.value.request_id is not None and refused.value.request_id.startswith("req-")
