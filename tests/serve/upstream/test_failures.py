"""Every way in which an upstream can fail, and what the client sees of it."""

import json
import logging
import re
import socket
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import openai
import pytest
from openai_server import MODEL, Call, answer, drop, refusing, two_words
from upstreams import error_of, hello

from serve.upstream.errors import seconds_of

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 422])
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_passes_with_its_status_and_message(front, status, stream):
    front.server.behave = refusing(status, {"error": {"message": "no, because", "param": "top_k", "code": "their_code"}})
    response = front.chat(stream=stream)
    assert error_of(response) == (status, "their_code", "no, because")
    assert response.json()["error"]["param"] == "top_k" and response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [{"detail": "no, because"}, {"message": "no, because"}, {"error": "no, because"}])
def test_a_refusal_may_have_any_form(front, body):
    front.server.behave = refusing(400, body)
    assert error_of(front.chat())[2] == "no, because"


def test_a_refusal_without_words(front):
    front.server.behave = refusing(400, b"<html>")
    assert error_of(front.chat()) == (400, "upstream_refused", "the model's server refused the request and gave no reason")
    front.server.behave = refusing(500, b"<html>")
    assert error_of(front.chat())[2] == "the model's server failed (500) and gave no reason"


def test_a_429_keeps_its_retry_after(front):
    front.server.behave = refusing(429, {"error": {"message": "later"}}, retry_after="17")
    response = front.chat()
    assert error_of(response)[::2] == (429, "later") and response.headers["retry-after"] == "17"
    assert response.json()["error"]["type"] == "rate_limit_error"
    with pytest.raises(openai.RateLimitError, match="later"):
        front.client().chat.completions.create(model="one", messages=[{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    ("sent", "passed"),
    [("17", "17"), (" 9 ", "9"), ("0", "1"), ("99999999999", "3600"), ("abc", "1"), ("-5", "1"), ("Wed, 21 Oct 2015 07:28:00 GMT", "1")],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_is_a_bounded_number_of_seconds(front, status, sent, passed):
    front.server.behave = refusing(status, {"error": {"message": "later"}}, retry_after=sent)
    response = front.chat()
    assert (response.status_code, response.headers["retry-after"]) == (status, passed)


def test_a_retry_after_may_be_a_date():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < seconds_of(later) <= 90 and seconds_of(later.replace("GMT", "-0000")) > 80
    assert seconds_of(None) is None and seconds_of("Wed, 99 Oct 2015 07:28:00 GMT") is None


def test_codes_of_an_upstream_are_in_the_answer_and_in_no_metric(front):
    async def breaks_off(call: Call) -> None:
        await two_words(call)
        await call.event({"error": {"message": "no", "code": "req-theirs-2"}})

    front.server.behave = refusing(400, {"error": {"message": "no", "code": "req-theirs-1"}})
    assert error_of(front.chat())[1] == "req-theirs-1"
    front.server.behave = breaks_off
    assert front.events(front.chat(stream=True))[-2]["error"]["code"] == "req-theirs-2"
    text = front.http.get("/metrics").text
    assert "req-theirs" not in text
    assert f'litmus:requests_refused_total{{code="upstream_refused",route="{CHAT}",status="400"}}' in text
    assert 'litmus:request_failures_total{code="upstream_refused",kind="generate",model="one"}' in text


def test_a_stream_that_breaks_off_counts_as_failed(front):
    def counted() -> dict[str, float]:
        rows = re.findall(
            r'^litmus:upstream_requests_total\{model="one",outcome="(\w+)",.*\} (\S+)$', front.http.get("/metrics").text, re.M
        )
        return {"answered": 0.0, "failed": 0.0, **{outcome: float(count) for outcome, count in rows}}

    async def no_choices(call: Call) -> None:
        await call.reply(200, {"id": "x"})

    for behave, stream, outcome in ((two_words, True, "failed"), (no_choices, False, "failed"), (answer, True, "answered")):
        before = counted()
        front.server.behave = behave
        front.chat(stream=stream)
        assert {name: count - before[name] for name, count in counted().items() if count != before[name]} == {outcome: 1}


def test_what_the_operator_has_to_know_is_logged_once_and_without_a_text(front, caplog):
    def logged(status: int, code: object, times: int = 2) -> list[str]:
        caplog.clear()
        front.server.behave = refusing(status, {"error": {"message": "You said: hello", "code": code}})
        for _ in range(times):
            front.chat()
        return [record.getMessage().partition(" of one ")[2] for record in caplog.records if record.name == "serve.upstream.upstream"]

    with caplog.at_level(logging.WARNING, "serve.upstream"):
        assert logged(401, "x") == ["refuses the key of upstream_key (401)"]
        assert logged(500, "out_of_memory") == ["fails (500, out_of_memory)"]
        assert logged(500, "You said: hello") == ["fails (500)"]
        assert logged(403, "no_access") == ["forbids a request (403, no_access): its key may lack a right"]
        assert logged(404, "x") == []
        front.server.behave = answer
        front.chat()
        assert logged(403, "no_access", times=1) != [], "it was well in between"
        assert "hello" not in caplog.text


@pytest.mark.parametrize("count", [10**30, -1, 10**9 + 1, True, 1.5])
def test_absurd_counts_are_none(front, count):
    async def behave(call: Call) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": count, "completion_tokens": count}
        await call.reply(200, {"id": "x", "choices": [choice], "usage": usage})

    def tokens() -> list[str]:
        return re.findall(r"^litmus:(?:prompt|generation)_tokens_total\{.*$", front.http.get("/metrics").text, re.M)

    before = tokens()
    front.server.behave = behave
    assert front.chat().status_code == 200
    assert tokens() == before


def test_a_refusal_under_messages_has_anthropics_form(front):
    front.server.behave = refusing(400, {"type": "error", "error": {"type": "t", "message": "no"}})
    response = front.http.post("/v1/messages", json=hello(model="one", max_tokens=3))
    assert response.status_code == 400
    error = {"type": "invalid_request_error", "message": "no"}
    assert response.json() == {"type": "error", "error": error, "request_id": response.headers["request-id"]}


def test_a_key_that_is_refused_is_the_servers_fault(front):
    front.server.behave = refusing(401, {"error": {"message": "who are you"}})
    status, code, message = error_of(front.chat())
    assert (status, code) == (503, "upstream_failed") and "refused the key" in message


def test_a_redirect_is_not_followed(front):
    front.server.behave = refusing(307, b"", location=front.servers[1].url)
    assert error_of(front.chat())[:2] == (503, "upstream_failed")
    assert front.servers[1].calls == []


@pytest.mark.parametrize("fails", [refusing(500, {"error": {"message": "broken"}}), refusing(503, b""), drop])
@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_before_the_first_byte_is_tried_on_another_upstream(front, fails, stream):
    for server in front.servers:
        server.behave = fails
        other = front.servers[1 - front.servers.index(server)]
        for _ in range(2):  # one of them begins with the server that fails
            response = front.chat(model="both", stream=stream, messages=[{"role": "user", "content": str(front.servers.index(server))}])
            assert response.status_code == 200, response.text
        assert len(other.calls) == 2
        server.behave = answer
        server.calls.clear(), other.calls.clear()


@pytest.mark.parametrize("fails", [refusing(500, {"error": {"message": "broken"}}), drop])
def test_where_no_other_is_left_it_is_a_503(front, fails):
    for server in front.servers:
        server.behave = fails
    status, code, _ = error_of(front.chat(model="both"))
    assert (status, code) == (503, "upstream_failed")
    assert sum(len(server.calls) for server in front.servers) == 2, "not tried a third time"
    with pytest.raises(openai.InternalServerError):
        front.client().chat.completions.create(model="one", messages=[{"role": "user", "content": "Hi"}])


def test_an_upstream_that_is_refused_is_taken_out_and_comes_back(front):
    first, second = front.servers
    first.kill()
    for _ in range(4):
        assert front.chat(model="both").status_code == 200
    assert len(second.calls) == 4
    front.wait_until(lambda: [front.alive(name) for name in ("one", "both", "narrow", "hasty")] == [0, 1, 0, 0])
    assert front.http.get("/ready").status_code == 503
    state = front.http.get("/ready").json()
    assert (state["status"], state["models"]["one"], state["models"]["both"]) == ("degraded", "unreachable", "ready")
    assert error_of(front.chat())[:2] == (503, "not_ready")
    listed = front.http.get("/v1/models").json()["data"]
    assert [card["id"] for card in listed] == ["both", "plain"]
    assert [(each["alive"], bool(each["problem"])) for each in listed[0]["upstreams"]] == [(False, True), (True, False)]
    first.start()
    front.wait_until(lambda: front.http.get("/ready").status_code == 200)
    assert front.chat().status_code == 200
    assert 'litmus:upstream_deaths_total{model="both"' in front.http.get("/metrics").text


def test_one_that_loses_its_key_or_its_model_is_taken_out(front):
    front.server.key = "of-somebody-else"
    front.wait_until(lambda: front.alive("one") == 0)
    assert "upstream_key" in front.gateway.upstreams.pools["one"].upstreams[0].reason
    front.server.key, front.server.card = None, {**front.server.card, "id": "another"}
    front.gateway.upstreams.pools["one"].upstreams[0].doubt()
    front.wait_until(lambda: front.alive("one") == 1)  # the only model there, and none was named
    front.server.card = {**front.server.card, "id": MODEL}
    ours = [each for pool in front.gateway.upstreams.pools.values() for each in pool.upstreams]
    front.wait_until(lambda: all(each.abilities is not None and each.abilities.model == MODEL for each in ours))


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_no_json(front, stream):
    async def behave(call: Call) -> None:
        if stream:
            await call.begin_events()
            await call.send("data: {broken\n\n")
        else:
            await call.reply(200, b"[1]")

    front.server.behave = behave
    response = front.chat(stream=stream)
    error = front.events(response)[0]["error"] if stream else response.json()["error"]
    assert error["code"] == "upstream_failed" and "JSON" in error["message"]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("body", [{"id": "x"}, {"id": "x", "choices": []}, {"id": "x", "choices": "none"}])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_choices_is_a_failure(front, path, body, stream):
    async def behave(call: Call) -> None:
        if stream:
            await call.begin_events()
            await call.event(body)
            await call.event("[DONE]")
        else:
            await call.reply(200, body)

    front.server.behave = behave
    asked = {"messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else {"prompt": "Hi"}
    response = front.http.post(path, json={**asked, "model": "one", "stream": stream})
    assert response.status_code == (200 if stream else 503)
    error = front.events(response)[-2]["error"] if stream else response.json()["error"]
    assert error["code"] == "upstream_failed" and error["message"] == "the model's server sent an answer without `choices`"


def test_a_death_in_mid_stream_is_an_error_and_done(front):
    front.server.behave = two_words
    *_, second, error, done = front.events(front.chat(stream=True))
    assert second["choices"][0]["delta"] == {"content": "two "}
    assert error["error"]["code"] == "upstream_failed" and "broke off" in error["error"]["message"] and done == "[DONE]"
    with pytest.raises(openai.APIError, match="broke off"):
        list(front.client().chat.completions.create(model="one", messages=[{"role": "user", "content": "Hi"}], stream=True))


def test_a_kill_in_mid_stream_is_an_error_and_done(front):
    """Although there is another server, which would have to begin anew."""

    async def behave(call: Call) -> None:
        await two_words(call)
        await call.until_left()

    for server in front.servers:
        server.behave = behave
    body = hello(model="both", stream=True)
    with front.http.stream("POST", CHAT, json=body) as response:
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
        assert "two" in next(line for line in lines if "one" not in json.loads(line)["choices"][0]["delta"].get("content", "one"))
        (server,) = [server for server in front.servers if server.calls]
        server.kill()
        error, done = lines
    server.start()
    assert json.loads(error)["error"]["code"] == "upstream_failed" and done == "[DONE]"
    assert sum(len(server.calls) for server in front.servers) == 1


def test_an_error_of_theirs_in_mid_stream_is_passed_on(front):
    async def behave(call: Call) -> None:
        await two_words(call)
        await call.event({"error": {"message": "their-model ran out of memory", "code": 500, "type": "server_error"}})
        await call.event("[DONE]")

    front.server.behave = behave
    *_, error, done = front.events(front.chat(stream=True))
    assert (error["error"]["message"], error["error"]["code"], done) == ("one ran out of memory", "server_error", "[DONE]")


def test_a_death_in_mid_stream_of_responses_and_messages(front):
    async def responses(call: Call) -> None:
        await call.begin_events()
        await call.event({"type": "response.created", "response": {"id": "theirs", "object": "response", "output": []}})

    front.server.behave = responses
    created, error, failed = front.events(front.http.post("/v1/responses", json={"input": "Hi", "model": "one", "stream": True}))
    assert (error["type"], failed["type"]) == ("error", "response.failed")
    assert failed["response"]["id"] == created["response"]["id"] and failed["response"]["status"] == "failed"

    async def messages(call: Call) -> None:
        await call.begin_events()
        await call.event({"type": "message_start", "message": {"id": "theirs"}})

    front.server.behave = messages
    response = front.http.post("/v1/messages", json=hello(model="one", max_tokens=3, stream=True))
    assert front.events(response)[-1]["error"]["type"] == "overloaded_error" and "event: error" in response.text


def test_a_stream_that_is_none(front):
    front.server.behave = refusing(200, {"id": "x", "choices": []})
    assert error_of(front.chat(stream=True))[2] == "the model's server answered without a stream"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_closes_the_upstreams_request(front, stream):
    begun, calls = threading.Event(), []

    async def behave(call: Call) -> None:
        calls.append(call)
        if stream:
            await two_words(call)
        begun.set()
        await call.until_left()

    front.server.behave = behave
    body = f'{{"model": "one", "messages": [], "n": 1, "stream": {str(stream).lower()}}}'
    with socket.create_connection(("127.0.0.1", int(front.url.rsplit(":", 1)[1]))) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall((head + body).encode())
        assert begun.wait(60)
    assert calls[0].left.wait(60)
    front.wait_until(lambda: front.gateway.in_flight == 0)
    front.wait_until(lambda: 'code="client_left"' in front.http.get("/metrics").text)


def test_the_end_of_the_server_ends_its_requests(front):
    """As `serve.server._drain` does it."""
    from app.errors import NotReady

    begun = threading.Event()

    async def behave(call: Call) -> None:
        begun.set()
        await call.until_left()

    front.server.behave = behave
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(front.chat()))
    thread.start()
    assert begun.wait(60) and front.gateway.in_flight == 1
    errand = next(iter(front.gateway.upstreams._errands))
    loop = errand._loop
    loop.call_soon_threadsafe(front.gateway.fail_all, NotReady("the server shut down"))
    thread.join(60)
    assert error_of(answers[0])[::2] == (503, "the server shut down")
