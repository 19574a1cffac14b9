"""Forms of an answer by OpenAI's, vLLM's and llama-server's fields, in chat and completions; and tools with less than their schemas."""

import json
from dataclasses import replace
from typing import Any

import psutil
import pytest
from fakes import FACTS, HERMES
from tool_templates import LLAMA

from app.forms import lark
from app.forms.grammar import json_grammar
from app.forms.lark import choice_grammar, regex_grammar, written_grammar
from app.forms.trial import trial_error
from serve.workers.messages import Ready

CHAT, TEXT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
HELLO = [{"role": "user", "content": "hi"}]
IGNORED = "X-Litmus-Ignored"
SCHEMA = {"type": "integer"}
GBNF = "root ::= [a-z]+"
LARK = "start: /[a-z]+/"
RELAXED = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string", "not": {}}, "uniqueItems": True}}}
LEFT_OUT = ("properties.a.items.not", "properties.a.uniqueItems")


def ask(served: Any, path: str = CHAT, **fields: Any) -> Any:
    body = {CHAT: {"messages": HELLO}, TEXT: {"prompt": "a"}, MESSAGES: {"messages": HELLO}, RESPONSES: {"input": "hi"}}[path]
    limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
    return served.client.post(path, json={**body, limit: 20, **fields})


def tool(name: str = "ring", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"structured_outputs": {"json": SCHEMA}}, json_grammar(SCHEMA)),
        ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, json_grammar(SCHEMA)),
        ({"structured_outputs": {"json_object": True, "disable_any_whitespace": True}}, json_grammar(None)),
        ({"structured_outputs": {"regex": r"\d+", "json_object": False}}, regex_grammar(r"\d+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, choice_grammar(["a", "b"])),
        ({"structured_outputs": {"grammar": LARK}}, written_grammar(LARK)),
        ({"guided_json": SCHEMA}, json_grammar(SCHEMA)),
        ({"guided_regex": r"\d+"}, regex_grammar(r"\d+")),
        ({"guided_choice": ["a", "b"]}, choice_grammar(["a", "b"])),
        ({"guided_grammar": LARK}, written_grammar(LARK)),
        ({"grammar": GBNF, "response_format": {"type": "text"}}, written_grammar(GBNF)),
        ({"json_schema": SCHEMA, "grammar": ""}, json_grammar(SCHEMA)),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, json_grammar(SCHEMA)),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, json_grammar(SCHEMA)),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}, json_grammar(SCHEMA)),
        ({"response_format": {"type": "text"}, "grammar": ""}, None),
    ],
)
def test_each_form_reaches_the_engine_as_a_grammar(served: Any, path: str, fields: dict[str, Any], grammar: str | None) -> None:
    response = ask(served, path, **fields, n=2)
    assert response.status_code == 200, response.text
    assert [job.grammar for job in served.engine.submitted] == [grammar] * 2
    streamed = ask(served, path, **fields, stream=True)
    assert streamed.status_code == 200 and served.engine.submitted[-1].grammar == grammar


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("fields", "param", "code", "says"),
    [
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value", "exactly one"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "invalid_value", "regex and choice"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag", "unsupported_parameter", "structural_tag"),
        ({"structured_outputs": {"regex": "[a"}}, "structured_outputs.regex", "unsupported_form", "unclosed"),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json", "unsupported_schema", "not"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "invalid_value", "at least 1"),
        ({"guided_json": "[1"}, "guided_json", "invalid_value", "JSON schema"),
        ({"guided_regex": "(a{0,1000}){0,1000}"}, "guided_regex", "unsupported_form", "written out"),
        ({"guided_choice": "ab"}, "guided_choice", "invalid_value", "list"),
        ({"guided_grammar": "start: x"}, "guided_grammar", "unsupported_form", "unknown name"),
        ({"grammar": "root ::= x"}, "grammar", "unsupported_form", "'x' not found"),
        ({"grammar": GBNF, "json_schema": SCHEMA}, "json_schema", "invalid_value", "cannot be combined with grammar"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "invalid_value", "response_format"),
        ({"json_schema": {"not": {}}}, "json_schema", "unsupported_schema", "not"),
        ({"guided_regex": "a", "bad_words": ["a"]}, "bad_words", "invalid_value", "guided_regex"),
        ({"grammar": GBNF, "ignore_eos": True}, "ignore_eos", "invalid_value", "grammar"),
    ],
)
def test_what_is_wrong_with_a_form_is_named(served: Any, path: str, fields: dict[str, Any], param: str, code: str, says: str) -> None:
    response = ask(served, path, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code), error
    assert says in error["message"] and not served.engine.submitted


@pytest.mark.parametrize(
    "fields",
    [{"guided_regex": "ab[cd]e"}, {"guided_choice": ["one of two", "two"]}, {"grammar": "root ::= [x-z]+"}, {"guided_regex": "(ab"}],
)
def test_a_form_is_tried_out_once(served: Any, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    tried = []
    monkeypatch.setattr(lark, "trial_error", lambda *grammar: tried.append(grammar) or trial_error(*grammar))
    answers = [ask(served, path, **fields) for path in (CHAT, TEXT, CHAT)]
    assert len(tried) == 1
    assert len({answer.status_code for answer in answers}) == 1
    assert answers[0].json().get("error") == answers[2].json().get("error")


def test_json_forms_stand_beside_tools_and_others_do_not(tooled: Any) -> None:
    for fields in ({"structured_outputs": {"json": SCHEMA}}, {"guided_json": SCHEMA}, {"json_schema": SCHEMA}):
        assert ask(tooled, tools=[tool()], **fields).status_code == 200
        grammar = tooled.engine.submitted[-1].grammar
        assert grammar.startswith("start: form | calls") and json_grammar(SCHEMA).removeprefix("start:") in grammar
    for field, value in (("guided_regex", "a"), ("grammar", GBNF), ("structured_outputs", {"choice": ["a"]})):
        error = ask(tooled, tools=[tool()], **{field: value}).json()["error"]
        assert error["param"] == field and "tools" in error["message"]
        assert ask(tooled, tools=[tool()], tool_choice="none", **{field: value}).status_code == 200


def test_a_form_beside_calls_that_begin_like_json_is_refused_by_its_name(tooled: Any) -> None:
    tooled.tokenizer.base.chat_template = LLAMA
    assert ask(tooled, tools=[tool()], guided_json=SCHEMA).json()["error"]["param"] == "guided_json"


def test_a_form_begins_with_the_answer(served: Any) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "a", "prefix": True}]
    error = ask(served, messages=messages, guided_regex="a").json()["error"]
    assert "guided_regex" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "tools", "param"),
    [
        (CHAT, [tool("sing"), tool(parameters=RELAXED)], "tools.1.function.parameters"),
        (RESPONSES, [{"type": "function", "name": "ring", "parameters": RELAXED}], "tools.0.parameters"),
        (MESSAGES, [{"name": "ring", "input_schema": RELAXED}], "tools.0.input_schema"),
    ],
)
def test_what_is_not_enforced_of_a_tool_is_named(tooled: Any, path: str, tools: list[Any], param: str, stream: bool) -> None:
    response = ask(tooled, path, tools=tools, stream=stream)
    assert response.status_code == 200, response.text
    assert response.headers[IGNORED] == ", ".join(f"{param}.{keyword}" for keyword in LEFT_OUT)
    assert '"items": {"type": "string"}' in tooled.engine.submitted[-1].grammar


def test_a_strict_tool_is_enforced_exactly_or_refused(tooled: Any) -> None:
    error = ask(tooled, tools=[tool(parameters=RELAXED, strict=True)]).json()["error"]
    assert (error["param"], error["code"]) == ("tools.0.function.parameters", "unsupported_schema")
    exact = {"type": "object", "properties": {"a": {"type": "string"}}}
    response = ask(tooled, tools=[tool(parameters=exact, strict=True), tool("sing", parameters=exact, strict=False)])
    assert response.status_code == 200 and IGNORED not in response.headers


def test_a_server_that_refuses_unknown_fields_names_them_too(strictly_served: Any) -> None:
    strictly_served.tokenizer.base.chat_template = HERMES
    strictly_served.router.append([Ready(psutil.Process().pid, 0, replace(FACTS, context=4096)), "OK"])
    response = ask(strictly_served, tools=[tool(parameters=RELAXED)])
    assert response.headers[IGNORED] == ", ".join(f"tools.0.function.parameters.{keyword}" for keyword in LEFT_OUT)


def test_a_tool_that_may_not_be_called_is_not_checked(tooled: Any) -> None:
    tools = [tool("sing"), tool(parameters=RELAXED, strict=True)]
    choice = {"type": "function", "function": {"name": "sing"}}
    response = ask(tooled, tools=tools, tool_choice=choice)
    assert response.status_code == 200 and IGNORED not in response.headers
    assert ask(tooled, tools=tools).status_code == 400


@pytest.mark.parametrize("type", [None, ["object", "null"]])
def test_arguments_are_an_object_whatever_else_their_type_allows(tooled: Any, type: Any) -> None:
    for path, tools in (
        (CHAT, [tool(parameters={"type": type, "properties": None})]),
        (MESSAGES, [{"name": "ring", "input_schema": {"type": type, "required": None}}]),
    ):
        response = ask(tooled, path, tools=tools)
        assert response.status_code == 200, response.text
        assert '"type": "object"' in tooled.engine.submitted[-1].grammar


def test_a_long_list_of_what_is_left_out_is_cut(tooled: Any) -> None:
    properties = {f"a_rather_long_name_of_a_property_{place}": {"not": {}} for place in range(60)}
    header = ask(tooled, tools=[tool(parameters={"type": "object", "properties": properties})]).headers[IGNORED]
    assert len(header) <= 2010 and header.endswith(", ...") and ".not, " in header
