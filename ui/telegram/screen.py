"""Where an answer is shown while it grows: as a draft in a private chat, by editing a message elsewhere.

`frame` shows a state that the next one replaces, and may be lost; `settle` sends what stays, and tries again where Telegram can not be
reached. Both raise telegram's errors, `Forbidden` among them where nobody can read it any more.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

from telegram import Message
from telegram.constants import ChatType
from telegram.error import BadRequest, EndPointNotFound, InvalidToken, NetworkError
from telegram.ext import ExtBot

FRAME_RETRIES = 1  # the least that the rate limiter takes
ATTEMPTS, PAUSE_S = 4, 1.0
NOT_MODIFIED = "not modified"
DRAFT_IDS = itertools.count(1)
Sent = TypeVar("Sent")


class Screen(Protocol):
    async def frame(self, text: str, status: str) -> None:
        """Shows the text so far. While it is blank a draft shows the status, and a blank status as Telegram's "Thinking…"."""

    async def settle(self, text: str) -> None:
        """Sends a text that does not change any more, and is not blank, in place of the frames before it."""


async def deliver(send: Callable[[], Awaitable[Sent]], pause_s: float = PAUSE_S) -> Sent:
    """Sends again after an error of the network. A message whose confirmation was lost may then come twice, which is better than never."""
    for attempt in range(1, ATTEMPTS):
        try:
            return await send()
        except BadRequest:  # the library counts it among the errors of the network
            raise
        except NetworkError:
            await asyncio.sleep(attempt * pause_s)
    return await send()


class Edits:
    """One message for each piece, edited as it grows."""

    def __init__(self, bot: ExtBot, message: Message) -> None:
        self._bot, self._message = bot, message
        self._shown: Message | None = None

    async def frame(self, text: str, status: str) -> None:
        if not text.strip():
            return
        if self._shown is None:
            self._shown = await self._message.reply_text(text)
        else:
            await self._edit(self._shown, text, FRAME_RETRIES)

    async def settle(self, text: str) -> None:
        shown, self._shown = self._shown, None
        if shown is not None and await self._settle_in(shown, text):
            return
        await deliver(partial(self._message.reply_text, text))

    async def _settle_in(self, shown: Message, text: str) -> bool:
        """False if the message was deleted meanwhile."""
        try:
            await deliver(partial(self._edit, shown, text, None))
        except BadRequest:
            return False
        return True

    async def _edit(self, shown: Message, text: str, retries: int | None) -> None:
        try:
            await self._bot.edit_message_text(text, shown.chat_id, shown.message_id, rate_limit_args=retries)
        except BadRequest as error:
            if NOT_MODIFIED not in error.message:
                raise


class Drafts:
    """A draft for each piece; edits, if Telegram refuses drafts here."""

    def __init__(self, bot: ExtBot, message: Message) -> None:
        self._bot, self._message = bot, message
        self._edits = Edits(bot, message)
        self._draft = next(DRAFT_IDS)
        self._is_refused = False

    async def frame(self, text: str, status: str) -> None:
        if self._is_refused:
            await self._edits.frame(text, status)
            return
        thread = self._message.message_thread_id if self._message.is_topic_message else None
        shown = (text if text.strip() else status) or None  # the library sends "[]" for an empty text
        try:
            await self._bot.send_message_draft(self._message.chat_id, self._draft, shown, thread, rate_limit_args=FRAME_RETRIES)
        except (BadRequest, EndPointNotFound, InvalidToken):  # the library takes a method that is not known for a token that is not
            self._is_refused = True
            await self._edits.frame(text, status)

    async def settle(self, text: str) -> None:
        self._draft = next(DRAFT_IDS)
        await self._edits.settle(text)


def screen_for(bot: ExtBot, message: Message) -> Screen:
    return Drafts(bot, message) if message.chat.type == ChatType.PRIVATE else Edits(bot, message)
