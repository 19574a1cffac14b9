"""`/v1/responses` over the fake engine: what is accepted without effect, left out, or refused by name."""

import json
from typing import Any

import pytest
from responding import CALL, CHAT, PATH, RING, SING, USER, ask

UNIQUE = {**RING, "strict": True, "parameters": {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}}


def namespace(*tools: dict[str, Any], name: str = "mcp__bell__") -> dict[str, Any]:
    return {"type": "namespace", "name": name, "description": "Bells.", "tools": [*tools]}


def refused(served: Any, **fields: Any) -> Any:
    body = json.dumps({"input": "hi", "max_output_tokens": 3, **fields})
    response = served.client.post(PATH, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert not served.engine.submitted
    return response.json()["error"]


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False},
        {"store": None, "previous_response_id": None, "conversation": None, "prompt": None, "background": None, "include": None},
        {"background": False, "truncation": "disabled", "include": []},
        {"reasoning": {}},
        {"reasoning": {"effort": "none", "summary": None}},
        {"tools": [], "tool_choice": "auto"},
        {"text": {}},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
        {"max_tool_calls": 3, "safety_identifier": "a", "n": 1},
    ],
)
def test_values_that_change_nothing_are_accepted(strictly_served: Any, fields: dict[str, Any]) -> None:
    ask(strictly_served, **fields)


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"store": True}, "store"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"include": ["reasoning.encrypted_content"]}, "include.0[reasoning.encrypted_content]"),
        ({"tools": [{"type": "web_search"}, RING, {"type": "custom", "name": "patch"}]}, "tools.0[web_search], tools.2[custom]"),
        ({"tools": [namespace({"type": "custom"}), RING]}, "tools.0.tools.0[custom]"),
    ],
)
def test_what_a_client_can_do_without_is_left_out_and_named_or_refused_if_strict(
    tooled: Any, strictly_served: Any, fields: dict[str, Any], ignored: str
) -> None:
    response = ask(tooled, **fields)
    assert response.headers["X-Litmus-Ignored"] == ignored
    body = response.json()
    assert (body["store"], body["truncation"], body["text"]["verbosity"], body["reasoning"]) == (False, "disabled", None, None)
    assert [tool["name"] for tool in body["tools"] if tool["type"] == "function"] == (["ring"] if "tools" in fields else [])
    assert all(tool["tools"] == [] for tool in body["tools"] if tool["type"] == "namespace")
    error = refused(strictly_served, **fields)
    assert error["param"] == ignored.partition(",")[0] and error["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"background": True}, "background", "while its client waits"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "not supported"),
        ({"conversation": "conv_1"}, "conversation", "not supported"),
        ({"prompt": {"id": "p"}}, "prompt", "not supported"),
        ({"context_management": [{"type": "compaction"}]}, "context_management", "not supported"),
        ({"include": ["everything"]}, "include.0", "message.output_text.logprobs"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary", "concise"),
        ({"text": {"verbosity": "none"}}, "text.verbosity", "medium"),
        ({"max_tokens": 3}, "max_tokens", "not supported"),
        ({"messages": [USER]}, "messages", "not supported"),
        ({"n": 2}, "n", "1"),
        ({"n": True}, "n", "integer"),
        ({"stream_options": {}}, "stream_options", "stream: true"),
        ({"input": [USER, {"role": "user", "content": 3}]}, "input.1.content", "valid string or a valid list"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "no message"),
        ({"input": [{"type": "web_search_call", "id": "a"}]}, "input.0", "web_search_call"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input.0", "item_reference"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}, "input.0.content.0", "input_image"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input.0.role", "assistant"),
        ({"input": [USER, {**CALL, "arguments": "\ud800"}]}, "input.1.arguments", "input.1.arguments: character"),
        ({"input": [USER, {"role": "assistant", "content": "a"}, {**CALL, "arguments": "\ud800"}]}, "input.2.arguments", "surrogate"),
        ({"instructions": "\ud800"}, "instructions", "instructions"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [RING, {"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice.type", "function"),
        (
            {"tools": [RING, {"type": "custom", "name": "patch"}], "tool_choice": {"type": "function", "name": "patch"}},
            "tool_choice.name",
            "patch",
        ),
        ({"tools": [{"type": "function"}]}, "tools.0.name", "missing"),
        ({"tools": [RING, RING]}, "tools.1.name", "two tools"),
        ({"tools": [{"type": "web_search"}, RING, {"type": "custom"}, RING]}, "tools.3.name", "two tools"),
        ({"tools": [{"type": "web_search"}, namespace({"type": "custom"}, RING), namespace(RING)]}, "tools.2.tools.0.name", "two tools"),
        ({"tools": [namespace(RING, UNIQUE | {"name": "u"})]}, "tools.0.tools.1.parameters", "tools.0.tools.1.parameters"),
        ({"tools": [namespace({"type": "function"})]}, "tools.0.tools.0.name", "missing"),
        ({"tools": [namespace(RING, name="n" * 123)]}, "tools.0", "129 characters; at most 128"),
        ({"tools": [namespace(*[SING] * 257)] * 2}, "tools", "514 functions with those of namespaces; at most 512"),
        ({"input": [USER, {**CALL, "namespace": "n" * 128}]}, "input.1", "at most 128"),
        ({"tools": [namespace(RING)], "tool_choice": {"type": "function", "name": "ring"}}, "tool_choice.name", "ring"),
        ({"tools": [{"type": "web_search"}, UNIQUE]}, "tools.1.parameters", "tools.1.parameters"),
        ({"tools": [{**RING, "parameters": {"type": "array"}}]}, "tools.0", "object"),
        ({"tools": [RING], "tool_choice": {"type": "function", "name": "sing"}}, "tool_choice.name", "sing"),
        ({"tools": [RING], "tool_choice": {"type": "function"}}, "tool_choice.name", "missing"),
        ({"tools": [RING], "tool_choice": "always"}, "tool_choice", "required"),
        (
            {"tools": [RING], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "sing"}]}},
            "tool_choice.tools.0.name",
            "sing",
        ),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [RING], "top_logprobs": 1}, "top_logprobs", "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", "missing"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"not": {}}}}}, "text.format.schema", "text.format.schema"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "text, json_object, json_schema"),
        ({"text": {"format": {"type": "json_object"}}, "min_tokens": 1}, "min_tokens", "text.format"),
        ({"max_output_tokens": 0}, "max_output_tokens", "1"),
        ({"max_output_tokens": 4095}, "max_output_tokens", "max_output_tokens is 4095"),
        ({"input": "a" * 5000}, "input", "the context"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tooled: Any, fields: dict[str, Any], param: str, said: str) -> None:
    error = refused(tooled, **fields)
    assert error["param"] == param and said in error["message"], error


def test_what_is_left_out_of_a_tool_is_named_at_its_place_in_the_body(tooled: Any) -> None:
    response = ask(tooled, tools=[{"type": "web_search"}, {**UNIQUE, "strict": False}])
    assert response.headers["X-Litmus-Ignored"] == "tools.0[web_search], tools.1.parameters.properties.a.uniqueItems"


def test_an_error_before_the_stream_has_its_status_and_the_usual_envelope(served: Any) -> None:
    served.router.draining = True
    response = served.client.post(PATH, json={"input": "hi", "stream": True})
    assert (response.status_code, response.json()["error"]["type"]) == (503, "service_unavailable")


@pytest.mark.parametrize("field", ["user", "safety_identifier"])
def test_a_banned_user_is_refused(served: Any, field: str) -> None:
    response = served.client.post(PATH, json={"input": "hi", field: "banned"})
    assert (response.status_code, response.json()["error"]["param"]) == (403, field)


def test_an_unknown_field_is_left_out_and_named(served: Any) -> None:
    response = ask(served, colour=1, input=[{**USER, "weight": 0}, {**USER, "content": [{"type": "input_text", "text": "a", "x": 1}]}])
    assert set(response.headers["X-Litmus-Ignored"].split(", ")) == {"colour", "input.0.weight", "input.1.content.0.x"}


def test_fields_of_responses_are_known_to_the_other_routes(served: Any) -> None:
    fields = {"max_tokens": 2, "background": False, "truncation": "disabled", "include": [], "reasoning": {}, "text": {}}
    assert served.client.post(CHAT, json={"messages": [USER], **fields}).status_code == 200
    error = served.client.post(CHAT, json={"messages": [USER], "instructions": "be"}).json()["error"]
    assert (error["param"], error["code"]) == ("instructions", "unsupported_parameter")
