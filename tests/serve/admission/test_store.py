"""Windows of a minute: by a clock of the test in memory, and in a real Redis that stops and comes back."""

import asyncio
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ports import free_port
from serving import wait_for

from app.errors import SetupError
from serve.admission.store import RETRY_S, UNBOUNDED, Store, Window

HAS_REDIS = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(HAS_REDIS is None, reason="redis-server is not installed (apt-get install redis-server)")


async def takes(store: Store, cost: int, limit: int) -> bool:
    return await store.take("a", cost, limit) is not None


async def use(store: Store, cost: int) -> None:
    """Whatever the limit; give back, if it is negative."""
    assert await store.take("a", cost, UNBOUNDED) is not None


def test_a_limit_holds_and_fades_over_the_following_minute(clock: SimpleNamespace) -> None:
    async def main() -> None:
        store = Store("memory://")
        assert [await takes(store, 1, 3) for _ in range(4)] == [True, True, True, False]
        assert await store.take("b", 3, 3)
        clock.now += 59
        assert not await store.take("a", 1, 3)
        clock.now += 1 + 21  # 39/60 of 3 still count
        assert (await store.window("a")).used == 1
        assert [await takes(store, 1, 3) for _ in range(3)] == [True, True, False]
        clock.now += 120
        assert (await store.window("a")).used == 0

    asyncio.run(main())


def test_costs_are_weighed_given_back_and_charged_beyond_the_limit(clock: SimpleNamespace) -> None:
    async def main() -> None:
        store = Store("memory://")
        assert [await takes(store, cost, 1000) for cost in (900, 200, 100)] == [True, False, True]
        await use(store, -500)
        assert (await store.window("a")).used == 500
        await use(store, 2000)
        assert (await store.window("a")).used == 2500
        assert not await store.take("a", 1, 1000)
        clock.now += 60 + 37  # 23/60 of 2500 are 958
        assert [await takes(store, cost, 1000) for cost in (50, 40)] == [False, True]

    asyncio.run(main())


@pytest.mark.parametrize("used", [(3, 0, 0), (5, 0, 0), (0, 3, 70), (2, 2, 90), (4, 1, 75), (0, 900, 61)])
@pytest.mark.parametrize("cost", [1, 2])
def test_the_wait_is_as_long_as_a_client_has_to_wait(clock: SimpleNamespace, used: tuple[int, int, int], cost: int) -> None:
    """What was used in the first minute, what in the second, and when the client asks."""
    first, second, at_s = used
    limit, began = 3, clock.now

    async def main() -> None:
        store = Store("memory://")
        await use(store, first)
        clock.now = began + max(at_s, 60 * bool(second))
        await use(store, second)
        if not second:
            clock.now = began + 45
        wait_s = (await store.window("a")).wait_s(cost, limit)
        asked = clock.now
        if wait_s > 1:
            clock.now = asked + wait_s - 1
            assert not await store.take("a", cost, limit)
        clock.now = asked + wait_s + 0.01
        assert await store.take("a", cost, limit)

    asyncio.run(main())


def test_what_exceeds_the_limit_is_paid_at_its_pace(clock: SimpleNamespace) -> None:
    async def main() -> None:
        store = Store("memory://")
        await store.charge("a", 5050, 100)
        window = await store.window("a")
        assert (window.used, window.owed_s) == (100, 4950 * 0.6)
        assert window.wait_s(1, 100) == window.reset_s == 4950 * 0.6
        clock.now += 4950 * 0.6 - 1
        assert not await takes(store, 1, 100)
        clock.now += 1
        assert await takes(store, 100, 100)
        await store.charge("a", 100, 100)
        assert (await store.window("a")).owed_s == 60

    asyncio.run(main())


def test_a_window_says_when_nothing_counts_any_more() -> None:
    assert Window(0, 0, 0, 90).reset_s == 0
    assert Window(5, 30, 0, 90).reset_s == 30
    assert Window(5, 30, 1, 90).reset_s == 90
    assert Window(10, 30, 2, 90).used == 7


class Redis:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert HAS_REDIS is not None
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        self.process = subprocess.Popen([HAS_REDIS, *options], stdout=subprocess.DEVNULL)
        wait_for(self._listens)

    def _listens(self) -> bool:
        with socket.socket() as client:
            client.settimeout(60)
            if client.connect_ex(("127.0.0.1", self.port)):
                return False
            client.sendall(b"PING\r\n")
            return client.recv(10) == b"+PONG\r\n"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    """It has as long to answer as a busy machine may need; one that is stopped refuses at once."""
    monkeypatch.setattr("serve.admission.redis.TIMEOUT_S", 60)
    redis = Redis(tmp_path)
    redis.start()
    yield redis
    redis.stop()


@needs_redis
def test_two_servers_share_what_redis_counts(redis: Redis) -> None:
    async def main() -> None:
        one, two = (Store(f"redis://127.0.0.1:{redis.port}") for _ in range(2))
        assert [await takes(store, 1, 3) for store in (one, two, one, two)] == [True, True, True, False]
        await use(two, 7)
        assert (await one.window("a")).used == 10
        await use(one, -9)
        assert await two.take("a", 2, 3)
        window = await one.window("a")
        assert (window.used, window.previous) == (3, 0) and 110 < window.current_s <= 120

    asyncio.run(main())


@needs_redis
def test_without_redis_each_server_counts_by_itself_until_it_is_back(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    now, told = 0.0, list[bool]()

    async def main() -> None:
        nonlocal now
        store = Store(f"redis://127.0.0.1:{redis.port}", clock=lambda: now, tell=lambda place, answers: told.append(answers))
        assert [await takes(store, 1, 2) for _ in range(3)] == [True, True, False]
        redis.stop()
        began = time.monotonic()
        assert [await takes(store, 1, 2) for _ in range(3)] == [True, True, False]
        assert time.monotonic() - began < 30
        now += RETRY_S + 1
        assert not await store.take("a", 1, 2)  # asked again, in vain
        redis.start()
        assert not await store.take("a", 1, 2)
        now += RETRY_S + 1
        assert await store.take("a", 1, 2)

    with caplog.at_level(logging.WARNING, "serve.admission"):
        asyncio.run(main())
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "Redis at 127.0.0.1",
        "Redis at 127.0.0.1",
    ]
    assert f"127.0.0.1:{redis.port} cannot be used (ConnectionError)" in caplog.text
    assert told == [True, False, True]


@needs_redis
def test_servers_share_what_is_owed(redis: Redis) -> None:
    async def main() -> None:
        one, two = (Store(f"redis://127.0.0.1:{redis.port}") for _ in range(2))
        await one.charge("a", 250, 100)
        await two.charge("a", 100, 100)
        window = await one.window("a")
        assert window.used == 100 and 140 < window.owed_s <= 150
        assert not await takes(two, 1, 100) and (await one.window("b")).owed_s == 0

    asyncio.run(main())


@needs_redis
def test_what_a_redis_counted_is_given_back_to_it_or_not_at_all(redis: Redis) -> None:
    now = 0.0

    async def main() -> None:
        nonlocal now
        store = Store(f"redis://127.0.0.1:{redis.port}", clock=lambda: now)
        counted = await store.take("a", 90, 100)
        assert counted is not None
        redis.stop()
        await store.give_back("a", 80, counted)
        assert (await store.window("a")).used == 0, "no credit"
        local = await store.take("a", 90, 100)
        assert local is not None
        redis.start()
        now += RETRY_S + 1
        assert (await store.window("a")).used == 0
        await store.give_back("a", 80, local)
        assert (await store.window("a")).used == 0
        redis.stop()
        assert (await store.window("a")).used == 10

    asyncio.run(main())


@pytest.mark.parametrize(
    "uri", ["redis://x:secret@127.0.0.1:1?foo=1", "redis://secret:99999", "redis://:secret@:1", "redis://x:secret@h:y"]
)
def test_a_uri_that_can_never_work_ends_the_start(uri: str) -> None:
    with pytest.raises(SetupError, match="setting limits.storage") as caught:
        Store(uri)
    assert "secret" not in caught.value.message


@needs_redis
def test_the_start_finds_out_whether_redis_takes_what_is_counted(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    def command(*words: str) -> None:
        with socket.create_connection(("127.0.0.1", redis.port), 60) as client:
            client.sendall(" ".join(words).encode() + b"\r\n")
            assert client.recv(10).startswith(b"+OK")

    def start() -> str:
        caplog.clear()
        Store(f"redis://:secret@127.0.0.1:{redis.port}")
        assert "secret" not in caplog.text
        return caplog.text

    with pytest.raises(SetupError, match=f"127.0.0.1:{redis.port} refuses the user or the password"):
        start()
    command("CONFIG", "SET", "requirepass", "secret")
    assert start() == ""
    with socket.create_connection(("127.0.0.1", redis.port), 60) as client:
        client.sendall(b"AUTH secret\r\nCONFIG SET maxmemory 1\r\n")
        client.recv(10)
    assert f"Redis at 127.0.0.1:{redis.port} cannot be used (OutOfMemoryError)" in start()
    redis.stop()
    assert "cannot be used (ConnectionError)" in start()
