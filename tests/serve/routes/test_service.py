"""Banned users, and that no work is started for a client that has left."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes import FACTS
from fastapi import Request

from app.errors import Forbidden, NotReady
from app.settings import QueueSettings
from serve.routes.service import Service
from serve.workers.router import Router


@pytest.fixture
def service() -> Service:
    return Service(Router([FACTS.name], QueueSettings(max_waiting=1)), {}, ThreadPoolExecutor(1), frozenset({"mallory"}))


def test_a_banned_user_is_refused_and_nobody_else(service: Service) -> None:
    for user in (None, "", "alice", "Mallory"):
        service.check_user(user, "user")
    with pytest.raises(Forbidden) as refused:
        service.check_user("mallory", "user")
    error = refused.value
    assert (error.status, error.type, error.code, error.param) == (403, "permission_error", "user_banned", "user")


def staying() -> Request:
    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        return {}

    return Request({"type": "http"}, receive)


def test_a_queued_schema_is_not_checked_after_its_client_left(service: Service) -> None:
    checked, hold = [], threading.Event()

    async def leave() -> None:
        gone = asyncio.Event()

        async def receive() -> dict[str, str]:
            await gone.wait()
            return {"type": "http.disconnect"}

        first = asyncio.ensure_future(service.run_in_schema_pool(staying(), hold.wait))
        waiting = asyncio.ensure_future(service.run_in_schema_pool(Request({"type": "http"}, receive), checked.append, "theirs"))
        await asyncio.sleep(0.05)
        gone.set()
        with pytest.raises(NotReady):
            await waiting
        hold.set()
        await first
        await service.run_in_schema_pool(staying(), checked.append, "ours")

    asyncio.run(leave())
    assert checked == ["ours"]
