"""Anthropic's Messages API over a fake engine: what is refused by name, what is left out, and the form of its errors."""

import json
from typing import Any

import pytest
from messaging import COUNT, HELLO, MESSAGES, RING, SING, post

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


CALL = {"type": "tool_use", "id": "a1", "name": "ring", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "b2", "content": "done"}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
BELLS = {"name": "bells", "input_schema": {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, ["max_tokens"]),
        ({"messages": []}, ["messages"]),
        ({"messages": [{"role": "tool", "content": "x"}]}, ["messages.0.role", "assistant"]),
        ({"messages": [user(IMAGE)]}, ["messages.0.content.0", "'image'", "tool_result"]),
        ({"messages": [user({"type": "document", "source": {}})]}, ["messages.0.content.0", "'document'"]),
        ({"messages": [user({"type": "text"})]}, ["messages.0.content.0.text", "missing"]),
        ({"messages": [user({"text": "x"})]}, ["messages.0.content.0", "type"]),
        ({"messages": [user(CALL)]}, ["messages.0", "tool_use", "tool_result"]),
        ({"messages": [*HELLO, assistant(RESULT)]}, ["messages.1", "tool_result", "tool_use"]),
        ({"messages": [*HELLO, assistant(CALL), user({**RESULT, "content": [IMAGE]})]}, ["messages.2.content.0.content.0", "'image'"]),
        ({"system": "a", "messages": [*HELLO, assistant({**CALL, "input": {"a": "\ud800"}}), *HELLO]}, ["messages.1.content.0.input"]),
        ({"system": "\ud800"}, ["system"]),
        ({"system": [IMAGE]}, ["system.0", "'image'", "text"]),
        ({"messages": [*HELLO, assistant(CALL)]}, ["messages.1", "tool_result must follow"]),
        ({"messages": [*HELLO, assistant()]}, ["messages.1", "no text"]),
        ({"messages": [*HELLO, {"role": "assistant", "content": "So"}], "tools": [RING]}, ["messages.1", "tools"]),
        ({"tools": [RING, SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}}, ["tool_choice", "'web_search'"]),
        ({"tools": [SEARCH], "tool_choice": {"type": "any"}}, ["tool_choice", "tools"]),
        ({"tools": [{"type": "function", "function": RING}]}, ["tools.0", "custom"]),
        ({"tools": [{**RING, "name": "ring/it"}]}, ["tools.0.name", "128"]),
        ({"tools": [{**RING, "input_schema": {"type": "array"}}]}, ["tools.0.input_schema", "object"]),
        (
            {"tools": [SING, {**BELLS, "strict": True}]},
            ["tools.1.input_schema"],
        ),
        (
            {"tools": [SEARCH, {**BELLS, "strict": True}]},
            ["tools.1.input_schema"],
        ),
        ({"tools": [RING, RING]}, ["'ring'"]),
        ({"tools": [RING], "tool_choice": {"type": "tool", "name": "sing"}}, ["tool_choice", "'sing'"]),
        ({"tools": [RING], "tool_choice": {"type": "tool"}}, ["tool_choice", "name"]),
        ({"tool_choice": {"type": "any"}}, ["tool_choice", "tools"]),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"uniqueItems": True}}}}, ["output_config.format.schema"]),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, ["thinking.budget_tokens"]),
        ({"thinking": {"type": "disabled", "budget_tokens": 1024}}, ["budget_tokens", "'enabled'"]),
        ({"thinking": {"type": "always"}}, ["thinking.type", "disabled"]),
        ({"temperature": 3}, ["temperature"]),
        ({"service_tier": "flex"}, ["service_tier", "standard_only"]),
        ({"mcp_servers": [{"type": "url", "url": "x", "name": "y"}]}, ["mcp_servers", "not supported"]),
    ],
)
def test_what_is_wrong_is_named_as_it_was_sent(tooled: Any, fields: dict[str, Any], words: list[str]) -> None:
    content = json.dumps({"messages": HELLO, "max_tokens": 3, **fields})
    response = tooled.client.post(MESSAGES, content=content, headers={"Content-Type": "application/json"})
    body = response.json()
    assert (response.status_code, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error"), body
    assert set(body["error"]) == {"type", "message"}
    assert all(word in body["error"]["message"] for word in words), body["error"]["message"]
    assert "function" not in body["error"]["message"] and "tool_call" not in body["error"]["message"]


def test_unknown_fields_are_left_out_of_blocks_too(served: Any) -> None:
    text = {"type": "text", "text": "hi", "citations": None, "colour": 1}
    response = post(served, messages=[user(text)], speed="fast")
    assert (response.status_code, response.headers["X-Litmus-Ignored"]) == (200, "messages.0.content.0.colour, speed")


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}, "context_management"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"output_config": {"effort": "max"}}, "output_config.effort"),
        ({"output_config": {"effort": "low"}, "thinking": {"type": "disabled"}}, "output_config.effort"),
        ({"tools": [RING, SEARCH, {"type": "bash_20250124", "name": "bash"}]}, "tools.1[web_search_20250305], tools.2[bash_20250124]"),
    ],
)
def test_what_a_client_can_do_without_is_left_out_and_named_or_refused_if_strict(
    tooled: Any, strictly_served: Any, fields: dict[str, Any], ignored: str
) -> None:
    for path in (MESSAGES, COUNT):
        response = post(tooled, path, **fields)
        assert (response.status_code, response.headers["X-Litmus-Ignored"]) == (200, ignored), response.text
        refused = post(strictly_served, path, **fields)
        assert refused.status_code == 400 and ignored.partition(",")[0] in refused.json()["error"]["message"]


def test_what_is_left_out_of_a_tool_is_named_at_its_place_in_the_body(tooled: Any) -> None:
    response = post(tooled, tools=[SEARCH, BELLS])
    assert response.headers["X-Litmus-Ignored"] == "tools.0[web_search_20250305], tools.1.input_schema.properties.a.uniqueItems"


@pytest.mark.parametrize("fields", [{"context_management": {"edits": []}}, {"thinking": {"type": "adaptive"}}, {"output_config": {}}])
def test_what_changes_nothing_is_not_named(served: Any, fields: dict[str, Any]) -> None:
    response = post(served, **fields)
    assert response.status_code == 200 and "X-Litmus-Ignored" not in response.headers


def test_errors_have_anthropics_form_under_messages_and_openais_elsewhere(served: Any) -> None:
    client = served.client

    def kind(response: Any) -> tuple[int, str, str]:
        return response.status_code, response.json()["type"], response.json()["error"]["type"]

    assert kind(post(served, metadata={"user_id": "banned"})) == (403, "error", "permission_error")
    assert kind(post(served, model="another-model")) == (404, "error", "not_found_error")
    assert kind(post(served, COUNT, model="another-model")) == (404, "error", "not_found_error")
    assert kind(client.post(f"{MESSAGES}/batches", json={})) == (404, "error", "not_found_error")
    assert kind(client.get(MESSAGES)) == (405, "error", "invalid_request_error")
    assert kind(post(served, system="a" * 30_000)) == (413, "error", "request_too_large")
    assert kind(client.post(MESSAGES, content="{}", headers={"Content-Type": "text/plain"})) == (400, "error", "invalid_request_error")
    served.router.replicas[0].load = 5  # two slots and three waiting places
    full = post(served)
    assert kind(full) == (429, "error", "rate_limit_error") and full.headers["retry-after"] == "1"
    served.router.draining = True
    loading = post(served)
    assert kind(loading) == (503, "error", "overloaded_error") and loading.headers["retry-after"] == "1"
    assert "type" not in client.post("/v1/completions", json={"prompt": "a", "model": "another-model"}).json()
