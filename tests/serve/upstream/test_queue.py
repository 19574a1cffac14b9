"""How many requests an upstream gets, who waits, and which upstream a conversation goes to."""

import asyncio
import threading
from collections import Counter

import httpx
import pytest
from openai_server import Call, answer

from app.errors import InvalidRequest, NotReady, QueueFull
from app.settings import ModelSettings, QueueSettings
from serve.upstream.opening import words_of
from serve.upstream.pool import Pool
from serve.upstream.probe import Abilities
from serve.upstream.upstream import Upstream


class Held:
    """A behaviour that answers when it is released."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.release = threading.Event()

    async def __call__(self, call: Call) -> None:
        self.calls.append(call)
        while not self.release.is_set():
            await asyncio.sleep(0.005)
        await answer(call)


def test_what_exceeds_the_bound_waits_and_is_told_so(front):
    held = Held()
    front.server.behave = held
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(front.chat(model="narrow", stream=True))) for _ in range(3)]
    for count, thread in enumerate(threads):
        thread.start()
        front.wait_until(lambda count=count: front.gateway.in_flight == count + 1)
    front.wait_until(lambda: front.gateway.upstreams.pools["narrow"].waiting == 2 and held.calls)
    full = front.chat(model="narrow")
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full") and full.headers["retry-after"]
    assert len(held.calls) == 1
    assert 'litmus:upstream_requests_waiting{model="narrow"} 2.0' in front.http.get("/metrics").text
    held.release.set()
    for thread in threads:
        thread.join(60)
    assert [front.events(each)[-1] for each in answers] == ["[DONE]"] * 3
    assert sorted(each.text.count(": queued position=") > 0 for each in answers) == [False, True, True]
    front.wait_until(lambda: front.gateway.in_flight == 0)


def test_a_refusal_after_the_queue_is_an_error_event(front):
    held = Held()
    front.server.behave = held
    answers: list[httpx.Response] = []
    first = threading.Thread(target=lambda: front.chat(model="narrow"))
    second = threading.Thread(target=lambda: answers.append(front.chat(model="narrow", stream=True)))
    first.start()
    front.wait_until(lambda: len(held.calls) == 1)
    second.start()
    front.wait_until(lambda: front.gateway.upstreams.pools["narrow"].waiting == 1)

    async def refuse(call: Call) -> None:
        await call.reply(400, {"error": {"message": "no"}})

    front.server.behave = refuse
    held.release.set()
    first.join(60), second.join(60)
    error, done = front.events(answers[0])
    assert (error["error"]["message"], done) == ("no", "[DONE]")


def test_turns_of_a_conversation_go_to_one_upstream(front):
    places = Counter()
    for number in range(6):
        turns = [{"role": "system", "content": "You are kind."}, {"role": "user", "content": f"I am number {number}."}]
        for turn in range(3):
            front.chat(model="both", messages=turns).raise_for_status()
            places[number, next(index for index, server in enumerate(front.servers) if server.calls)] += 1
            for server in front.servers:
                server.calls.clear()
            turns = [*turns, {"role": "assistant", "content": "Yes. " * 99}, {"role": "user", "content": str(turn)}]
    assert list(places.values()) == [3] * 6


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ({"prompt": "a" * 300}, {"prompt": "a" * 300 + "b" * 100}),
        ({"input": "Hi", "instructions": "Be kind."}, {"input": "Hi", "instructions": "Be kind."}),
        (
            {"system": "s", "messages": [{"role": "user", "content": "u"}]},
            {"system": "s", "messages": [{"role": "user", "content": "u"}, {}]},
        ),
    ],
)
def test_a_later_turn_begins_with_the_words_of_the_earlier(earlier, later):
    pool = create("a", "b", "c")
    first = pool._choose(pool.upstreams[1:2], words_of(earlier))
    assert first is pool.upstreams[1] and pool._choose(pool.upstreams, words_of(later)) is first
    assert pool._choose(pool.upstreams, words_of({"prompt": "z" * 300})) is pool.upstreams[0]


def create(*names: str, limit: int = 4, waiting: int = 2) -> Pool:
    urls = [ModelSettings(upstream=f"http://{name}", name="m", upstream_concurrency=limit) for name in names]
    pool = Pool("m", [Upstream("m", settings) for settings in urls], QueueSettings(max_waiting=waiting))
    for upstream in pool.upstreams:
        upstream.abilities = Abilities("x", "m", routes=frozenset({"/r"}))
    return pool


def test_the_least_loaded_upstream_gets_a_new_conversation_and_a_full_one_loses_its_own():
    async def main() -> None:
        pool = create("a", "b")
        words = words_of({"prompt": "x" * 400})
        seats = []
        for _ in range(4):
            place = await pool.enter(words, lambda _: None).__aenter__()
            seats.append(pool.upstreams.index(await pool.seat(place)))
        assert seats == [0, 0, 1, 1], "a quarter of the bound more than the other, then it moves, with what is remembered"
        assert [upstream.load for upstream in pool.upstreams] == [2, 2]

    asyncio.run(main())


def test_who_waits_is_seated_in_order_and_called_when_nobody_is_left():
    async def main() -> None:
        pool = create("a", limit=1)
        entered = [pool.enter((), lambda _: None) for _ in range(3)]
        places = [await each.__aenter__() for each in entered]
        seats = [asyncio.create_task(pool.seat(place)) for place in places]
        await asyncio.sleep(0)
        assert [task.done() for task in seats] == [True, False, False] and pool.position(places[2]) == 2
        with pytest.raises(QueueFull):
            await pool.enter((), lambda _: None).__aenter__()
        await entered[0].__aexit__(None, None, None)
        assert (await seats[1]) is pool.upstreams[0] and not seats[2].done()
        pool.upstreams[0].lost("it is a test")
        with pytest.raises(NotReady, match="can be reached"):
            await seats[2]
        for each in entered[1:]:
            await each.__aexit__(None, None, None)
        assert (pool.in_flight, pool.waiting, pool.upstreams[0].load) == (0, 0, 0)

    asyncio.run(main())


def test_a_cancelled_wait_leaves_no_trace():
    async def main() -> None:
        pool = create("a", limit=1)
        async with pool.enter((), lambda _: None) as first:
            await pool.seat(first)

            async def wait() -> None:
                async with pool.enter((), lambda _: None) as place:
                    await pool.seat(place)

            task = asyncio.create_task(wait())
            await asyncio.sleep(0)
            assert pool.waiting == 1
            task.cancel()
            await asyncio.wait({task})
            assert (pool.waiting, pool.in_flight) == (0, 1)

    asyncio.run(main())


def test_a_request_goes_to_an_upstream_that_can_do_it():
    async def main() -> None:
        pool = create("a", "b")

        def refusal(upstream: Upstream) -> InvalidRequest | None:
            return InvalidRequest("not here") if upstream is pool.upstreams[0] else None

        async with pool.enter((), refusal) as place:
            assert await pool.seat(place) is pool.upstreams[1]
        with pytest.raises(InvalidRequest, match="nobody"):
            await pool.enter((), lambda _: InvalidRequest("nobody")).__aenter__()

    asyncio.run(main())
