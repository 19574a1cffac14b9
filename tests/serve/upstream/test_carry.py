"""/v1/responses and /v1/messages of an upstream that has a chat only, by the official clients."""

import openai
import pytest
from openai_server import USAGE, WORDS, Call, chunk

TEXT = "".join(WORDS)
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}


async def call_a_tool(call: Call) -> None:
    """Thinks, then calls; the arguments come in two pieces."""
    await call.begin_events()
    await call.event(chunk(delta={"role": "assistant", "reasoning_content": "Hm."}))
    start = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place":'}}
    await call.event(chunk(delta={"tool_calls": [start]}))
    await call.event(chunk(delta={"tool_calls": [{"index": 0, "function": {"arguments": ' "Rome"}'}}]}))
    await call.event(chunk(delta={}, finish_reason="tool_calls"))
    await call.event({**chunk(), "choices": [], "usage": USAGE})
    await call.event("[DONE]")


def test_a_response_whole_and_streamed(front):
    client = front.client()
    answer = client.responses.create(model="plain", input="Hello.", instructions="Be kind.", max_output_tokens=9)
    assert (answer.output_text, answer.model, answer.status) == (TEXT, "plain", "completed") and answer.id.startswith("resp_")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 3)
    sent = front.plain.calls[0]
    assert sent.path == "/v1/chat/completions" and sent.body["max_tokens"] == 9
    assert [message["role"] for message in sent.body["messages"]] == ["system", "user"]
    events = list(client.responses.create(model="plain", input="Hello.", stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert events[-1].response.usage.output_tokens == 3


def test_a_message_whole_and_streamed(front):
    import anthropic  # here: it takes more than a second, in each process

    client = anthropic.Anthropic(base_url=front.url, api_key="of-a-client", max_retries=0)
    fields = {"model": "plain", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello."}]}
    answer = client.messages.create(**fields)
    assert (answer.content[0].text, answer.stop_reason, answer.usage.input_tokens, answer.usage.output_tokens) == (TEXT, "end_turn", 7, 3)
    with client.messages.stream(**fields) as stream:
        assert "".join(stream.text_stream) == TEXT
        assert stream.get_final_message().usage.output_tokens == 3


def test_thoughts_and_tool_calls_are_carried(front):
    import anthropic  # here: it takes more than a second, in each process

    front.plain.behave = call_a_tool
    answer = front.client().responses.create(model="plain", input="The weather in Rome?", tools=[TOOL])
    thought, call = answer.output
    assert (thought.type, call.type, call.name, call.arguments, call.call_id) == (
        "reasoning",
        "function_call",
        "weather",
        '{"place": "Rome"}',
        "call_1",
    )
    assert front.plain.calls[0].body["tools"][0]["function"]["name"] == "weather"
    tool = {"name": "weather", "input_schema": TOOL["parameters"]}
    client = anthropic.Anthropic(base_url=front.url, api_key="x", max_retries=0)
    message = client.messages.create(model="plain", max_tokens=9, messages=[{"role": "user", "content": "?"}], tools=[tool])
    assert message.stop_reason == "tool_use" and message.content[-1].input == {"place": "Rome"}


def test_a_refusal_and_a_failure_keep_their_form(front):
    async def refuse(call: Call) -> None:
        await call.reply(429, {"error": {"message": "later"}}, retry_after="9")

    front.plain.behave = refuse
    with pytest.raises(openai.RateLimitError, match="later") as caught:
        front.client().responses.create(model="plain", input="Hello.", stream=True)
    assert caught.value.response.headers["retry-after"] == "9"

    async def die(call: Call) -> None:
        await call.begin_events()
        await call.event(chunk(delta={"content": "one "}))

    front.plain.behave = die
    body = {"model": "plain", "input": "Hello.", "stream": True}
    *_, error, failed = front.events(front.http.post("/v1/responses", json=body))
    assert (error["type"], failed["type"], failed["response"]["status"]) == ("error", "response.failed", "failed")
    body = {"model": "plain", "max_tokens": 9, "messages": [{"role": "user", "content": "?"}], "stream": True}
    assert front.events(front.http.post("/v1/messages", json=body))[-1]["type"] == "error"
    assert front.http.post("/v1/messages", json={**body, "stream": False}).status_code == 503


def test_what_a_response_cannot_have_is_refused_with_its_own_names(front):
    response = front.http.post("/v1/responses", json={"model": "plain", "input": "Hi", "background": True, "unheard_of": 1})
    assert response.status_code == 400 and response.json()["error"]["param"] == "background"
    response = front.http.post("/v1/responses", json={"model": "plain", "input": "Hi", "store": True, "unheard_of": 1})
    assert response.headers["x-litmus-ignored"] == "unheard_of, store"
    refused = front.http.post("/v1/messages/count_tokens", json={"model": "plain", "messages": [{"role": "user", "content": "?"}]})
    assert refused.status_code == 400 and "no such route" in refused.json()["error"]["message"]
