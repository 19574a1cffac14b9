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

from serve.admission.store import RETRY_S, Store, Window

HAS_REDIS = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(HAS_REDIS is None, reason="redis-server is not installed (apt-get install redis-server)")


def test_a_limit_holds_and_fades_over_the_following_minute(clock: SimpleNamespace) -> None:
    async def main() -> None:
        store = Store("memory://")
        assert [await store.take("a", 1, 3) for _ in range(4)] == [True, True, True, False]
        assert await store.take("b", 3, 3)
        clock.now += 59
        assert not await store.take("a", 1, 3)
        clock.now += 1 + 21  # 39/60 of 3 still count
        assert (await store.window("a")).used == 1
        assert [await store.take("a", 1, 3) for _ in range(3)] == [True, True, False]
        clock.now += 120
        assert (await store.window("a")).used == 0

    asyncio.run(main())


def test_costs_are_weighed_given_back_and_charged_beyond_the_limit(clock: SimpleNamespace) -> None:
    async def main() -> None:
        store = Store("memory://")
        assert [await store.take("a", 900, 1000), await store.take("a", 200, 1000), await store.take("a", 100, 1000)] == [True, False, True]
        await store.add("a", -500)
        assert (await store.window("a")).used == 500
        await store.add("a", 2000)
        assert (await store.window("a")).used == 2500
        assert not await store.take("a", 1, 1000)
        clock.now += 60 + 37  # 23/60 of 2500 are 958
        assert [await store.take("a", 50, 1000), await store.take("a", 40, 1000)] == [False, True]

    asyncio.run(main())


@pytest.mark.parametrize("used", [(3, 0, 0), (5, 0, 0), (0, 3, 70), (2, 2, 90), (4, 1, 75), (0, 900, 61)])
@pytest.mark.parametrize("cost", [1, 2])
def test_the_wait_is_as_long_as_a_client_has_to_wait(clock: SimpleNamespace, used: tuple[int, int, int], cost: int) -> None:
    """What was used in the first minute, what in the second, and when the client asks."""
    first, second, at_s = used
    limit, began = 3, clock.now

    async def main() -> None:
        store = Store("memory://")
        await store.add("a", first)
        clock.now = began + max(at_s, 60 * bool(second))
        await store.add("a", second)
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
    monkeypatch.setattr("serve.admission.store.REDIS_TIMEOUT_S", 60)
    redis = Redis(tmp_path)
    redis.start()
    yield redis
    redis.stop()


@needs_redis
def test_two_servers_share_what_redis_counts(redis: Redis) -> None:
    async def main() -> None:
        one, two = (Store(f"redis://127.0.0.1:{redis.port}") for _ in range(2))
        assert [await store.take("a", 1, 3) for store in (one, two, one, two)] == [True, True, True, False]
        await two.add("a", 7)
        assert (await one.window("a")).used == 10
        await one.add("a", -9)
        assert await two.take("a", 2, 3)
        window = await one.window("a")
        assert (window.used, window.previous) == (3, 0) and 110 < window.current_s <= 120

    asyncio.run(main())


@needs_redis
def test_without_redis_each_server_counts_by_itself_until_it_is_back(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0

    async def main() -> None:
        nonlocal now
        store = Store(f"redis://127.0.0.1:{redis.port}", clock=lambda: now)
        assert [await store.take("a", 1, 2) for _ in range(3)] == [True, True, False]
        redis.stop()
        began = time.monotonic()
        assert [await store.take("a", 1, 2) for _ in range(3)] == [True, True, False]
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
        "Redis does not answer (StorageError)",
        "Redis answers again",
    ]
    assert str(redis.port) not in caplog.text  # nor any other part of the URI, which may hold a password
