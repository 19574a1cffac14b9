"""What goes to an upstream and what comes back, while nothing fails."""

import re
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest
from openai_server import MODEL, USAGE, WORDS, Call, chunk

from app.errors import InvalidRequest
from serve.routes.forward import check_tokens

ROOT = Path(__file__).parents[3]
CHAT = "/v1/chat/completions"
TEXT = "".join(WORDS)


def test_a_whole_answer_is_passed_on_with_our_id_and_name(front):
    response = front.chat()
    answer = response.raise_for_status().json()
    assert answer["choices"][0]["message"]["content"] == TEXT
    assert answer["model"] == "one" and answer["id"].startswith("chatcmpl-") and answer["id"] != "chatcmpl-theirs"
    assert (answer["usage"], answer["theirs"]) == (USAGE, 1)
    assert front.server.calls[0].body == {"messages": [{"role": "user", "content": "Hello."}], "model": MODEL}


def test_a_stream_is_passed_on_event_by_event(front):
    events = front.events(front.chat(stream=True))
    *chunks, done = events
    assert done == "[DONE]"
    assert {(each["id"], each["model"]) for each in chunks} == {(chunks[0]["id"], "one")} and chunks[0]["id"] != "chatcmpl-theirs"
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in chunks) == TEXT
    assert all("usage" not in each and each["choices"] for each in chunks), "nobody asked for usage"


def test_usage_is_the_clients_when_it_asks(front):
    events = front.events(front.chat(stream=True, stream_options={"include_usage": True}))
    assert events[-2]["usage"] == USAGE and events[-2]["choices"] == []


def test_fields_are_passed_on_and_ours_are_taken_out(front):
    fields = {"grammar": "root ::= x", "tools": [], "logprobs": True, "their_field": {"a": [1.5, None]}, "seed": 7}
    front.chat(**fields, timeout_s=9).raise_for_status()
    sent = front.server.calls[0].body
    assert {name: sent[name] for name in fields} == fields and "timeout_s" not in sent


def test_headers_that_go_there_and_that_do_not(front):
    headers = {
        "Authorization": "Bearer of-a-client",
        "x-api-key": "k",
        "X-Request-Id": "r-1",
        "Cookie": "c=1",
        "Connection": "X-Hop",
        "X-Hop": "1",
    }
    response = front.http.post(CHAT, json={"messages": [], "model": "one", "n": 1}, headers={**headers, "anthropic-version": "2023-06-01"})
    sent = front.server.calls[0].headers
    assert (sent["authorization"], sent["x-request-id"], sent["anthropic-version"]) == ("Bearer of-litmus", "r-1", "2023-06-01")
    assert not {"x-api-key", "cookie", "x-hop"} & set(sent)
    assert response.headers["x-request-id"] == "r-1"


def test_of_its_headers_only_those_about_ignored_fields_come_back(front):
    async def behave(call: Call) -> None:
        await call.reply(200, {"id": "x", "choices": [{"index": 0}]}, set_cookie="a=b", server="theirs", X_Litmus_Ignored="foo")

    front.server.behave = behave
    response = front.chat()
    assert response.headers["x-litmus-ignored"] == "foo" and "set-cookie" not in response.headers


def test_comments_and_keep_alives_pass_and_bytes_may_be_cut_anywhere(front):
    async def behave(call: Call) -> None:
        await call.begin_events()
        event = 'data:{"id":"a","choices":[{"index":0,"delta":{"content":"\u00e9\u4e00"}}]}'
        text = f": keep-alive\r\n\r\n{event}\r\n\r\n: ping\n\ndata: [DONE]\n\n"
        for byte in text.encode():
            call.writer.write(bytes([byte]))
            await call.writer.drain()

    front.server.behave = behave
    response = front.chat(stream=True)
    assert [line for line in response.text.split("\n") if line.startswith(":")] == [": keep-alive", ": ping"]
    first, done = front.events(response)
    assert first["choices"][0]["delta"]["content"] == "\u00e9\u4e00" and done == "[DONE]"


def test_a_stream_without_done_that_is_complete_gets_one(front):
    async def behave(call: Call) -> None:
        await call.begin_events()
        await call.event(chunk(delta={"content": "a"}))
        await call.event(chunk(delta={}, finish_reason="stop"))

    front.server.behave = behave
    events = front.events(front.chat(stream=True))
    assert events[-1] == "[DONE]" and not any("error" in event for event in events[:-1])


def test_half_a_character_survives(front):
    async def behave(call: Call) -> None:
        await call.begin_events()
        await call.send('data: {"id":"a","choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}\n\ndata: [DONE]\n\n')

    front.server.behave = behave
    assert front.events(front.chat(stream=True))[0]["choices"][0]["delta"]["content"] == "\ud83d"


def test_events_of_responses_get_our_id_inside(front):
    async def behave(call: Call) -> None:
        await call.begin_events()
        for kind, fields in (
            ("response.created", {}),
            ("response.completed", {"model": MODEL, "usage": {"input_tokens": 4, "output_tokens": 2}}),
        ):
            await call.send(f"event: {kind}\n")
            await call.event({"type": kind, "response": {"id": "theirs", "object": "response", **fields}})

    front.server.behave = behave
    response = front.http.post("/v1/responses", json={"input": "Hi", "model": "one", "stream": True})
    created, completed = front.events(response)
    assert created["response"]["id"] == completed["response"]["id"] and created["response"]["id"].startswith("resp_")
    assert completed["response"]["model"] == "one" and "[DONE]" not in response.text
    assert [line for line in response.text.split("\n") if line.startswith("event")] == [
        "event: response.created",
        "event: response.completed",
    ]


def test_events_of_messages_get_our_id_inside(front):
    async def behave(call: Call) -> None:
        await call.begin_events()
        await call.event({"type": "message_start", "message": {"id": "theirs", "model": MODEL}})
        await call.event({"type": "message_stop"})

    front.server.behave = behave
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "model": "one", "stream": True}
    start, stop = front.events(front.http.post("/v1/messages", json=body))
    assert start["message"]["id"].startswith("msg_") and start["message"]["model"] == "one" and stop == {"type": "message_stop"}


def test_embeddings_have_our_name_and_no_id(front):
    answer = front.http.post("/v1/embeddings", json={"input": "a", "model": "one"}).json()
    assert answer == {"object": "list", "model": "one", "data": [], "usage": {"prompt_tokens": 2, "total_tokens": 2}}


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/score", {"text": "a"}, 400, "/v1/score: the server that answers for 'one' has no such route"),
        ("/generate", {"prompt": "a"}, 400, "/generate: the server"),
        ("/detokenize", {"tokens": [1]}, 400, "that is someone"),
        ("/v1/responses", {"input": "a", "previous_response_id": "x"}, 400, "previous_response_id"),
        ("/v1/responses", {"input": "a", "store": True}, 400, "store"),
        (CHAT, {"messages": [], "stream": "yes"}, 400, "stream must be"),
        (CHAT, {"messages": [], "timeout_s": -1}, 400, "timeout_s must be"),
        (CHAT, {"messages": [], "user": "banned"}, 403, "may not use"),
        (CHAT, {"messages": [], "safety_identifier": "banned"}, 403, "may not use"),
        ("/v1/messages", {"messages": [], "metadata": {"user_id": "banned"}}, 403, "may not use"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_sent(front, path, body, status, says):
    response = front.http.post(path, json={"model": "one", **body})
    assert response.status_code == status and says in response.json()["error"]["message"], response.text
    assert front.server.calls == []


def test_a_body_that_is_no_json_is_refused_as_ever(front):
    assert front.http.post(CHAT, content=b"{", headers={"content-type": "application/json"}).json()["error"]["code"] == "invalid_json"
    assert front.http.post(CHAT, content=b"{}").json()["error"]["code"] == "invalid_content_type"


def test_a_model_that_nobody_has_is_a_404_that_names_all(front):
    response = front.chat(model="gpt-4")
    assert response.status_code == 404 and "'one', 'both', 'narrow', 'hasty', 'plain'" in response.json()["error"]["message"]
    refused = front.http.get("/slots")
    assert refused.status_code == 404 and "an upstream answers" in refused.json()["error"]["message"]


def test_models_and_readiness_tell_what_is_there(front):
    cards = {card["id"]: card for card in front.http.get("/v1/models").json()["data"]}
    assert list(cards) == ["one", "both", "narrow", "hasty", "plain"] and cards["one"]["default"] and not cards["both"]["default"]
    assert (cards["one"]["context"], cards["one"]["owned_by"], cards["one"]["weights"]) == (99, "someone", None)
    assert cards["one"]["capabilities"] == ["chat", "completions", "embeddings"]
    assert [each["url"] for each in cards["both"]["upstreams"]] == [server.url for server in front.servers]
    assert front.http.get("/v1/models/narrow").json() == cards["narrow"]
    assert front.http.get("/ready").json()["models"] == dict.fromkeys(cards, "ready")
    assert "of-litmus" not in front.http.get("/v1/models").text


def test_an_alias_is_asked_for_like_the_model(front, monkeypatch):
    monkeypatch.setattr(front.gateway, "aliases", {"gpt-4o": "both", "*": "one"})
    assert front.chat(model="gpt-4o").json()["model"] == "both"
    assert front.chat(model="whatever").json()["model"] == "one"
    cards = {card["id"]: card for card in front.http.get("/v1/models").json()["data"]}
    assert list(cards) == ["one", "both", "gpt-4o", "narrow", "hasty", "plain"] and cards["gpt-4o"]["root"] == "both"
    assert front.http.get("/v1/models/gpt-4o").json()["root"] == "both" and front.http.get("/v1/models/whatever").status_code == 404


def test_the_default_model_is_that_of_the_settings(front):
    assert front.http.post(CHAT, json={"messages": [], "n": 1}).json()["model"] == "one"


def test_tokens_are_counted_for_metrics_and_limits(front):
    def used() -> int:
        text = front.http.get("/metrics").text
        return sum(
            int(float(line.split()[-1])) for line in text.splitlines() if line.startswith('litmus:generation_tokens_total{model="one"')
        )

    before, left = used(), int(front.chat().headers["x-ratelimit-remaining-tokens"])
    front.events(front.chat(stream=True))
    assert used() - before == 6
    assert left - int(front.chat().headers["x-ratelimit-remaining-tokens"]) >= 2 * USAGE["total_tokens"]
    text = front.http.get("/metrics").text
    assert f'litmus:upstream_alive{{model="one",upstream="{front.server.url}"}} 1.0' in text
    assert 'outcome="answered"' in text


def test_the_document_lists_every_metric(front):
    front.chat()
    text = front.http.get("/metrics").text
    kinds = dict(re.findall(r"^# TYPE (litmus:upstream_\w+) (\w+)$", text, re.M))
    meanings = dict(re.findall(r"^# HELP (litmus:upstream_\w+) (.*)$", text, re.M))
    rows = re.findall(r"^\| `(litmus:upstream_\w+)` \| (\w+) \| [\w, ]+ \| (.*) \|$", (ROOT / "docs/observability.md").read_text(), re.M)
    assert {name: (kind, meaning) for name, kind, meaning in rows} == {name: (kind, meanings[name]) for name, kind in kinds.items()}


def test_token_ids_are_refused_where_content_is_blocked(front):
    class Bans(frozenset):
        block_content = True

    for body in ({"prompt": [1, 2]}, {"prompt": [[1], [2]]}, {"input": [3]}, {"input": [3.0]}):
        with pytest.raises(InvalidRequest, match="blocked content"):
            check_tokens(SimpleNamespace(banned_users=Bans()), body)
    check_tokens(SimpleNamespace(banned_users=Bans()), {"prompt": "a", "input": ["b"]})
    check_tokens(SimpleNamespace(banned_users=frozenset()), {"prompt": [1]})


def test_the_official_client(front):
    client = front.client()
    stream = client.chat.completions.create(model="one", messages=[{"role": "user", "content": "Hi"}], stream=True)
    assert "".join(each.choices[0].delta.content or "" for each in stream) == TEXT

    async def behave(call: Call) -> None:
        await call.reply(400, {"error": {"message": f"{MODEL} has no such thing", "param": "n", "code": 400, "type": "their_type"}})

    front.server.behave = behave
    with pytest.raises(openai.BadRequestError, match="one has no such thing") as caught:
        client.chat.completions.create(model="one", messages=[{"role": "user", "content": "Hi"}])
    assert (caught.value.param, caught.value.code) == ("n", "their_type")


def test_a_head_or_get_is_not_forwarded(front):
    assert httpx.get(f"{front.url}{CHAT}").status_code == 405 and front.server.calls == []
