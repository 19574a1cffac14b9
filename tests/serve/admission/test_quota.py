"""Limits of each client over an application in this process: who is counted, what is charged, and what a client is told."""

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from app.settings import LimitSettings
from serve.admission.client import client_of
from serve.admission.quota import Quota, duration
from serve.admission.store import Store
from serve.observe.record import RECORD, RequestRecord

CHAT = "/v1/chat/completions"


class Application:
    """Answers with a usage that the test sets, when it is told to."""

    def __init__(self) -> None:
        self.status, self.usage = 200, '"usage":{"prompt_tokens":0,"completion_tokens":0}'
        self.wait: asyncio.Event | None = None
        self.raises = False
        self.record: RequestRecord | None = None  # what the server counted meanwhile

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        if self.wait is not None:
            await self.wait.wait()
        RECORD.set(self.record)
        if self.raises:
            raise RuntimeError
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"{%s}" % self.usage.encode()})


class Keyed:
    """Stands for the check of keys: the header tells the name."""

    def __init__(self, app: Quota) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = [value.decode() for name, value in scope["headers"] if name == b"x-key"]
        scope.setdefault("state", {})["client"] = names[0] if names else None
        await self.app(scope, receive, send)


class Client:
    def __init__(self, **limits: Any) -> None:
        self.application = Application()
        self.quota = Quota(self.application, LimitSettings(**limits), Store("memory://"))

    async def post(
        self, path: str = CHAT, size: int = 4, address: str = "1.2.3.4", key: str | None = None, body: bytes = b"", **headers: str
    ) -> httpx.Response:
        transport = httpx.ASGITransport(Keyed(self.quota), raise_app_exceptions=False, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(path, content=body or b"x" * size, headers={**headers, **({"X-Key": key} if key else {})})


def test_requests_are_counted_and_the_answers_say_what_is_left(clock: SimpleNamespace) -> None:
    async def main() -> None:
        client = Client(requests_per_minute=2)
        answers = [await client.post() for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
        assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"2"}
        assert {answer.headers["x-ratelimit-reset-requests"] for answer in answers} == {"2m0s"}
        assert "x-ratelimit-limit-tokens" not in answers[0].headers
        error = answers[2].json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "requests_per_minute_exceeded")
        assert error["message"].startswith("this client has used 2 of its 2 requests a minute (limits.requests_per_minute)")
        wait_s = int(answers[2].headers["retry-after"])
        clock.now += wait_s - 1
        assert (await client.post()).status_code == 429
        clock.now += 1
        assert (await client.post()).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize("limit", [{"requests_per_minute": 1}, {"tokens_per_minute": 1}])
def test_a_refusal_is_noted_under_its_route(clock: SimpleNamespace, limit: dict[str, int]) -> None:
    async def main() -> None:
        client = Client(**limit)
        client.application.usage = '"usage":{"prompt_tokens":9,"completion_tokens":0}'
        await client.post(CHAT + "/", size=400)
        record = RequestRecord("id", "POST")
        RECORD.set(record)
        assert (await client.post(CHAT + "/", size=400)).status_code == 429
        assert record.route == CHAT

    asyncio.run(main())


def test_each_key_has_its_own_count_wherever_it_comes_from_and_each_address_without_a_key(clock: SimpleNamespace) -> None:
    async def main() -> None:
        client = Client(requests_per_minute=1)
        assert (await client.post(key="a")).status_code == 200
        assert (await client.post(key="a", address="5.6.7.8")).status_code == 429
        assert (await client.post(key="b")).status_code == 200
        assert (await client.post()).status_code == 200
        assert (await client.post(**{"X-Forwarded-For": "9.9.9.9"})).status_code == 429
        assert (await client.post(address="5.6.7.8")).status_code == 200
        assert (await client.post(key="address:5.6.7.9")).status_code == 200
        assert (await client.post(address="5.6.7.9")).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("1.2.3.4", "address:1.2.3.4"),
        ("::ffff:1.2.3.4", "address:1.2.3.4"),
        ("2001:db8:1:2:3:4:5:6", "address:2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::9", "address:2001:db8:1:2::/64"),
        ("testclient", "address:testclient"),
    ],
)
def test_a_customer_of_ipv6_is_one_client(host: str, client: str) -> None:
    assert client_of({"type": "http", "client": (host, 80)}) == client


def test_a_refusal_under_messages_has_anthropics_form(clock: SimpleNamespace) -> None:
    async def main() -> None:
        client = Client(requests_per_minute=1)
        await client.post("/v1/messages")
        refused = await client.post("/v1/messages")
        assert (refused.status_code, refused.json()["type"], refused.json()["error"]["type"]) == (429, "error", "rate_limit_error")
        waiting = await client.post("/v1/messages", Expect="100-continue")
        assert (waiting.status_code, waiting.headers["connection"]) == (429, "close")

    asyncio.run(main())


def test_what_makes_no_work_is_not_counted() -> None:
    async def main() -> None:
        client = Client(requests_per_minute=1, tokens_per_minute=1, concurrent_requests=1)
        for path in ("/tokenize", "/ui/x", "/health") * 2:
            answer = await client.post(path)
            assert answer.status_code == 200 and not [name for name in answer.headers if name.startswith("x-ratelimit")]

    asyncio.run(main())


def test_tokens_are_charged_by_an_estimate_and_settled_by_what_the_answer_says(clock: SimpleNamespace) -> None:
    async def main() -> None:
        client = Client(tokens_per_minute=100)
        client.application.usage = '"usage":{"prompt_tokens":10,"completion_tokens":20}'
        first = await client.post(size=240)  # 60 by the estimate, 30 in truth
        assert first.headers["x-ratelimit-remaining-tokens"] == "40"
        assert (await client.post(size=40)).headers["x-ratelimit-remaining-tokens"] == "60"
        assert (await client.post(size=40)).headers["x-ratelimit-remaining-tokens"] == "30"
        assert (await client.post(size=4)).headers["x-ratelimit-remaining-tokens"] == "9"  # 120 are used, when it is answered
        refused = await client.post(size=4)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "tokens_per_minute_exceeded")
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
        assert refused.json()["error"]["message"].startswith(
            "this client has used 120 of its 100 tokens a minute (limits.tokens_per_minute)"
        )
        clock.now += int(refused.headers["retry-after"])
        assert (await client.post(size=4)).status_code == 200

    asyncio.run(main())


def test_a_request_larger_than_the_limit_is_served_when_nothing_else_was_used(clock: SimpleNamespace) -> None:
    async def main() -> None:
        client = Client(tokens_per_minute=10)
        client.application.usage = '"usage":{"prompt_tokens":500,"completion_tokens":0}'
        assert (await client.post(size=2000)).status_code == 200
        refused = await client.post(size=2000)
        assert refused.status_code == 429 and "this request needs about 10" in refused.json()["error"]["message"]
        clock.now += 49 * 60 - 1  # 490 of them are paid at 10 a minute
        assert (await client.post()).status_code == 429
        clock.now += 1
        assert (await client.post()).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize("raises", [False, True])
def test_a_failed_request_costs_no_tokens_and_a_refused_one_nothing(clock: SimpleNamespace, raises: bool) -> None:
    async def main() -> None:
        client = Client(tokens_per_minute=100, requests_per_minute=5)
        client.application.status, client.application.raises = 400, raises
        for _ in range(3):
            await client.post(size=400)  # each would be all of the tokens
        client.application.status, client.application.raises = 200, False
        client.application.usage = '"usage":{"prompt_tokens":100,"completion_tokens":0}'
        assert (await client.post(size=400)).headers["x-ratelimit-remaining-requests"] == "1"
        for _ in range(3):
            refused = await client.post(size=400)
            assert refused.json()["error"]["code"] == "tokens_per_minute_exceeded"
            assert refused.headers["x-ratelimit-remaining-requests"] == "1"
        assert (await client.quota.store.window("requests/address:1.2.3.4")).used == 4

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "code", "jobs", "generated", "charged"),
    [
        (503, "client_left", 1, 243, 278),
        (408, "deadline_exceeded", 1, 255, 290),
        (408, "deadline_exceeded", 1, 0, 35),  # while its prompt was read
        (500, "engine_failed", 1, 3, 38),
        (500, "engine_failed", 1, 0, 0),
        (503, "client_left", 0, 0, 0),
        (408, "body_too_slow", 0, 0, 0),
    ],
)
def test_what_was_computed_is_charged_though_the_answer_never_came(
    clock: SimpleNamespace, status: int, code: str, jobs: int, generated: int, charged: int
) -> None:
    async def main() -> None:
        client = Client(tokens_per_minute=20_000)
        client.application.status, client.application.usage = status, ""
        prompt = 35 * jobs
        client.application.record = RequestRecord("id", "POST", code=code, jobs=jobs, prompt_tokens=prompt, generated_tokens=generated)
        await client.post(size=400)
        assert (await client.quota.store.window("tokens/address:1.2.3.4")).used == charged

    asyncio.run(main())


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"])
def test_the_limit_of_an_answer_is_charged_before_it_begins(clock: SimpleNamespace, name: str) -> None:
    async def main() -> None:
        client = Client(tokens_per_minute=100, requests_per_minute=50)
        client.application.wait = asyncio.Event()
        body = b'{"messages": [{"content": "\\"n_predict\\": 99"}], "%s": 40}' % name.encode()  # 60 bytes and the name: 15 tokens or more
        running = [asyncio.create_task(client.post(body=body)) for _ in range(20)]
        done: list[asyncio.Task[httpx.Response]] = []
        for _ in range(10_000):  # turns of the loop, of which each request takes some dozens
            done = [each for each in running if each.done()]
            await asyncio.sleep(0)
        assert len(done) == 19
        refused = done[0].result()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "tokens_per_minute_exceeded")
        assert refused.headers["x-ratelimit-remaining-requests"] == "49" and int(refused.headers["x-ratelimit-remaining-tokens"]) <= 45
        client.application.usage = '"usage":{"prompt_tokens":5,"completion_tokens":2}'
        client.application.wait.set()
        answered = next(each for each in await asyncio.gather(*running) if each.status_code == 200)
        assert answered.headers["x-ratelimit-remaining-tokens"] == str(100 - 40 - len(body) // 4)
        assert (await client.quota.store.window("tokens/address:1.2.3.4")).used == 7
        assert (await client.quota.store.window("requests/address:1.2.3.4")).used == 1
        assert (await client.post(body=b'{"%s": 9000}' % name.encode())).status_code == 429, "as much as the limit"
        clock.now += 120
        assert (await client.post(body=b'{"%s": 9000}' % name.encode())).status_code == 200

    asyncio.run(main())


def test_a_client_has_so_many_requests_at_once() -> None:
    async def main() -> None:
        client = Client(concurrent_requests=2)
        client.application.wait = asyncio.Event()
        running = [asyncio.create_task(client.post()) for _ in range(2)]
        while client.quota.running["address:1.2.3.4"] < 2:
            await asyncio.sleep(0)
        refused = await client.post()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_concurrent_requests")
        assert refused.headers["retry-after"] == "1" and "2 may (limits.concurrent_requests)" in refused.json()["error"]["message"]
        other = asyncio.create_task(client.post(address="5.6.7.8"))
        client.application.wait.set()
        assert [answer.status_code for answer in await asyncio.gather(*running, other)] == [200] * 3
        client.application.raises = True
        for _ in range(3):
            assert (await client.post()).status_code == 500
        client.application.raises = False
        assert (await client.post()).status_code == 200 and not client.quota.running

    asyncio.run(main())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0204, "20ms"), (1, "1s"), (1.5, "1.5s"), (59.9996, "1m0s"), (60, "1m0s"), (90.25, "1m30.25s"), (360, "6m0s")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
