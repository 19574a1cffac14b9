"""The bot between a fake Telegram and a fake Litmus server, both over real HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import Any

import pytest
from telegram.ext import Application

from app.settings import TelegramSettings
from tests.ui.fakelitmus import running
from tests.ui.telegram.botapi import TOKEN, BotApi, create_bot_api
from tests.ui.telegram.litmus import Litmus, create_litmus
from ui.telegram.answers import Pace
from ui.telegram.bot import UPDATES, create_application
from ui.telegram.commands import MODE_SET

ANN, GROUP = 7, -100
TEXT = "A fox met a crow."
QUICK = Pace(0.02, 0.02, 10_000, 10_000)


@dataclass
class World:
    telegram: BotApi
    litmus: Litmus

    def settings(self, **changes: Any) -> TelegramSettings:
        places = {"token": TOKEN, "server": self.litmus.url, "api": self.telegram.url}
        limits = {"messages_per_minute": 1000, "requests_per_user": 100, "max_waiting": 1000, "drain_s": 1}
        return TelegramSettings(**{**places, **limits, **changes})  # type: ignore[arg-type]

    @asynccontextmanager
    async def bot(self, pace: Pace = QUICK, **changes: Any) -> AsyncIterator[Application]:
        """The steps of `run_polling`, without its signals."""
        application = create_application(self.settings(**changes), pace)
        async with application:
            await application.post_init(application)
            await application.updater.start_polling(poll_interval=0, allowed_updates=UPDATES)
            await application.start()
            try:
                yield application
            finally:
                await application.updater.stop()
                await application.stop()
                await application.post_stop(application)

    async def replies(self, chat: int, number: int) -> list[str]:
        """The messages of the bot in this chat, once there are so many."""
        await until(lambda: len(self.telegram.sent(chat)) >= number)
        return self.telegram.sent(chat)


async def until(condition: Callable[[], object], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def reset(state: Any) -> None:
    fresh = type(state)()
    for each in fields(state):
        if each.name != "url":
            setattr(state, each.name, getattr(fresh, each.name))


@pytest.fixture(scope="module")
def servers() -> Iterator[World]:
    world = World(BotApi(), Litmus())
    with running(create_bot_api(world.telegram)) as telegram, running(create_litmus(world.litmus)) as litmus:
        world.telegram.url, world.litmus.url = telegram, litmus
        yield world


@pytest.fixture
def world(servers: World) -> World:
    reset(servers.telegram)
    reset(servers.litmus)
    return servers


async def enter_chat_mode(world: World, *users: int) -> None:
    for user in users:
        world.telegram.write(user, "/mode chat")
    for user in users:
        assert await world.replies(user, 1) == [MODE_SET["chat"]]
