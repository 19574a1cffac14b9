"""Refusals of the gate: before a body is read, in the form of the route, and never of what makes no work."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from serve.admission.gate import MIN_ROOM, ROOM, WORK, Gate
from serve.admission.pace import Pace
from serve.admission.turns import AT_ONCE, Turns
from serve.observe.record import RECORD, RequestRecord

CHAT = "/v1/chat/completions"
TEXT_ROUTES = {"/apply-template", "/tokenize", "/detokenize", "/v1/messages/count_tokens"}  # they answer without a job


@dataclass
class FakeWork:
    capacity: int = 2
    in_flight: int = 0


@dataclass
class Client:
    """One request: what it sends piece by piece, and what it was answered."""

    pieces: Sequence[bytes] = (b"{}",)
    path: str = CHAT
    method: str = "POST"
    headers: Sequence[tuple[bytes, bytes]] = ()
    sent: list[Message] = field(default_factory=list)
    reads: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)  # before the last piece of several

    async def receive(self) -> Message:
        self.reads += 1
        if 1 < len(self.pieces) == self.reads:
            await self.go_on.wait()
        return {"type": "http.request", "body": self.pieces[self.reads - 1], "more_body": self.reads < len(self.pieces)}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def ask(self, gate: Gate) -> None:
        scope = {"type": "http", "method": self.method, "path": self.path, "headers": list(self.headers)}
        await gate(scope, self.receive, self.send)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    def header(self, name: bytes) -> bytes | None:
        return dict(self.sent[0]["headers"]).get(name)

    @property
    def body(self) -> Any:
        return json.loads(self.sent[1]["body"])


@dataclass
class Application:
    """Reads a body, then answers when it is told to."""

    finish: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        while message.get("more_body"):
            message = await receive()
        if message["type"] == "http.disconnect":
            return
        await self.finish.wait()
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


async def turn() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


def test_beyond_its_bound_the_gate_refuses_without_reading_and_lets_in_again_when_one_is_answered() -> None:
    async def main() -> None:
        application, room = Application(), 2 + MIN_ROOM
        gate = Gate(application, FakeWork(capacity=2), Pace())
        clients = [Client() for _ in range(room)]
        tasks = [asyncio.create_task(client.ask(gate)) for client in clients]
        await turn()
        assert gate.on_way == room
        refused, record = Client(), RequestRecord("id", "POST")
        RECORD.set(record)
        await refused.ask(gate)
        assert record.route in WORK
        assert (refused.status, refused.reads) == (429, 0)
        assert (refused.header(b"retry-after"), refused.header(b"connection")) == (b"1", None)
        assert int(refused.header(b"content-length") or 0) == len(refused.sent[1]["body"])
        application.finish.set()
        await asyncio.gather(*tasks)
        assert (gate.on_way, {client.status for client in clients}) == (0, {200})
        again = Client()
        await again.ask(gate)
        assert again.status == 200

    asyncio.run(main())


def test_a_large_server_has_room_for_an_eighth_more_than_it_takes() -> None:
    async def main() -> None:
        gate = Gate(Application(), FakeWork(capacity=800), Pace())
        gate.on_way = 799 + int(800 * ROOM)
        assert not gate.full
        gate.on_way += 1
        assert gate.full

    asyncio.run(main())


def test_a_queue_full_of_jobs_refuses_though_few_requests_brought_them() -> None:
    async def main() -> None:
        gate = Gate(Application(), FakeWork(capacity=2, in_flight=2), Pace())
        client = Client()
        await client.ask(gate)
        assert (client.status, client.reads, gate.on_way) == (429, 0, 0)
        assert "at most 2 answers and texts are in flight" in client.body["error"]["message"]

    asyncio.run(main())


@pytest.mark.parametrize("path", sorted(WORK))
def test_the_refusal_has_the_form_of_its_route(path: str) -> None:
    async def main() -> None:
        gate = Gate(Application(), FakeWork(capacity=0, in_flight=0), Pace())
        for asked in (path, f"{path}/"):
            client = Client(path=asked)
            await client.ask(gate)
            assert client.status == 429 and client.header(b"content-type") == b"application/json"
            error = client.body["error"]
            if path == "/v1/messages":
                assert (client.body["type"], error["type"]) == ("error", "rate_limit_error")
            else:
                assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "queue_full", None)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/ready"),
        ("GET", "/metrics"),
        ("GET", "/v1/models"),
        ("GET", CHAT),
        ("POST", "/ui/"),
        ("POST", "/tokenize"),
    ],
)
def test_what_makes_no_work_is_never_limited(method: str, path: str) -> None:
    async def main() -> None:
        application = Application()
        application.finish.set()
        client = Client(method=method, path=path)
        await client.ask(Gate(application, FakeWork(capacity=0), Pace()))
        assert client.status == 200

    asyncio.run(main())


def test_a_body_on_its_way_takes_no_place_and_is_looked_at_again_at_its_end() -> None:
    async def main() -> None:
        application = Application()
        work = FakeWork(capacity=2)
        gate = Gate(application, work, Pace())
        slow = Client(pieces=(b"{", b"}"))
        task = asyncio.create_task(slow.ask(gate))
        await turn()
        assert (slow.reads, gate.on_way, slow.sent) == (2, 0, [])
        work.in_flight = 2
        slow.go_on.set()
        await task
        assert (slow.status, gate.on_way) == (429, 0)

    asyncio.run(main())


def test_a_client_that_waits_for_100_continue_is_refused_with_the_end_of_its_connection() -> None:
    async def main() -> None:
        client = Client(headers=[(b"expect", b"100-continue")])
        await client.ask(Gate(Application(), FakeWork(capacity=0), Pace()))
        assert (client.status, client.header(b"connection")) == (429, b"close")

    asyncio.run(main())


@pytest.mark.parametrize(("status", "finished"), [(200, 1), (400, 0), (429, 0), (503, 0)])
def test_only_answers_count_as_finished_work(status: int, finished: int) -> None:
    async def main() -> None:
        pace, application = Pace(), Application(status=status)
        application.finish.set()
        for _ in range(2):
            await Client().ask(Gate(application, FakeWork(), pace))
        assert (pace.rate() is not None) == bool(finished)

    asyncio.run(main())


def test_an_application_that_raises_gives_its_place_back() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise RuntimeError

    async def main() -> None:
        gate = Gate(failing, FakeWork(), Pace())
        with pytest.raises(RuntimeError):
            await Client().ask(gate)
        assert gate.on_way == 0

    asyncio.run(main())


def test_every_route_that_makes_jobs_is_known_to_the_gate(served: Any) -> None:
    paths = served.client.get("/openapi.json").json()["paths"]
    assert {path for path, methods in paths.items() if "post" in methods} - TEXT_ROUTES == WORK


def test_requests_that_come_together_begin_a_few_at_a_time_and_a_refusal_does_not_wait_for_them() -> None:
    began: list[int] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        began.append(iteration)
        await asyncio.Event().wait()

    iteration = 0

    async def main() -> None:
        nonlocal iteration
        gate = Gate(application, FakeWork(capacity=40), Pace())
        tasks = [asyncio.create_task(Client().ask(gate)) for _ in range(48)]
        refused: Client | None = None
        for _ in range(20):
            iteration += 1
            await asyncio.sleep(0)
            if gate.full and refused is None:
                refused = Client()
                await refused.ask(gate)
                assert (refused.status, began) == (429, [])
        assert refused is not None
        assert len(began) == 48 and max(began.count(at) for at in began) == AT_ONCE
        for task in tasks:
            task.cancel()

    asyncio.run(main())


def test_a_request_that_was_cancelled_takes_nobodys_turn() -> None:
    async def main() -> None:
        turns = Turns()
        tasks = [asyncio.create_task(turns.wait()) for _ in range(3 * AT_ONCE)]
        await asyncio.sleep(0)
        for task in tasks[:AT_ONCE]:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [task.done() for task in tasks] == [True] * 2 * AT_ONCE + [False] * AT_ONCE
        await asyncio.gather(*tasks[AT_ONCE:])

    asyncio.run(main())
