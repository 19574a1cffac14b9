"""Writes the answers: the verdict on a text, and a turn of a conversation. Whatever fails becomes a sentence for the user."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from telegram import Document, Message
from telegram.constants import ChatAction
from telegram.error import Forbidden, TelegramError
from telegram.ext import ExtBot

from app.settings import TelegramSettings
from ui.client import Chunk, Client, ServerError
from ui.telegram import failures
from ui.telegram.chats import Chats, Turn
from ui.telegram.document import Unreadable, check_name, check_size, decode
from ui.telegram.messages import Source, is_private
from ui.telegram.pieces import clean, split
from ui.telegram.screen import deliver, screen_for
from ui.telegram.verdict import verdict_text
from ui.telegram.work import End, Job, Work
from ui.telegram.writer import Writer

TYPING_S = 4.5  # Telegram shows "typing" for 5 s
EMPTY = "The model gave an empty answer."
LENGTH = "(The answer was cut here, as it has {} tokens. Say “go on” to hear the rest.)"
CUT = "The bot is being restarted and could not finish this answer. Please ask again in a minute."
STOPPED = "…"
LOST_FILE = "Telegram did not hand out this file. Please send it again."
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between two states of an answer that grows, and how many messages Telegram takes: in a second, in a group in a minute."""

    private_s: float = 1.2
    group_s: float = 3.5
    per_second: int = 30
    group_per_minute: int = 20

    def of(self, message: Message) -> float:
        return self.private_s if is_private(message) else self.group_s


@dataclass(slots=True)
class Growing:
    """The answer so far."""

    text: str = ""
    finish_reason: str | None = None
    status: str = ""  # shown while there is no text

    def add(self, chunk: Chunk) -> None:
        self.text += chunk.text
        self.finish_reason = chunk.finish_reason or self.finish_reason
        if (queue := chunk.queue) is not None:
            self.status = f"Waiting: place {queue.position} in the queue{f', about {queue.wait_s} s' if queue.wait_s else ''}"
        elif chunk.pause is not None:
            self.status = chunk.pause.words


@dataclass(frozen=True, slots=True)
class Answers:
    settings: TelegramSettings
    client: Client
    chats: Chats
    work: Work
    pace: Pace = field(default_factory=Pace)

    async def score(self, job: Job, message: Message, source: Source) -> None:
        try:
            async with _typing(message):
                text = await self._text(source)
                async with self.work.server:
                    result = await self.client.score(text, None, self.settings.model)
            reply = verdict_text(result, text, source.hint)
        except (ServerError, Unreadable) as error:
            reply = _sentence(error)
        except asyncio.CancelledError:
            if job.end is not End.CUT:
                raise
            job.go_on()
            reply = CUT
        job.is_closing = True
        await _send(message, clean(reply))

    async def chat(self, job: Job, message: Message, source: Source, bot: ExtBot) -> None:
        async with Writer(screen_for(bot, message), self.pace.of(message), lambda: job.cancel(End.LEFT)) as writer:
            growing = Growing()
            note = await self._answer(job, message.chat_id, source, growing, writer)
            job.is_closing = True
            text = clean(growing.text)
            await writer.finish("\n\n".join(part for part in (text, note) if part.strip()) or EMPTY)

    async def _answer(self, job: Job, chat: int, source: Source, growing: Growing, writer: Writer) -> str:
        """Lets the answer grow, remembers it, and returns what is to be said below it: why it is not complete, or nothing."""
        note, question = "", ""
        try:
            question = await self._question(source)
            async with self.work.server:
                await self._stream(self.chats.turns(chat, time.monotonic()), question, growing, writer)
            note = LENGTH.format(self.settings.max_tokens) if growing.finish_reason == "length" else ""
        except (ServerError, Unreadable) as error:
            note = _sentence(error)
        except asyncio.CancelledError:
            if job.end not in (End.STOPPED, End.CUT):
                raise
            job.go_on()
            note = STOPPED if job.end is End.STOPPED else CUT
        if growing.text.strip():
            self.chats.add(chat, question, growing.text, time.monotonic())
        return note

    async def _stream(self, turns: Sequence[Turn], question: str, growing: Growing, writer: Writer) -> None:
        """Asks again with fewer of the earliest turns if the conversation does not fit into the model's context."""
        model = {} if self.settings.model is None else {"model": self.settings.model}
        messages = [*turns, {"role": "user", "content": question}]
        body = {**model, "messages": messages, "max_tokens": self.settings.max_tokens}
        try:
            async with aclosing(self.client.chat(body)) as chunks:
                async for chunk in chunks:
                    growing.add(chunk)
                    writer.show(clean(growing.text), growing.status)
        except ServerError as error:
            if not turns or growing.text or not failures.is_too_long(error):
                raise
            await self._stream(turns[max(len(turns) // 4, 1) * 2 :], question, growing, writer)

    async def _question(self, source: Source) -> str:
        if source.document is None:
            return clean(source.text)
        return "\n\n".join(part for part in (source.text.strip(), await self._text(source)) if part)

    async def _text(self, source: Source) -> str:
        return clean(source.text if source.document is None else await self._read(source.document))

    async def _read(self, document: Document) -> str:
        limit = self.settings.max_file_bytes
        check_name(document.file_name)
        check_size(document.file_size or 0, limit)
        try:
            file = await document.get_file()
            check_size(file.file_size or 0, limit)
            content = bytes(await file.download_as_bytearray())
        except TelegramError:
            raise Unreadable(LOST_FILE) from None
        check_size(len(content), limit)
        return decode(content)


def _sentence(error: ServerError | Unreadable) -> str:
    if isinstance(error, Unreadable):
        return str(error)
    if failures.is_shut_out(error):
        logger.error("the server does not let the bot in: give it a key with LITMUS_TELEGRAM__KEY")
    return failures.sentence(error)


@asynccontextmanager
async def _typing(message: Message) -> AsyncIterator[None]:
    """Says that the bot is at work: in a private chat all the while, in a group once, where such actions count as messages."""
    task = asyncio.create_task(_say_typing(message))
    try:
        yield
    finally:
        task.cancel()


async def _say_typing(message: Message) -> None:
    with suppress(TelegramError):
        await message.reply_chat_action(ChatAction.TYPING)
        while is_private(message):
            await asyncio.sleep(TYPING_S)
            await message.reply_chat_action(ChatAction.TYPING)


async def say(message: Message, text: str) -> None:
    """A sentence of the bot's own. Nobody may be there to read it."""
    with suppress(Forbidden):
        await _send(message, text)


async def _send(message: Message, text: str) -> None:
    for piece in split(text):
        await deliver(partial(message.reply_text, piece))
