"""`/v1/responses` over the fake engine: what its fields mean, and the events of a stream."""

import json
from dataclasses import replace
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from responding import CALL, CHAT, PATH, RESULT, RING, SING, USER, ask

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TWO = '<tool_call>\n{"name": "ring", "arguments": {"times": 2}}\n</tool_call>\n<tool_call>\n{"name": "sing", "arguments": {}}\n</tool_call>'


def say(served: Any, text: str, size: int = 5) -> None:
    served.engine.script = [(text[at : at + size], (3,)) for at in range(0, len(text), size)]


def events_of(body: str) -> list[Any]:
    """The events of a stream. Each has its type in both places, the next number, and is what the client's own types allow."""
    events = []
    for block in body.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}" and event["sequence_number"] == len(events)
        EVENT.validate_python(event)
        events.append(event)
    return events


def last_prompt(served: Any) -> str:
    return str(served.tokenizer.base.decode(served.engine.submitted[-1].prompt))


def test_a_response_has_every_field_of_the_clients_type(served: Any) -> None:
    body = ask(served, metadata={"a": "b"}, user="someone", prompt_cache_key="k", service_tier="flex", temperature=0.5).json()
    Response.model_validate(body)
    (message,) = body["output"]
    part = {"type": "output_text", "text": "5/7/0 5/7/1 5/7/2 ", "annotations": [], "logprobs": []}
    assert message == {"type": "message", "id": message["id"], "role": "assistant", "status": "incomplete", "content": [part]}
    assert (body["object"], body["status"], body["incomplete_details"]) == ("response", "incomplete", {"reason": "max_output_tokens"})
    assert body["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 5},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
        "total_tokens": 8,
    }
    echoed = {
        "store": False,
        "metadata": {"a": "b"},
        "user": "someone",
        "prompt_cache_key": "k",
        "service_tier": "flex",
        "temperature": 0.5,
    }
    assert {name: body[name] for name in echoed} == echoed
    assert (body["tools"], body["tool_choice"], body["parallel_tool_calls"], body["top_p"]) == ([], "auto", True, 1.0)
    assert body["text"]["format"] == {"type": "text"} and body["created_at"] > 0 and body["completed_at"] is None


def test_cached_tokens_are_those_that_were_not_written(served: Any) -> None:
    served.engine.cached_tokens = 4
    assert ask(served).json()["usage"]["input_tokens_details"] == {"cached_tokens": 4, "cache_write_tokens": 1}


def test_fields_that_a_chat_has_too_do_the_same(served: Any) -> None:
    shared = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "presence_penalty": 1.0,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.2,
        "logit_bias": {"5": 1},
        "bad_words": ["x"],
        "seed": 9,
        "stop": ["q"],
        "stop_token_ids": [7],
        "min_tokens": 2,
        "ignore_eos": True,
        "service_tier": "flex",
    }
    ask(served, **shared)
    job = served.engine.submitted[-1]
    assert served.client.post(CHAT, json={"messages": [USER], "max_tokens": 3, **shared}).status_code == 200
    assert replace(served.engine.submitted[-1], id=job.id) == job


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"input": "hi"}, "u:hi"),
        ({"input": "hi", "instructions": "be"}, "s:beu:hi"),
        ({"input": [USER]}, "u:hi"),
        ({"input": [{**USER, "type": "message", "id": None, "status": None}]}, "u:hi"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]}]}, "u:ab"),
        ({"input": [{"role": "developer", "content": "be"}, USER], "instructions": "no"}, "s:nos:beu:hi"),
        ({"input": [{"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "x"}, USER]}, "u:hi"),
        (
            {"input": [USER, {"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": []}]}, USER]},
            "u:hia:xu:hi",
        ),
    ],
)
def test_input_becomes_messages(served: Any, fields: dict[str, Any], prompt: str) -> None:
    assert "X-Litmus-Ignored" not in ask(served, **fields).headers
    assert last_prompt(served) == f"<s>{prompt}"


def test_calls_in_a_row_are_one_message_of_the_assistant(tooled: Any) -> None:
    second = {**CALL, "call_id": "bbbbbbbbb", "name": "sing", "arguments": "{}"}
    said = {"role": "assistant", "content": "so "}
    outputs = [RESULT, {**RESULT, "call_id": "bbbbbbbbb", "output": [{"type": "input_text", "text": "sung"}]}]
    ask(tooled, input=[USER, said, CALL, second, *outputs])
    assert last_prompt(tooled) == f"<s>u:hi</s>a:so {TWO}</s>t:rung</s>t:sung</s>a:"
    ask(tooled, input=[USER, said, {**CALL, "arguments": {"times": 2}}, {**second, "arguments": None}, *outputs])
    assert last_prompt(tooled) == f"<s>u:hi</s>a:so {TWO}</s>t:rung</s>t:sung</s>a:"
    ask(tooled, input=[USER, CALL, RESULT, second, outputs[1]])
    first_call, second_call = TWO.split("\n<tool_call>")
    assert last_prompt(tooled) == f"<s>u:hi</s>a:{first_call}</s>t:rung</s>a:<tool_call>{second_call}</s>t:sung</s>a:"


def test_a_result_without_an_id_answers_the_next_call(tooled: Any) -> None:
    ask(tooled, input=[USER, CALL, {"type": "function_call_output", "output": "rung"}])
    assert last_prompt(tooled).endswith("t:rung</s>a:")


def test_forms_and_tools_reach_the_engine_as_in_a_chat(tooled: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    pairs: list[tuple[Any, Any]] = [
        ({"text": {"format": {"type": "text"}, "verbosity": "medium"}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
        ),
    ]
    functions = [{"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}} for tool in (RING, SING)]
    for choice, named in [("auto", "auto"), ("required", "required"), ("none", "none")]:
        pairs.append(({"tools": [RING, SING], "tool_choice": choice}, {"tools": functions, "tool_choice": named}))
    pairs.append(
        (
            {"tools": [RING, SING], "tool_choice": {"type": "function", "name": "sing"}, "parallel_tool_calls": False},
            {
                "tools": functions,
                "tool_choice": {"type": "function", "function": {"name": "sing"}},
                "parallel_tool_calls": False,
            },
        )
    )
    allowed = {"mode": "auto", "tools": [{"type": "function", "name": "sing"}]}
    in_chat = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "sing"}}]}
    pairs.append(
        (
            {"tools": [RING, SING], "tool_choice": {"type": "allowed_tools", **allowed}},
            {"tools": functions, "tool_choice": {"type": "allowed_tools", "allowed_tools": in_chat}},
        )
    )
    for fields, chat in pairs:
        body = ask(tooled, **fields).json()
        Response.model_validate(body)
        job = tooled.engine.submitted[-1]
        assert tooled.client.post(CHAT, json={"messages": [USER], "max_tokens": 3, "seed": 7, **chat}).status_code == 200
        assert replace(tooled.engine.submitted[-1], id=job.id) == job
        assert body["tool_choice"] == fields.get("tool_choice", "auto")
        assert body["text"]["format"]["type"] == fields.get("text", {}).get("format", {"type": "text"})["type"]
    assert [tool["name"] for tool in body["tools"]] == ["ring", "sing"]


def test_calls_are_items_of_their_own(tooled: Any) -> None:
    say(tooled, "Yes. " + TWO)
    body = ask(tooled, tools=[RING, SING], max_output_tokens=99).json()
    assert [(item["type"], item["status"]) for item in body["output"]] == [
        ("message", "completed"),
        ("function_call", "completed"),
        ("function_call", "completed"),
    ]
    assert body["output"][0]["content"][0]["text"] == "Yes. "
    assert [(call["name"], json.loads(call["arguments"])) for call in body["output"][1:]] == [("ring", {"times": 2}), ("sing", {})]
    assert len({item["id"] for item in body["output"]}) == 3 and len({call["call_id"] for call in body["output"][1:]}) == 2
    assert body["status"] == "completed" and body["completed_at"] >= body["created_at"]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_stream_tells_every_step_of_text_and_calls(tooled: Any, size: int) -> None:
    say(tooled, "Yes. " + TWO, size)
    events = events_of(ask(tooled, tools=[RING, SING], max_output_tokens=200, stream=True).text)
    steps = [event["type"] for event in events if not event["type"].endswith("delta")]
    call = ["response.output_item.added", "response.function_call_arguments.done", "response.output_item.done"]
    assert steps == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        *call,
        *call,
        "response.completed",
    ]
    final = events[-1]["response"]
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == final["output"]
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert added[0]["content"] == [] and added[1]["arguments"] == "" and {item["status"] for item in added} == {"in_progress"}
    for index, item in enumerate(final["output"]):
        deltas = "".join(event["delta"] for event in events if event["type"].endswith("delta") and event["output_index"] == index)
        assert deltas == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
    assert events[0]["response"]["output"] == [] and events[0]["response"]["usage"] is None
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1


def test_a_call_that_is_cut_is_incomplete(tooled: Any) -> None:
    say(tooled, TWO[:50])
    body = ask(tooled, tools=[RING], max_output_tokens=99).json()
    assert [(call["name"], call["status"]) for call in body["output"]] == [("ring", "incomplete")]


def test_an_answer_without_text_is_an_empty_message(served: Any) -> None:
    served.engine.script = [("", (1,))]
    (message,) = ask(served).json()["output"]
    assert (message["status"], message["content"][0]["text"]) == ("completed", "")
    events = events_of(ask(served, stream=True).text)
    assert [event["type"] for event in events][-1] == "response.completed" and events[-1]["response"]["output"][0]["content"]


def test_a_failure_in_mid_stream_is_told_and_ends_it(served: Any) -> None:
    events = events_of(ask(served, input="~", stream=True).text)
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "error", "response.failed"]
    assert events[2]["code"] == "engine_failed" and events[2]["message"] == "poisoned"
    assert events[3]["response"]["status"] == "failed" and events[3]["response"]["error"]["message"] == "poisoned"
    assert served.client.post(PATH, json={"input": "~"}).status_code == 500


def test_a_waiting_stream_hears_its_place_in_the_queue(served: Any) -> None:
    served.engine.queue_steps = 2
    blocks = ask(served, stream=True).text.split("\n\n")
    assert [block for block in blocks if block.startswith(":")] == [": queued position=2", ": queued position=1 eta_s=1"]


def test_log_probabilities_are_beside_the_text(served: Any) -> None:
    asked: list[Any] = [{"include": ["message.output_text.logprobs"]}, {"top_logprobs": 2}]
    for fields, count in zip(asked, [0, 2], strict=True):
        body = ask(served, **fields).json()
        Response.model_validate(body)
        entries = body["output"][0]["content"][0]["logprobs"]
        assert len(entries) == 3 and {len(entry["top_logprobs"]) for entry in entries} == {count}
        events = events_of(ask(served, stream=True, **fields).text)
        deltas = [event for event in events if event["type"] == "response.output_text.delta"]
        assert [entry for event in deltas for entry in event["logprobs"]] == entries
    assert ask(served, top_logprobs=0).json()["output"][0]["content"][0]["logprobs"] == []
