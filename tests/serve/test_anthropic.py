"""The official `anthropic` client against the bundled model: whole, streamed, parsed, with tools."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import pytest
from pydantic import BaseModel
from serving import RunningServer

STORY: list[Any] = [{"role": "user", "content": "Tell me a story about a fox and a crow."}]
WEATHER: Any = {
    "name": "weather",
    "description": "The weather at a place.",
    "input_schema": {
        "type": "object",
        "properties": {"place": {"enum": ["wood", "hill", "mill"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["place", "days"],
        "additionalProperties": False,
    },
}
DEFAULTS: dict[str, Any] = {"model": "storyteller", "messages": STORY, "max_tokens": 30, "extra_body": {"temperature": 0}}


class Thief(BaseModel):
    animal: Literal["fox", "crow", "wolf"]
    guilty: bool


@pytest.fixture(scope="module")
def client(api: RunningServer) -> Iterator[Any]:
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=api.url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


def create(client: Any, **fields: Any) -> Any:
    return client.messages.create(**DEFAULTS | fields)


def stream(client: Any, **fields: Any) -> tuple[list[Any], Any]:
    """The events as the client reads them, and the message that it makes of them."""
    with client.messages.stream(**DEFAULTS | fields) as events:
        read = list(events)
        return read, events.get_final_message()


def test_the_official_client_gets_the_chats_answer_whole_and_streamed(client: Any, api: RunningServer) -> None:
    chat = api.client().chat.completions.create(
        model="storyteller", messages=[{"role": "system", "content": "You tell tales."}, *STORY], max_tokens=30, temperature=0
    )
    system = [{"type": "text", "text": "You tell tales.", "cache_control": {"type": "ephemeral"}}]
    whole = create(client, system=system)
    assert str(whole._request_id).startswith("req-")
    assert [(block.type, block.text) for block in whole.content] == [("text", chat.choices[0].message.content)]
    read, final = stream(client, system=system)
    assert final.content[0].text == whole.content[0].text == "".join(event.text for event in read if event.type == "text")
    assert (final.stop_reason, final.role, final.model) == (whole.stop_reason, "assistant", "storyteller")
    assert chat.usage is not None
    for usage in (whole.usage, final.usage):
        assert usage.input_tokens + usage.cache_read_input_tokens == chat.usage.prompt_tokens
        assert usage.output_tokens == chat.usage.completion_tokens
    assert final.usage.cache_read_input_tokens > 0
    counted = client.messages.count_tokens(model="storyteller", messages=STORY, system=system)
    assert counted.input_tokens == chat.usage.prompt_tokens


def test_a_stop_sequence_of_a_real_answer_is_named(client: Any) -> None:
    text = create(client).content[0].text
    word = text.split()[3]
    cut = create(client, stop_sequences=["\ue001", word])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", word)
    assert cut.content[0].text == text[: text.index(word)]
    assert create(client, max_tokens=3).stop_reason == "max_tokens"


def test_an_answer_that_continues_the_assistants_text_is_the_continuation_alone(client: Any) -> None:
    begun = create(client, max_tokens=10).content[0].text
    whole = create(client, max_tokens=20).content[0].text
    rest = create(client, messages=[*STORY, {"role": "assistant", "content": begun}], max_tokens=10).content[0].text
    assert whole.startswith(begun) and rest and not rest.startswith(begun[:10])


def test_a_tool_is_called_and_its_result_goes_back(client: Any) -> None:
    fields: dict[str, Any] = {"tools": [WEATHER], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "max_tokens": 120}
    whole = create(client, **fields)
    (call,) = whole.content
    assert (call.type, call.name, whole.stop_reason) == ("tool_use", "weather", "tool_use")
    assert call.input["place"] in {"wood", "hill", "mill"} and 1 <= call.input["days"] <= 9
    read, final = stream(client, **fields)
    assert (final.content[0].name, final.content[0].input, final.stop_reason) == ("weather", call.input, "tool_use")
    assert json.loads("".join(event.partial_json for event in read if event.type == "input_json")) == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "grey"}
    messages = [*STORY, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    assert create(client, messages=messages, tools=[WEATHER], tool_choice={"type": "none"}).content[0].text


def test_parse_gives_a_pydantic_model(client: Any) -> None:
    answer = client.messages.parse(model="storyteller", messages=STORY, max_tokens=60, output_format=Thief)
    assert isinstance(answer.parsed_output, Thief) and answer.stop_reason == "end_turn"


def test_errors_are_the_clients_own_classes(client: Any) -> None:
    import anthropic

    with pytest.raises(anthropic.NotFoundError) as unknown:
        create(client, model="another-model")
    assert unknown.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="'image'"):
        create(client, messages=[{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "data:,"}}]}])


def test_the_routes_need_no_client_of_a_kind(api: RunningServer) -> None:
    """Without `anthropic-version`, and with any key."""
    body = {"messages": STORY, "max_tokens": 3}
    answer = httpx.post(f"{api.url}/v1/messages", json=body, headers={"x-api-key": "any", "anthropic-version": "2023-06-01"}, timeout=60)
    assert answer.status_code == httpx.post(f"{api.url}/v1/messages", json=body, timeout=60).status_code == 200
    assert answer.json()["usage"]["output_tokens"] == 3
