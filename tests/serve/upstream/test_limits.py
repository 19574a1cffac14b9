"""How long an upstream may take, and how large its answers may be."""

import httpx
import pytest
from openai_server import Call, two_words
from prometheus_client import Counter
from upstreams import error_of, hello

from serve.admission.usage import Usage
from serve.observe.observer import Observer
from serve.observe.record import RECORD, RequestRecord
from serve.upstream.meter import Meter
from serve.upstream.wires import WIRES

CHAT = "/v1/chat/completions"


def code_of_late(front, response: httpx.Response) -> str:
    """Of a stream that ends with an error, or of an error before it: on a busy machine the time may pass before its first byte."""
    if response.status_code != 200:
        return error_of(response)[1]
    *_, error, done = front.events(response)
    assert done == "[DONE]"
    return error["error"]["code"]


def test_a_server_that_is_silent_for_too_long(front):
    async def silent(call: Call) -> None:
        await call.until_left()

    front.server.behave = silent
    status, code, message = error_of(front.chat(model="hasty"))
    assert (status, code) == (503, "upstream_timeout") and "upstream_timeout_s" in message

    async def stops(call: Call) -> None:
        await two_words(call)
        await call.until_left()

    front.server.behave = stops
    assert code_of_late(front, front.chat(model="hasty", stream=True)) == "upstream_timeout"


def test_the_deadline_of_a_request_holds(front):
    async def stops(call: Call) -> None:
        if call.body.get("stream"):
            await two_words(call)
        await call.until_left()

    front.server.behave = stops
    assert error_of(front.chat(timeout_s=0.05))[:2] == (408, "deadline_exceeded")
    assert code_of_late(front, front.chat(timeout_s=0.2, stream=True)) == "deadline_exceeded"
    response = front.http.post(CHAT, json=hello(model="one"), headers={"X-Request-Timeout": "0.05"})
    assert error_of(response)[:2] == (408, "deadline_exceeded")
    front.wait_until(lambda: front.gateway.in_flight == 0)


def test_an_answer_without_end_is_bounded(front, monkeypatch):
    monkeypatch.setattr("serve.upstream.errand.MAX_ANSWER_BYTES", 1000)
    monkeypatch.setattr("serve.upstream.events.MAX_EVENT_BYTES", 1000)

    async def behave(call: Call) -> None:
        if not call.body.get("stream"):
            await call.reply(200, {"id": "x" * 2000})
            return
        await call.begin_events()
        await call.send("data: " + "x" * 2000)
        await call.until_left()

    front.server.behave = behave
    assert "more than 1000 bytes" in error_of(front.chat())[2]
    assert "more than 1000 bytes" in front.events(front.chat(stream=True))[0]["error"]["message"]


@pytest.mark.parametrize("sent", [True, False])
def test_what_an_upstream_was_asked_for_is_charged_though_it_counted_nothing(sent):
    record = RequestRecord("id", "POST")
    token = RECORD.set(record)
    meter = Meter(Observer(["one"]), "one", WIRES[CHAT], Counter("c", "c", ["model", "upstream", "outcome"], registry=None))
    RECORD.reset(token)
    if sent:
        meter.sent()
    meter.failed("deadline_exceeded")
    assert (record.jobs, Usage(20).tokens(record)) == (int(sent), 20)
