"""Structured output: which grammar reaches the engine, how tool calls come back, and what is refused by name."""

import json
from dataclasses import replace
from typing import Any

import psutil
import pytest
from fakes import FACTS, HERMES
from tool_templates import LLAMA

from serve.workers.messages import Ready

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
RING = {"type": "function", "function": {"name": "ring", "parameters": {"type": "object", "properties": {"times": {"type": "integer"}}}}}
SING = {"type": "function", "function": {"name": "sing"}}
TWO = '<tool_call>\n{"name": "ring", "arguments": {"times": 2}}\n</tool_call>\n<tool_call>\n{"name": "sing", "arguments": {}}\n</tool_call>'


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def ask(served: Any, **fields: Any) -> Any:
    return served.client.post(CHAT, json={"messages": HELLO, "max_tokens": 40, "seed": 1, **fields})


def schema(json_schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": json_schema}}


def say(served: Any, text: str, size: int = 5) -> None:
    served.engine.script = [(text[at : at + size], (3,)) for at in range(0, len(text), size)]


def test_without_a_response_format_there_is_no_grammar(served: Any) -> None:
    for fields in ({}, {"response_format": {"type": "text"}}, {"response_format": None}):
        assert ask(served, **fields).status_code == 200
        assert served.engine.submitted[-1].grammar is None


def test_a_schema_reaches_the_engine_as_a_grammar(served: Any) -> None:
    grammars = set()
    llama_server = {"type": "json_object", "schema": {"type": "integer"}}
    for form in (
        {"type": "json_schema", "schema": {"type": "integer"}},
        {"type": "json_object"},
        schema({"type": "integer"}),
        {"type": "json_schema", "json_schema": {"name": "any"}},
        llama_server,
    ):
        assert ask(served, response_format=form).status_code == 200
        grammars.add(served.engine.submitted[-1].grammar)
    assert None not in grammars and len(grammars) == 2  # json_object is json_schema without a schema
    assert served.engine.submitted[-1].grammar == served.engine.submitted[0].grammar == served.engine.submitted[2].grammar


@pytest.mark.parametrize(
    ("bad_schema", "keyword"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "wood"}, "wood"),
        ({"$ref": "#/nowhere"}, "nowhere"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_by_name(served: Any, tooled: Any, bad_schema: dict[str, Any], keyword: str) -> None:
    error = ask(served, response_format=schema(bad_schema)).json()["error"]
    assert error["param"] == "response_format.json_schema.schema" and keyword in error["message"]
    assert not served.engine.submitted
    parameters = {"type": "object", "properties": {"b": bad_schema}}
    tool = {"type": "function", "function": {"name": "a", "strict": True, "parameters": parameters}}
    error = ask(tooled, tools=[RING, tool]).json()["error"]
    assert error["param"] == "tools.1.function.parameters" and keyword in error["message"]


@pytest.mark.parametrize("fields", [{"bad_words": ["x"]}, {"min_tokens": 1}, {"ignore_eos": True}, {"stop_token_ids": [5]}])
def test_fields_that_force_or_ban_tokens_are_refused_with_a_grammar(tooled: Any, fields: dict[str, Any]) -> None:
    for form in ({"response_format": {"type": "json_object"}}, {"tools": [RING]}):
        error = ask(tooled, **form, **fields).json()["error"]
        assert error["param"] == next(iter(fields)) and next(iter(form)) in error["message"]
    assert ask(tooled, tools=[RING], tool_choice="none", **fields).status_code == 200


def test_tools_and_a_form(tooled: Any) -> None:
    form = schema({"type": "object", "properties": {"a": {"type": "string"}}})
    say(tooled, '{"a": "<tool_call>"}')
    choice = ask(tooled, tools=[RING], response_format=form).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ('{"a": "<tool_call>"}', "stop")
    assert tooled.engine.submitted[-1].grammar.startswith("start: form | calls")
    say(tooled, TWO)
    choice = ask(tooled, tools=[RING, SING], response_format=form).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and [call["function"]["name"] for call in choice["message"]["tool_calls"]] == [
        "ring",
        "sing",
    ]
    assert ask(tooled, tools=[RING], tool_choice="required", response_format=form).status_code == 200
    assert "form" not in tooled.engine.submitted[-1].grammar
    error = ask(tooled, tools=[RING], response_format=schema({"type": "string", "format": "no"})).json()["error"]
    assert error["param"] == "response_format.json_schema.schema"


def test_a_form_beside_calls_that_begin_like_json_is_refused(tooled: Any) -> None:
    tooled.tokenizer.base.chat_template = LLAMA
    form = schema({"type": "object"})
    error = ask(tooled, tools=[RING], response_format=form).json()["error"]
    assert error["param"] == "response_format" and "begin like JSON" in error["message"]
    assert ask(tooled, tools=[RING], response_format=form, tool_choice="none").status_code == 200


def test_tools_that_are_too_complex_together_are_refused(tooled: Any) -> None:
    def tool(place: int) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 7001 + place}}}
        return {"type": "function", "function": {"name": f"f{place}", "strict": True, "parameters": parameters}}

    assert ask(tooled, tools=[tool(0)]).status_code == 200
    error = ask(tooled, tools=[tool(0), tool(1)]).json()["error"]
    assert (error["param"], error["code"]) == ("tools", "unsupported_schema") and "multipleOf" in error["message"]


def test_calls_are_taken_out_of_the_text(tooled: Any) -> None:
    say(tooled, "I will. " + TWO)
    choice = ask(tooled, tools=[RING, SING]).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"].strip() == "I will."
    calls = choice["message"]["tool_calls"]
    assert [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls] == [
        ("ring", {"times": 2}),
        ("sing", {}),
    ]
    assert len({call["id"] for call in calls}) == 2 and all(call["type"] == "function" and len(call["id"]) == 9 for call in calls)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_streamed_name_first_and_without_their_markup(tooled: Any, size: int) -> None:
    say(tooled, TWO, size)
    response = ask(tooled, tools=[RING, SING], tool_choice="required", stream=True)
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    assert not "".join(delta.get("content") or "" for delta in deltas)
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", [])]
    named = [piece for piece in pieces if "id" in piece]
    assert [(piece["index"], piece["function"]["name"]) for piece in named] == [(0, "ring"), (1, "sing")]
    for entries in (delta.get("tool_calls", []) for delta in deltas):
        assert len({entry["index"] for entry in entries}) == len(entries), "clients read one entry of a call in each chunk"
    for index, expected in enumerate(('{"times": 2}', "{}")):
        assert "".join(piece["function"]["arguments"] for piece in pieces if piece["index"] == index) == expected
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert response.text.endswith("data: [DONE]\n\n")


def test_text_without_a_call_ends_as_usual(tooled: Any) -> None:
    say(tooled, "a < b <tool and so on")
    choice = ask(tooled, tools=[RING]).json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "a < b <tool and so on")
    assert choice["message"]["tool_calls"] is None


def test_a_call_that_is_cut_keeps_the_reason(tooled: Any) -> None:
    say(tooled, TWO[:45])
    choice = ask(tooled, tools=[RING, SING]).json()["choices"][0]
    assert choice["finish_reason"] == "stop" and len(choice["message"]["tool_calls"]) == 1


def test_tool_choice_decides_what_the_prompt_and_the_grammar_contain(tooled: Any) -> None:
    grammars = {}
    for choice in ("auto", "required", {"type": "function", "function": {"name": "sing"}}, "none"):
        assert ask(tooled, tools=[RING, SING], tool_choice=choice).status_code == 200
        job = tooled.engine.submitted[-1]
        grammars[str(choice)] = job.grammar
        assert ("ring" in tooled.tokenizer.decode(list(job.prompt))) == (choice != "none")
    assert grammars["none"] is None and len(set(grammars.values())) == 4
    assert ask(tooled, tools=[RING, SING], parallel_tool_calls=False).status_code == 200
    assert tooled.engine.submitted[-1].grammar != grammars["auto"]


def test_only_tools_that_are_allowed_are_called(tooled: Any) -> None:
    """The prompt has them all, the grammar is that of the allowed ones."""
    for mode in ("auto", "required"):
        jobs = []
        for tools, choice in (([RING, SING], allowed(mode, "sing")), ([SING], mode), ([RING, SING], mode)):
            assert ask(tooled, tools=tools, tool_choice=choice).status_code == 200
            jobs.append(tooled.engine.submitted[-1])
        some, one, both = jobs
        assert some.grammar == one.grammar != both.grammar and some.prompt == both.prompt != one.prompt
        assert ask(tooled, tools=[RING, SING], tool_choice=allowed(mode, "sing", "ring")).status_code == 200
        assert tooled.engine.submitted[-1].grammar == both.grammar


@pytest.mark.parametrize(
    ("fields", "param", "message_part"),
    [
        ({"tool_choice": "required"}, "tool_choice", "tools"),
        ({"tool_choice": allowed("auto", "ring")}, "tool_choice", "tools"),
        ({"tools": [RING], "tool_choice": allowed("auto", "ring", "x")}, "tool_choice.allowed_tools.tools.1.function.name", "'x'"),
        ({"tools": [RING], "tool_choice": allowed("none", "ring")}, "tool_choice.allowed_tools.mode", "required"),
        ({"tools": [RING], "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools", "at least 1"),
        ({"tools": [RING], "tool_choice": {"type": "some"}}, "tool_choice", "function"),
        ({"tools": [RING], "tool_choice": {"type": "function", "name": "ring"}}, "tool_choice", '"function": {"name": "..."}'),
        ({"tools": [RING], "tool_choice": "any"}, "tool_choice", '{"type": "allowed_tools"'),
        ({"tools": [RING], "tool_choice": 5}, "tool_choice", "an object"),
        ({"tools": [], "tool_choice": {"type": "function", "function": {"name": "ring"}}}, "tool_choice", "tools"),
        ({"tools": [RING, RING]}, "tools.1.function.name", "ring"),
        ({"tools": [RING], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice.function.name", "'x'"),
        ({"tools": [RING], "tool_choice": "any"}, "tool_choice", "required"),
        ({"tools": [RING], "tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name", "missing"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]}, "tools.0.function", "object"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "function"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "text", "json_schema": {"name": "a"}}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema", "schema": {}, "json_schema": {"name": "a"}}}, "response_format", "beside it"),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format", "text"),
        ({"response_format": {"type": "json_schema", "schema": {"not": {}}}}, "response_format.schema", "not"),
        ({"response_format": {"type": "json_object", "schema": {"not": {}}}}, "response_format.schema", "not"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name", "missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 3}}},
            "response_format.json_schema.schema",
            "dict",
        ),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata", "16"),
        ({"metadata": {"a": 3}}, "metadata.a", "string"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a", "512"),
        ({"user": "x" * 257}, "user", "256"),
    ],
)
def test_what_is_wrong_is_named(tooled: Any, fields: dict[str, Any], param: str, message_part: str) -> None:
    answer = ask(tooled, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert message_part in error["message"], error


def test_where_the_template_has_no_place_for_tools_they_are_told_in_plain_messages(served: Any) -> None:
    served.router.append([Ready(psutil.Process().pid, 0, replace(FACTS, context=4096)), "OK"])
    say(served, '<tool_call>{"name": "ring", "arguments": {"times": 2}}</tool_call>')
    answer = ask(served, tools=[RING]).json()
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("ring", {"times": 2})
    told = served.tokenizer.decode(list(served.engine.submitted[-1].prompt))
    assert told.startswith("s:You can call these functions") and '{"name": "ring"' in told and told.endswith("u:hi")
    messages = [*HELLO, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": call["id"], "content": "ding"}]
    served.client.post(CHAT, json={"messages": messages, "max_tokens": 4})
    told = served.tokenizer.decode(list(served.engine.submitted[-1].prompt))
    assert told == 'u:hia:<tool_call>{"name": "ring", "arguments": {"times": 2}}</tool_call>u:<tool_response>ding</tool_response>'


def test_a_template_without_a_turn_of_the_system_gets_the_tools_in_the_users_turn(served: Any) -> None:
    served.router.append([Ready(psutil.Process().pid, 0, replace(FACTS, context=4096)), "OK"])
    template = served.tokenizer.base.chat_template
    served.tokenizer.base.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + template
    assert ask(served, tools=[RING]).status_code == 200
    assert served.tokenizer.decode(list(served.engine.submitted[-1].prompt)).startswith("u:You can call these functions")


def test_metadata_comes_back(served: Any) -> None:
    assert ask(served, metadata={"a": "b"}).json()["metadata"] == {"a": "b"}
    assert ask(served).json()["metadata"] is None


def test_a_banned_user_is_refused(served: Any) -> None:
    for path, body in ((CHAT, {"messages": HELLO}), ("/v1/completions", {"prompt": "hi"})):
        assert served.client.post(path, json={**body, "max_tokens": 1, "user": "good"}).status_code == 200
        answer = served.client.post(path, json={**body, "max_tokens": 1, "user": "banned"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "user_banned")


XML = HERMES.replace(
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>',
    "<tool_call>\n<function={{ c.function.name }}>\n{% for k, v in c.function.arguments | items %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>",
)
CALL = (
    "<tool_call>\n<function=ring>\n<parameter=times>\n2\n</parameter>\n"
    '<parameter=why>\n7 "o\'clock"\n</parameter>\n</function>\n</tool_call>'
)
WHY = {
    "type": "function",
    "function": {"name": "ring", "parameters": {"properties": {"times": {"type": "integer"}, "why": {"type": "string"}}}},
}


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_arguments_written_one_by_one_come_back_as_json_and_return_to_the_template(tooled: Any, size: int) -> None:
    tooled.tokenizer.base.chat_template = XML
    for choice in ("auto", "required"):
        say(tooled, CALL, size)
        answer = ask(tooled, tools=[WHY], tool_choice=choice).json()["choices"][0]
        (call,) = answer["message"]["tool_calls"]
        assert answer["finish_reason"] == "tool_calls"
        assert json.loads(call["function"]["arguments"]) == {"times": 2, "why": '7 "o\'clock"'}
    say(tooled, "Done.")
    turns = [*HELLO, answer["message"], {"role": "tool", "tool_call_id": call["id"], "content": "rung"}]
    messages = [{key: turn[key] for key in ("role", "content", "tool_calls", "tool_call_id") if turn.get(key)} for turn in turns]
    assert ask(tooled, messages=messages, tools=[WHY]).status_code == 200
    assert CALL in tooled.tokenizer.decode(list(tooled.engine.submitted[-1].prompt))


def test_parameters_that_cannot_be_written_one_by_one_are_refused_by_name(tooled: Any) -> None:
    tooled.tokenizer.base.chat_template = XML
    parameters = {"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}
    ring = {"type": "function", "function": {"name": "ring", "strict": True, "parameters": parameters}}
    error = ask(tooled, tools=[SING, ring]).json()["error"]
    assert (error["param"], error["code"]) == ("tools.1.function.parameters", "unsupported_schema") and "anyOf" in error["message"]
