"""From messages to prompts: how each role is rendered, and what is left out or refused because the template would drop it."""

import json
from dataclasses import replace
from typing import Any

import psutil
import pytest
from fakes import FACTS

from serve.workers.messages import Ready

CHAT = "/v1/chat/completions"
IGNORED = "X-Litmus-Ignored"
NAMES = "{{ bos_token }}{% for m in messages %}{{ m['role'][0] + ':' + (m.name or '') + '/' + m['content'] }}{% endfor %}"
CALL = {"id": "abc", "type": "function", "function": {"name": "ring", "arguments": '{"times": 2}'}}
CALLS = (
    "{{ bos_token }}{{ (tools or []) | tojson if tools else '' }}{% for m in messages %}{{ m['role'][0] + ':' + m['content'] }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}{% endfor %}"
)


CALLED = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
RESULT = {"role": "tool", "tool_call_id": "abc", "content": "done"}


def rendered(served: Any, messages: list[dict[str, Any]], **fields: Any) -> str:
    """The text of the prompt that reached the engine."""
    answer = served.client.post(CHAT, json={"messages": messages, "max_tokens": 1, **fields})
    assert answer.status_code == 200, answer.text
    return served.tokenizer.decode(list(served.engine.submitted[-1].prompt))


def refused(served: Any, messages: Any, **fields: Any) -> tuple[str, str]:
    answer = served.client.post(CHAT, json={"messages": messages, "max_tokens": 1, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    return error["param"], error["message"]


def test_roles_and_parts_reach_the_template(served: Any) -> None:
    messages = [
        {"role": "developer", "content": "D"},
        {"role": "system", "content": [{"type": "text", "text": "S"}, {"type": "text", "text": ""}, {"type": "text", "text": "T"}]},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "R"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "V"}]},
        {
            "role": "assistant",
            "content": "A",
            "refusal": None,
            "audio": None,
            "annotations": [],
            "function_call": None,
            "tool_calls": None,
        },
    ]
    assert rendered(served, messages) == "s:Ds:S\nTu:Ua:Ru:Va:A"


def test_a_name_needs_a_place_in_the_template(served: Any, strictly_served: Any) -> None:
    named = [{"role": "user", "content": "U", "name": "Ann"}]
    mixed = [{"role": "system", "content": "S", "name": "Sue"}, {"role": "user", "content": "U"}, *named]
    for path in (CHAT, "/tokenize"):
        answer = served.client.post(path, json={"messages": mixed, **({"max_tokens": 1} if path == CHAT else {})})
        assert (answer.status_code, answer.headers[IGNORED]) == (200, "messages.0.name, messages.2.name")
    assert rendered(served, mixed) == "s:Su:Uu:U"
    param, message = refused(strictly_served, named)
    assert param == "messages.0.name" and "no place" in message
    served.tokenizer.base.chat_template = NAMES
    assert rendered(served, named) == "u:Ann/U"
    assert rendered(served, mixed) == "s:Sue/Su:/Uu:Ann/U"
    assert IGNORED not in served.client.post(CHAT, json={"messages": mixed, "max_tokens": 1}).headers


def test_a_name_that_the_template_does_not_write_is_taken_out(served: Any) -> None:
    served.tokenizer.base.chat_template = "{% for m in messages %}{{ 'named' if m.name else 'nobody' }}{% endfor %}"
    assert rendered(served, [{"role": "user", "content": "U", "name": "Ann"}]) == "nobody"


def test_nothing_said_is_a_message_too(served: Any) -> None:
    served.tokenizer.base.chat_template = CALLS
    nothing: tuple[dict[str, Any], ...] = ({"role": "user", "content": ""}, {"role": "user", "content": []})
    for empty in nothing:
        assert rendered(served, [{"role": "system", "content": "S"}, empty]) == "s:Su:"
    assert rendered(served, [{"role": "user", "content": "U"}, *CALLED, {**RESULT, "content": None}]).endswith("</call>t:")


def test_a_result_without_its_call_is_up_to_the_template(served: Any) -> None:
    """A client that shortens a long conversation may have cut off the call."""
    served.tokenizer.base.chat_template = CALLS.replace("m['content']", "(m['content'] or '') + (m.tool_call_id or '')")
    bare = {"role": "tool", "content": "done"}
    assert rendered(served, [RESULT]) == "t:doneabc"
    assert rendered(served, [bare]) == "t:done"
    assert rendered(served, [*CALLED, RESULT, bare]).endswith("t:doneabct:done")
    raising = "{% if m.role == 'tool' and loop.first %}{{ raise_exception('no call') }}{% endif %}{{ m['role'][0]"
    served.tokenizer.base.chat_template = CALLS.replace("{{ m['role'][0]", raising)
    param, message = refused(served, [RESULT])
    assert param == "messages" and "no call" in message


def test_a_call_and_its_result_reach_the_template_the_arguments_as_an_object(served: Any) -> None:
    served.tokenizer.base.chat_template = CALLS
    messages = [
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "abc", "content": "done"},
    ]
    assert rendered(served, messages) == 'u:Ua:<call>ring {"times": 2}</call>t:done'
    for empty in ("", " "):
        messages[1] = {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "ring", "arguments": empty}}]}
        assert rendered(served, messages) == "u:Ua:<call>ring {}</call>t:done"


def test_results_without_ids_answer_the_calls_in_their_order(served: Any) -> None:
    served.tokenizer.base.chat_template = CALLS.replace("m['content']", "(m['content'] or '') + (m.tool_call_id or '')")
    served.router.append([Ready(psutil.Process().pid, 0, replace(FACTS, context=4096)), "OK"])
    second = {**CALL, "id": "xyz"}
    calls = [{"role": "assistant", "content": None, "tool_calls": [CALL, second]}]
    told = [{"role": "tool", "content": "1", "tool_call_id": "abc"}, {"role": "tool", "content": "2", "tool_call_id": "xyz"}]
    bare = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2", "tool_call_id": None}]
    assert rendered(served, [*calls, *bare]) == rendered(served, [*calls, *told])


def test_the_last_message_is_continued(served: Any) -> None:
    served.tokenizer.base.chat_template = (
        NAMES.replace("m['content']", "m['content'] + '.'") + "{% if add_generation_prompt %}a:/{% endif %}"
    )
    messages = [{"role": "user", "content": "U"}, {"role": "assistant", "content": "so"}]
    assert rendered(served, messages) == "u:/U.a:/so.a:/"
    assert rendered(served, messages, add_generation_prompt=False) == "u:/U.a:/so."
    assert rendered(served, messages, continue_final_message=True) == "u:/U.a:/so"
    assert rendered(served, [messages[0], {**messages[1], "prefix": True}]) == "u:/U.a:/so"
    for wrong, part in (({"add_generation_prompt": True}, "both"), ({"response_format": {"type": "json_object"}}, "response_format")):
        assert part in refused(served, messages, continue_final_message=True, **wrong)[1]
    assert "assistant" in refused(served, messages[:1], continue_final_message=True)[1]
    served.tokenizer.base.chat_template = NAMES.replace("m['content']", "m['content'] | upper")
    assert "changes the content" in refused(served, messages, continue_final_message=True)[1]


def test_a_result_that_the_template_leaves_out_is_refused(served: Any) -> None:
    served.tokenizer.base.chat_template = CALLS.replace("m['content']", "(m['content'] if m['role'] != 'tool' else '')")
    messages = [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "abc", "content": "done"}]
    assert refused(served, messages)[0] == "messages.1.content"


@pytest.mark.parametrize(
    ("messages", "param", "message_part"),
    [
        ([{"role": "user"}], "messages.0.content", "content is missing"),
        ([{"role": "user", "content": None}], "messages.0.content", "content is missing"),
        ([{"role": "user", "content": "a", "tool_calls": [CALL]}], "messages.0.tool_calls", "assistant"),
        ([{"role": "user", "content": "a", "tool_call_id": "abc"}], "messages.0.tool_call_id", "role 'tool'"),
        ([{"role": "assistant", "content": "a", "prefix": True}, {"role": "user", "content": "a"}], None, "last message"),
        ([{"role": "user", "content": "a", "prefix": True}], "messages.0.prefix", "assistant"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages.0.content.0", "image_url"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text", "missing"),
        ([{"role": "assistant", "content": [{"type": "refusal", "text": "a"}]}], "messages.0.content.0.refusal", "missing"),
        ([{"role": "user", "content": 5}], "messages.0.content", "valid string or a valid list"),
        ([{"role": "user", "content": ["a"]}], "messages.0.content.0", "an object"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages.0.content.0.text", "valid string"),
        ([{"role": "poet", "content": "a"}], "messages.0.role", "system"),
        ([{"role": "assistant", "content": "a", "audio": {"id": "x"}}], "messages.0.audio", "not supported"),
        ([{"role": "assistant", "content": "a", "function_call": {"name": "x"}}], "messages.0.function_call", "not supported"),
        ([{"role": "user", "content": "\ud800"}], "messages.0.content", "surrogate"),
        ([{"role": "user", "content": "a", "name": "\ud800"}], "messages.0.name", "unicode"),
        ([], "messages", "1"),
    ],
)
def test_what_is_wrong_with_a_message_is_named(served: Any, messages: Any, param: str | None, message_part: str) -> None:
    answer = served.client.post(CHAT, content=json.dumps({"messages": messages}), headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert message_part in error["message"], error


@pytest.mark.parametrize("arguments", ['{"a": "\\ud800"}', '{"\\ud800": 1}', ["a"], 3])
def test_arguments_that_are_wrong_are_named(served: Any, arguments: Any) -> None:
    call = {**CALL, "function": {"name": "ring", "arguments": arguments}}
    param, _ = refused(served, [{"role": "assistant", "tool_calls": [call]}])
    assert param == "messages.0.tool_calls.0.function.arguments"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"times": 2, "song": "Ho', '{"times": 2, "song": "Ho"}'),
        ('{"times": 2, "so', '{"times": 2}'),
        ("no JSON", '{"arguments": "no JSON"}'),
        ({"times": 2, "song": "é"}, '{"times": 2, "song": "é"}'),
        (None, "{}"),
    ],
)
def test_arguments_reach_the_template_also_cut_by_a_limit_parsed_or_null(served: Any, arguments: Any, shown: str) -> None:
    served.tokenizer.base.chat_template = CALLS
    call = {**CALL, "function": {"name": "ring", "arguments": arguments}}
    assert rendered(served, [{"role": "assistant", "tool_calls": [call]}]) == f"a:<call>ring {shown}</call>"


def test_an_error_raised_by_the_template_becomes_the_message(served: Any) -> None:
    served.tokenizer.base.chat_template = "{{ raise_exception('no system messages') }}"
    param, message = refused(served, [{"role": "system", "content": "a"}])
    assert param == "messages" and "no system messages" in message
