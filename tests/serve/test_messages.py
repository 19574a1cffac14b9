"""Anthropic's Messages API through the real routes, router and middleware, over a fake engine."""

import json
from dataclasses import replace
from typing import Any

import psutil
import pytest
from fakes import FACTS
from messaging import COUNT, HELLO, RING, SING, post

from app.engine.request import SamplingParams
from serve.workers.messages import Ready

RING_CALL = '<tool_call>\n{"name": "ring", "arguments": {"times": 2}}\n</tool_call>'
SING_CALL = '<tool_call>\n{"name": "sing", "arguments": {}}\n</tool_call>'


def ask(served: Any, **fields: Any) -> Any:
    response = post(served, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def prompt(served: Any, **fields: Any) -> str:
    """What the model reads."""
    ask(served, **fields)
    text: str = served.tokenizer.decode_with_special_tokens(list(served.engine.submitted[-1].prompt))
    return text


def events(served: Any, **fields: Any) -> list[dict[str, Any]]:
    response = post(served, stream=True, **fields)
    assert response.headers["content-type"].startswith("text/event-stream")
    return [parsed(block) for block in response.text.split("\n\n") if block and not block.startswith(":")]


def parsed(block: str) -> dict[str, Any]:
    name, data = block.split("\n")
    body: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert name == f"event: {body['type']}"
    return body


def say(served: Any, text: str, size: int = 5) -> None:
    served.engine.script = [(text[at : at + size], (3,)) for at in range(0, len(text), size)]


def test_a_limit_beyond_the_context_is_the_context(served: Any) -> None:
    body = ask(served, max_tokens=10_000)
    job = served.engine.submitted[-1]
    assert body["stop_reason"] == "max_tokens" and job.max_tokens == 64 - len(job.prompt) and job.unlimited
    ask(served, max_tokens=5)
    assert not served.engine.submitted[-1].unlimited


def test_an_answer_has_anthropics_form(served: Any) -> None:
    served.engine.cached_tokens = 2
    body = ask(served, model="fake")
    seed = served.engine.submitted[-1].sampling.seed
    assert body.pop("id").startswith("msg_")
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": "fake",
        "content": [{"type": "text", "text": f"5/{seed}/0 5/{seed}/1 5/{seed}/2 "}],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 2, "output_tokens": 3},
    }


@pytest.mark.parametrize(("found", "reason"), [(None, "end_turn"), ("END", "stop_sequence")])
def test_the_stop_sequence_that_ended_the_answer_is_named(served: Any, found: str | None, reason: str) -> None:
    say(served, "It is done.")
    served.engine.stop_string = found
    body = ask(served, stop_sequences=["END", ""])
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, found)
    assert served.engine.submitted[-1].stop == ("END",)
    delta = events(served, stop_sequences=["END"])[-2]["delta"]
    assert delta == {"stop_reason": reason, "stop_sequence": found}


def test_every_field_reaches_the_engine(served: Any) -> None:
    ask(
        served,
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        min_p=0.125,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.25,
        seed=9,
        service_tier="standard_only",
        metadata={"user_id": "me"},
        thinking={"type": "disabled"},
    )
    job = served.engine.submitted[-1]
    assert job.max_tokens == 3
    assert job.sampling == SamplingParams(0.5, 7, 0.25, 0.125, 9, 1.25, 0.5, -0.5)


def test_the_prompt_is_that_of_the_same_chat(tooled: Any) -> None:
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    conversation = [
        {"role": "user", "content": [{"type": "text", "text": "ring, "}, {"type": "text", "text": "please", **cached}]},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "Yes."}, {"type": "tool_use", "id": "a1", "name": "ring", "input": {"times": 2}}],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a1", "content": [{"type": "text", "text": "no bell"}], "is_error": True},
                {"type": "text", "text": "Sorry."},
            ],
        },
    ]
    text = prompt(tooled, system=[{"type": "text", "text": "Be "}, {"type": "text", "text": "kind.", **cached}], messages=conversation)
    assert text == (
        "<s>s:Be kind.</s>u:ring, please</s>a:Yes.<tool_call>\n"
        '{"name": "ring", "arguments": {"times": 2}}\n</tool_call></s>t:Error: no bell</s>u:Sorry.</s>a:'
    )


BILLING = "x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch=a5145;"


@pytest.mark.parametrize(
    "system",
    [
        [{"type": "text", "text": BILLING}, {"type": "text", "text": "Be kind."}],
        [{"type": "text", "text": BILLING.removesuffix(" cch=a5145;")}, {"type": "text", "text": "Be kind."}],
        [{"type": "text", "text": f"{BILLING}\nBe kind."}],
        f"{BILLING}Be kind.",
        f"{BILLING[:-1]}\n\nBe kind.",
    ],
)
def test_the_line_that_differs_in_each_request_of_claude_code_is_not_in_the_prompt(tooled: Any, system: Any) -> None:
    assert prompt(tooled, system=system) == "<s>s:Be kind.</s>u:hi</s>a:"


def test_a_system_prompt_of_that_line_alone_is_none(tooled: Any) -> None:
    assert prompt(tooled, system=BILLING) == "<s>u:hi</s>a:"
    later = [*HELLO, {"role": "system", "content": [{"type": "text", "text": f"{BILLING}Be brief."}]}]
    assert prompt(tooled, system="Mind x-anthropic-billing-header: a=b;", messages=later) == (
        "<s>s:Mind x-anthropic-billing-header: a=b;</s>u:hi</s>s:Be brief.</s>a:"
    )


@pytest.mark.parametrize("refusal", ["{{ raise_exception('first only') }}", ""])
def test_what_the_system_says_later_stands_first_where_the_template_takes_it_nowhere_else(tooled: Any, refusal: str) -> None:
    tooled.tokenizer.base.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        + refusal
        + "{% else %}{{ m.role[0] + ':' + m.content + ';' }}{% endif %}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    later = [*HELLO, {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "ho"}, *HELLO]
    assert prompt(tooled, system="Be kind.", messages=later) == "s:Be kind.\n\nBe brief.;u:hi;a:ho;u:hi;a:"
    assert prompt(tooled, messages=later) == "s:Be brief.;u:hi;a:ho;u:hi;a:"


def test_roles_of_claude_code_are_the_users_and_redacted_thoughts_are_not_shown(tooled: Any) -> None:
    conversation = [
        {"role": "ctx", "content": "hi"},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "c2VjcmV0"}, {"type": "text", "text": "ho"}]},
        {"role": "msg", "content": "bye"},
    ]
    assert prompt(tooled, messages=conversation) == "<s>u:hi</s>a:ho</s>u:bye</s>a:"


def test_many_tools_and_blocks_and_long_names_are_taken(tooled: Any) -> None:
    names = [f"t{index}" for index in range(180)] + [f"mcp__{index}.{'x' * 120}" for index in range(3)]
    tools = [{"name": name, "input_schema": {}} for name in names]
    say(tooled, f'<tool_call>\n{{"name": "{names[-1]}", "arguments": {{}}}}\n</tool_call>')
    tooled.router.append([Ready(psutil.Process().pid, 0, replace(FACTS, context=40_000)), "OK"])
    body = ask(tooled, tools=tools, messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 200}])
    (call,) = body["content"]
    assert (call["name"], body["stop_reason"]) == (names[-1], "tool_use")
    used = {"type": "tool_use", "id": "a1", "name": names[-1], "input": {}}
    history = [
        *HELLO,
        {"role": "assistant", "content": [used]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a1"}]},
    ]
    assert names[-1] in prompt(tooled, messages=history)


def test_a_last_message_of_the_assistant_is_continued(tooled: Any) -> None:
    assert prompt(tooled, messages=[*HELLO, {"role": "assistant", "content": "It was the"}]) == "<s>u:hi</s>a:It was the"
    with_tools_unused = {"tools": [RING], "tool_choice": {"type": "none"}}
    assert prompt(tooled, messages=[*HELLO, {"role": "assistant", "content": "So"}], **with_tools_unused).endswith("a:So")


def test_tool_choice_decides_what_the_prompt_and_the_grammar_contain(tooled: Any) -> None:
    grammars = {}
    for choice in ({"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "sing"}, {"type": "none"}):
        text = prompt(tooled, tools=[RING, SING], tool_choice=choice)
        assert ('"ring"' in text and "Ring it." in text) == (choice["type"] != "none")
        grammars[choice["type"]] = tooled.engine.submitted[-1].grammar
    assert grammars["none"] is None and len(set(grammars.values())) == 4
    ask(tooled, tools=[RING, SING])
    assert tooled.engine.submitted[-1].grammar == grammars["auto"]
    ask(tooled, tools=[RING, SING], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert tooled.engine.submitted[-1].grammar not in grammars.values()


def test_an_output_format_reaches_the_engine_as_a_grammar(served: Any) -> None:
    ask(served, output_config={"format": {"type": "json_schema", "schema": {"type": "integer"}}})
    assert served.engine.submitted[-1].grammar is not None


def test_calls_are_blocks_with_parsed_input(tooled: Any) -> None:
    say(tooled, f"I will. {RING_CALL}\n{SING_CALL}")
    body = ask(tooled, tools=[RING, SING])
    text, ring, sing = body["content"]
    assert (text["type"], text["text"].strip(), body["stop_reason"]) == ("text", "I will.", "tool_use")
    assert [(call["type"], call["name"], call["input"]) for call in (ring, sing)] == [
        ("tool_use", "ring", {"times": 2}),
        ("tool_use", "sing", {}),
    ]
    assert ring["id"] and ring["id"] != sing["id"]


def test_a_call_that_is_cut_off_is_left_out(tooled: Any) -> None:
    say(tooled, RING_CALL[:45])
    body = ask(tooled, tools=[RING])
    assert (body["content"], body["stop_reason"]) == ([], "end_turn")


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_stream_writes_one_block_after_the_other(tooled: Any, size: int) -> None:
    say(tooled, f"I will. {RING_CALL}\n{SING_CALL}", size)
    tooled.engine.cached_tokens = 4
    sent = events(tooled, tools=[RING, SING])
    kinds = [event["type"] for event in sent]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"] and kinds[-2:] == ["message_delta", "message_stop"]
    start, usage = sent[0]["message"], sent[-2]["usage"]
    assert (start["content"], start["stop_reason"], start["role"], start["type"]) == ([], None, "assistant", "message")
    assert start["usage"]["cache_read_input_tokens"] == usage["cache_read_input_tokens"] == 4
    assert usage["input_tokens"] + 4 == len(tooled.engine.submitted[-1].prompt)
    assert usage["output_tokens"] == len(tooled.engine.script)
    assert sent[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    blocks = [event for event in sent if event["type"].startswith("content_block")]
    order = [(event["index"], event["type"]) for event in blocks if event["type"] != "content_block_delta"]
    assert order == [(index, kind) for index in range(3) for kind in ("content_block_start", "content_block_stop")]
    starts = [event["content_block"] for event in blocks if event["type"] == "content_block_start"]
    assert starts[0] == {"type": "text", "text": ""}
    assert [(block["name"], block["input"]) for block in starts[1:]] == [("ring", {}), ("sing", {})]
    deltas: dict[int, str] = {0: "", 1: "", 2: ""}
    for event in blocks:
        if event["type"] == "content_block_delta":
            kind, field = ("text_delta", "text") if event["index"] == 0 else ("input_json_delta", "partial_json")
            assert event["delta"]["type"] == kind
            deltas[event["index"]] += event["delta"][field]
    assert (deltas[0].strip(), json.loads(deltas[1]), json.loads(deltas[2])) == ("I will.", {"times": 2}, {})


def test_a_waiting_stream_hears_its_place_before_its_message_starts(served: Any) -> None:
    served.engine.queue_steps = 2
    text = post(served, stream=True).text
    assert text.startswith(": queued position=2\n\n: queued position=1 eta_s=1\n\nevent: message_start\n")


def test_a_failure_in_mid_stream_is_an_error_event(served: Any) -> None:
    error = {"type": "error", "error": {"type": "api_error", "message": "poisoned"}, "request_id": None}
    assert events(served, messages=[{"role": "user", "content": "~"}]) == [error]
    response = post(served, messages=[{"role": "user", "content": "~"}])
    assert (response.status_code, response.json()) == (500, error)


def test_tokens_are_counted_as_the_prompt_has_them(tooled: Any) -> None:
    fields: dict[str, Any] = {"system": "Be kind.", "tools": [RING], "messages": HELLO}
    counted = post(tooled, COUNT, **fields)
    ask(tooled, **fields)
    assert counted.json() == {"input_tokens": len(tooled.engine.submitted[-1].prompt)}
    without = post(tooled, COUNT, **{**fields, "tool_choice": {"type": "none"}}).json()["input_tokens"]
    assert without < counted.json()["input_tokens"] and len(tooled.engine.submitted) == 1
