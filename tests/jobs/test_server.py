"""What a worker makes of answers that are not those of its server: pages of a proxy, damaged bodies, other servers."""

import asyncio
import io

import httpx
import pytest
from batch_lines import ids, line

from app.settings import Settings
from jobs import policy
from jobs.leases import Task
from jobs.policy import Part
from jobs.runs import Claim
from jobs.server import Refused, Server, Unavailable

PAGE = httpx.Response(200, html="<h1>Please sign in</h1>")
DAMAGED = {"content-encoding": "gzip", "content-type": "application/octet-stream"}
PART = Part(first_line=0, lines=1, first_byte=0, bytes=9)
TASK = Task("batch_0", "lines", 0, 1, 1, PART, "", "/v1/completions", "file-0", "in_progress", None, None)
CLAIM = Claim("ftjob-0", "tune", 0, 1, 1, "", None, "file-0", None)


async def read(server, whole):
    return b"".join([chunk async for chunk in server.input(TASK, whole)])


ASKED = {
    "answer": lambda server: server.answer(TASK, {}),
    "slots": lambda server: server.slots(TASK),
    "file": lambda server: read(server, True),
    "part": lambda server: read(server, False),
    "keep": lambda server: server.keep(TASK, "output", io.BytesIO(b"{}")),
    "serve": lambda server: server.serve(CLAIM),
}


def asked(what, response):
    """What a worker gets that asks for it, where everything is answered so."""

    def answer(request):
        return httpx.Response(response.status_code, headers=response.headers, stream=httpx.ByteStream(response.content))

    async def ask():
        async with Server(Settings(), "secret") as server:
            server._http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://far")
            return await ASKED[what](server)

    return asyncio.run(ask())


@pytest.mark.parametrize("what", sorted(ASKED.keys() - {"serve"}))
def test_a_page_with_status_200_is_no_answer(what):
    with pytest.raises(Unavailable):
        asked(what, PAGE)


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("status", [400, 404, 502])
def test_a_page_with_another_status_ends_nothing(what, status):
    """A line is answered with it: the server may say so of a line, and a 404 would not be another one the next time."""
    page = httpx.Response(status, html="<h1>No such page</h1>")
    if what == "answer":
        assert asked(what, page).body["error"]["code"] == "not_json"
    else:
        with pytest.raises(Unavailable):
            asked(what, page)


@pytest.mark.parametrize("what", ASKED)
def test_a_damaged_answer_is_none(what):
    class Damaged(httpx.Response):
        content = b"no gzip"

    with pytest.raises(Unavailable):
        asked(what, Damaged(206 if what == "part" else 200, headers=DAMAGED))


@pytest.mark.parametrize(
    ("what", "body"),
    [("answer", []), ("slots", []), ("slots", {"data": [{"id": "gpt"}]}), ("slots", {"data": "x"}), ("keep", {}), ("keep", {"id": 7})],
)
def test_json_of_another_server_is_no_answer(what, body):
    with pytest.raises(Unavailable):
        asked(what, httpx.Response(200, json=body))


def test_the_server_itself_may_refuse():
    said = {"error": {"message": "no such file", "code": "file_not_found"}}
    for what in ("file", "part", "keep"):
        with pytest.raises(Refused, match="404 file_not_found"):
            asked(what, httpx.Response(404, json=said))
    assert asked("serve", httpx.Response(400, json=said)) == "no such file"
    assert asked("serve", httpx.Response(204)) is None


def test_a_whole_file_is_not_taken_for_a_part_of_it():
    file = httpx.Response(200, content=b"{}\n", headers={"content-type": "application/octet-stream"})
    assert asked("file", file) == b"{}\n"
    with pytest.raises(Unavailable):
        asked("part", file)


def test_pages_of_a_proxy_are_neither_answers_nor_files(hosted, monkeypatch):
    """The first time that anything is asked for, a page comes in its place."""
    monkeypatch.setattr(policy, "pause_s", lambda tries, retry_after=None: 0.0)
    monkeypatch.setattr("jobs.worker.PAUSE_S", 0.0)
    send, seen = httpx.AsyncHTTPTransport.handle_async_request, set()

    async def send_or_page(transport, request):
        asked = request.method, request.url.path, request.headers.get("range"), request.headers.get("content-length")
        if asked in seen:
            return await send(transport, request)
        seen.add(asked)
        return httpx.Response(200, html="<h1>Please sign in</h1>")

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", send_or_page)
    made = hosted.start(line("a"), line("b", prompt="b", max_tokens=1))
    hosted.work()
    assert len(seen) == 6  # the file and its part, the models, two lines, the output
    assert hosted.client().batches.retrieve(made.id).status == "completed"
    assert (ids(hosted.output(made)[0]), hosted.output(made)[1]) == (["a", "b"], [])
