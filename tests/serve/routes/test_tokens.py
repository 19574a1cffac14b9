"""/tokenize and /detokenize, for texts and conversations."""

from typing import Any

import httpx
import pytest
from serving import RunningServer

TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"
HELLO = [{"role": "user", "content": "hi"}]
TEMPLATE = (
    "{{ bos_token }}{% for t in tools or [] %}{{ t['function']['name'] }};{% endfor %}"
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


def ids(text: str) -> list[int]:
    """The ids of the tiny tokenizer, which has one token per printable character."""
    return [ord(letter) - ord("!") + 2 for letter in text]


def tokens(served: Any, **body: Any) -> list[int]:
    response = served.client.post(TOKENIZE, json=body)
    assert response.status_code == 200, response.text
    result: list[int] = response.json()["tokens"]
    assert response.json()["count"] == len(result)
    return result


def text(served: Any, tokens: list[int]) -> str:
    response = served.client.post(DETOKENIZE, json={"tokens": tokens})
    assert response.status_code == 200, response.text
    result: str = response.json()["prompt"]
    assert response.json() == {"prompt": result}
    return result


def test_a_text_is_answered_in_vllms_form(served: Any) -> None:
    body = served.client.post(TOKENIZE, json={"prompt": "hi", "model": "fake"}).json()
    assert body == {"count": 3, "max_model_len": 64, "tokens": [0, *ids("hi")], "token_strs": None}
    assert served.engine.submitted == []


def test_special_tokens_are_put_around_a_text_unless_unwanted(served: Any) -> None:
    assert tokens(served, prompt="hi", add_special_tokens=True) == [0, *ids("hi")]
    assert tokens(served, prompt="hi", add_special_tokens=False) == ids("hi")
    assert tokens(served, prompt="") == [0]
    assert tokens(served, prompt="", add_special_tokens=False) == []


def test_tokens_are_spelled_when_asked_for(served: Any) -> None:
    fields = {"prompt": "a b</s>", "return_token_strs": True}
    assert served.client.post(TOKENIZE, json=fields).json()["token_strs"] == ["<s>", "a", "\u0120", "b", "</s>"]
    assert served.client.post(TOKENIZE, json={**fields, "return_token_strs": False}).json()["token_strs"] is None


def test_a_conversation_has_the_tokens_that_a_chat_of_it_has(served: Any) -> None:
    served.tokenizer.base.chat_template = TEMPLATE
    messages = [{"role": "developer", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]
    served.client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    assert tuple(tokens(served, messages=messages)) == served.engine.submitted[-1].prompt == (0, *ids("s:au:ba:"))


def test_the_opening_of_the_assistants_turn_may_be_left_out(served: Any) -> None:
    served.tokenizer.base.chat_template = TEMPLATE
    assert tokens(served, messages=HELLO, add_generation_prompt=True) == [0, *ids("u:hia:")]
    assert tokens(served, messages=HELLO, add_generation_prompt=False) == [0, *ids("u:hi")]


def test_special_tokens_are_added_to_what_the_template_wrote_only_when_asked_for(served: Any) -> None:
    assert tokens(served, messages=HELLO, add_special_tokens=False) == [0, *ids("u:hi")]
    assert tokens(served, messages=HELLO, add_special_tokens=True) == [0, 0, *ids("u:hi")]


def test_variables_of_the_template_and_a_started_answer_are_as_in_a_chat(served: Any) -> None:
    served.tokenizer.base.chat_template = TEMPLATE.replace("a:{%", "a:{% if enable_thinking %}<think>{% endif %}{%")
    started = [*HELLO, {"role": "assistant", "content": "We"}]
    for body, last in (
        ({"messages": HELLO, "chat_template_kwargs": {"enable_thinking": True}}, "a:<think>"),
        ({"messages": HELLO, "chat_template_kwargs": {"enable_thinking": False}}, "u:hia:"),
        ({"messages": started, "continue_final_message": True}, "a:We"),
        ({"messages": [*HELLO, {**started[1], "prefix": True}]}, "a:We"),
    ):
        rendered = served.client.post("/apply-template", json=body).json()["prompt"]
        assert rendered.endswith(last) and tokens(served, prompt=rendered, add_special_tokens=False) == tokens(served, **body)
    told = served.client.post(TOKENIZE, json={"messages": HELLO, "chat_template_kwargs": {"nothing": 1}})
    assert told.headers["X-Litmus-Ignored"] == "chat_template_kwargs.nothing"
    assert tokens(served, prompt="hi", chat_template_kwargs={}, continue_final_message=False) == [0, *ids("hi")]


def test_tools_are_part_of_the_conversation(served: Any) -> None:
    served.tokenizer.base.chat_template = TEMPLATE
    tools = [{"type": "function", "function": {"name": "weather"}}]
    told = text(served, tokens(served, messages=HELLO, tools=tools))
    assert "weather" in told and told.endswith("u:hia:"), "this template does not write calls, so tools are told in the general form"


@pytest.mark.parametrize("original", ["naïve 猫 \U0001f600", " a  b\n", "</s>x<s>", ""])
def test_what_is_tokenized_comes_back(served: Any, original: str) -> None:
    result = tokens(served, prompt=original)
    assert text(served, result) == "<s>" + original
    assert text(served, result[1:]) == original


def test_no_tokens_are_an_empty_text(served: Any) -> None:
    assert text(served, []) == ""


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message_part"),
    [
        (TOKENIZE, {}, 400, "prompt", "either prompt or messages"),
        (TOKENIZE, {"prompt": "a", "messages": HELLO}, 400, "prompt", "either prompt or messages"),
        (TOKENIZE, {"prompt": "a", "add_generation_prompt": False}, 400, "add_generation_prompt", "needs messages"),
        (TOKENIZE, {"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools", "needs messages"),
        (TOKENIZE, {"prompt": ["a"]}, 400, "prompt", "valid string"),
        (TOKENIZE, {"prompt": "a", "add_special_tokens": 1}, 400, "add_special_tokens", "valid boolean"),
        (TOKENIZE, {"prompt": "a", "return_token_strs": "yes"}, 400, "return_token_strs", "valid boolean"),
        (TOKENIZE, {"prompt": "a", "model": "gpt-4"}, 404, "model", "not served here"),
        (TOKENIZE, {"messages": []}, 400, "messages", "at least 1 item"),
        (TOKENIZE, {"messages": HELLO, "continue_final_message": True}, 400, None, "needs a last message of role 'assistant'"),
        (TOKENIZE, {"prompt": "a", "continue_final_message": True}, 400, "continue_final_message", "needs messages"),
        (TOKENIZE, {"prompt": "a", "chat_template_kwargs": {"a": 1}}, 400, "chat_template_kwargs", "needs messages"),
        (TOKENIZE, {"messages": HELLO, "chat_template_kwargs": {"tools": []}}, 400, "chat_template_kwargs.tools", "other fields"),
        (TOKENIZE, {"messages": HELLO, "chat_template": "x"}, 400, "chat_template", "parameter"),
        (TOKENIZE, {"messages": HELLO, "mm_processor_kwargs": {"a": 1}}, 400, "mm_processor_kwargs", "parameter"),
        (DETOKENIZE, {}, 400, "tokens", "missing"),
        (DETOKENIZE, {"tokens": [0, 2, 258]}, 400, "tokens.2", "258 is not in the vocabulary; token ids must lie in 0..257"),
        (DETOKENIZE, {"tokens": [0, 10**30]}, 400, "tokens.1", "is not in the vocabulary"),
        (DETOKENIZE, {"tokens": [0, -1]}, 400, "tokens.1", "greater than or equal to 0"),
        (DETOKENIZE, {"tokens": [True]}, 400, "tokens.0", "valid integer"),
        (DETOKENIZE, {"tokens": "a"}, 400, "tokens", "valid list"),
        (DETOKENIZE, {"tokens": [2], "model": "gpt-4"}, 404, "model", "not served here"),
    ],
)
def test_bad_input_is_named(served: Any, path: str, body: Any, status: int, param: str | None, message_part: str) -> None:
    response = served.client.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert message_part in error["message"]


def test_a_lone_surrogate_is_named(served: Any) -> None:
    response = served.client.post(TOKENIZE, content=b'{"prompt": "\\ud800"}', headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


def test_tokenizing_works_while_the_worker_is_stalled(served: Any) -> None:
    """Tokenizing needs no worker."""
    served.worker.stalled = True
    assert tokens(served, prompt="hi") == [0, *ids("hi")]


@pytest.mark.parametrize(("path", "name"), [(TOKENIZE, "TokenizeRequest"), (DETOKENIZE, "DetokenizeRequest")])
def test_the_examples_of_the_docs_run(api: RunningServer, path: str, name: str) -> None:
    schema = httpx.get(f"{api.url}/openapi.json", timeout=30).json()
    assert {"200", "400", "404", "503"} <= set(schema["paths"][path]["post"]["responses"])
    for example in schema["components"]["schemas"][name]["examples"]:
        response = httpx.post(f"{api.url}{path}", json=example, timeout=30)
        assert response.status_code == 200, response.text


def test_counts_are_those_of_the_usage(api: RunningServer) -> None:
    messages = [{"role": "user", "content": "Tell me a story about a fox."}]
    counted = httpx.post(f"{api.url}{TOKENIZE}", json={"messages": messages}, timeout=30).json()
    answer = api.client().chat.completions.create(model="storyteller", messages=messages, max_tokens=1)  # type: ignore[arg-type]
    assert answer.usage is not None and counted["count"] == answer.usage.prompt_tokens
    assert counted["max_model_len"] == 1024


def test_a_chat_is_rendered_as_the_model_reads_it(tooled: Any) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    for body in (
        {"messages": HELLO},
        {"messages": HELLO, "tools": [tool], "max_tokens": 3},
        {"messages": HELLO, "add_generation_prompt": False},
    ):
        rendered = tooled.client.post("/apply-template", json=body).json()
        asked = {name: value for name, value in body.items() if name != "max_tokens"}
        assert tokens(tooled, prompt=rendered["prompt"], add_special_tokens=False) == tokens(tooled, **asked)
        assert rendered.keys() == {"prompt"} and not tooled.engine.jobs
    started = [*HELLO, {"role": "assistant", "content": "We"}]
    rendered = tooled.client.post("/apply-template", json={"messages": started, "continue_final_message": True}).json()
    assert rendered["prompt"].endswith("a:We")
    told = tooled.client.post("/apply-template", json={"messages": HELLO, "chat_template_kwargs": {"nothing": 1}})
    assert told.headers["X-Litmus-Ignored"] == "chat_template_kwargs.nothing"


def test_a_chat_is_rendered_once(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered, render = [], served.tokenizer.base.apply_chat_template
    monkeypatch.setattr(
        served.tokenizer.base, "apply_chat_template", lambda *messages, **options: rendered.append(messages) or render(*messages, **options)
    )
    assert served.client.post("/apply-template", json={"messages": HELLO}).json() == {"prompt": "<s>u:hi"}
    assert len(rendered) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": HELLO, "user": "banned"},
        {"messages": HELLO, "model": "nobody"},
        {"messages": HELLO, "top_logprobs": 2},
        {"messages": HELLO, "stream_options": {"include_usage": True}},
        {"messages": HELLO, "prompt_logprobs": 1, "stream": True},
        {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
        {"messages": [{"role": "user", "content": "a" * 100}]},
    ],
)
def test_what_a_chat_refuses_its_rendering_refuses(served: Any, body: dict[str, Any]) -> None:
    rendered, chat = (served.client.post(path, json=body) for path in ("/apply-template", "/v1/chat/completions"))
    assert rendered.status_code == chat.status_code >= 400 and rendered.json() == chat.json()
