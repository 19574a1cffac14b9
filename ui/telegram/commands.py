"""What a user can say to the bot: the commands, a text, a file, the buttons of /mode; and that the bot was removed from a chat."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telegram import BotCommand, CallbackQuery, InlineKeyboardButton, InlineKeyboardMarkup, Message, Update, User
from telegram.constants import ChatMemberStatus
from telegram.error import BadRequest, Forbidden
from telegram.ext import Application, ContextTypes

from ui.telegram.allowance import Allowance
from ui.telegram.answers import CUT, Answers, say
from ui.telegram.chats import MODES, Mode
from ui.telegram.messages import Source, is_private, replied, source_for
from ui.telegram.work import Busy, End, Job

COMMANDS = (
    BotCommand("score", "score a text, or the message you reply to"),
    BotCommand("mode", "score texts, or chat with the model"),
    BotCommand("stop", "stop the answer that is being written"),
    BotCommand("forget", "delete our conversation"),
    BotCommand("privacy", "what becomes of your texts"),
    BotCommand("help", "what I can do"),
)
WORDS = Path(__file__).with_name("words")
NOTHING = "Send me a text or a .txt file. Pictures, voice messages and other files I cannot read."
HOW_TO_SCORE = "Reply with /score to the message that I am to score, or write the text behind the command."
MODE_SET: dict[Mode, str] = {
    "score": "I score texts: send me one, or a .txt file, and I answer with a verdict.",
    "chat": "I chat: whatever you send goes to the model, which answers. /score still scores a text, /forget begins anew.",
}
BUTTONS = InlineKeyboardMarkup([[InlineKeyboardButton(mode, callback_data=f"mode:{mode}") for mode in MODES]])
LATE_S = 600  # a message that has waited so long while the bot was down is not answered any more
Context = ContextTypes.DEFAULT_TYPE
Handler = Callable[[Message, User, Context], Awaitable[None]]
Callback = Callable[[Update, Context], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Commands:
    answers: Answers
    allowance: Allowance
    application: Application

    def on(self, handler: Handler) -> Callback:
        """As the library calls it. A message that nobody wrote, or that came long ago, is left alone."""

        async def handle(update: Update, context: Context) -> None:
            message, user = update.effective_message, update.effective_user
            if message is None or user is None or (user.is_bot and message.sender_chat is None):
                return
            if time.time() - message.date.timestamp() < LATE_S:
                await handler(message, user, context)

        return handle

    def words(self, name: str) -> Handler:
        """A command that is answered with a file of words."""
        text = (WORDS / f"{name}.txt").read_text(encoding="utf-8").format(**self.answers.settings.model_dump()).strip()

        async def answer(message: Message, user: User, context: Context) -> None:
            if await self._admits(message, user):
                await say(message, text)

        return answer

    async def mode(self, message: Message, user: User, context: Context) -> None:
        if not await self._admits(message, user):
            return
        wanted = next((mode for mode in MODES if context.args and context.args[0].lower() == mode), None)
        if wanted is not None:
            self.answers.chats.set_mode(message.chat_id, wanted)
            await say(message, MODE_SET[wanted])
        else:
            now = self.answers.chats.mode(message.chat_id)
            await message.reply_text(f"Now: {MODE_SET[now]}\n\nWhat shall I do with what you send?", reply_markup=BUTTONS)

    async def button(self, update: Update, context: Context) -> None:
        """A button of /mode."""
        query, user = update.callback_query, update.effective_user
        if query is None or user is None or not isinstance(query.message, Message):
            return
        wanted = next((mode for mode in MODES if query.data == f"mode:{mode}"), None)
        if wanted is not None and self._knows(user) and (await self.allowance.take(user.id)).is_allowed:
            self.answers.chats.set_mode(query.message.chat_id, wanted)
            await _replace(query, MODE_SET[wanted])
        await query.answer()

    async def score(self, message: Message, user: User, context: Context) -> None:
        if not await self._admits(message, user):
            return
        words = (message.text or message.caption or "").split(maxsplit=1)
        source = Source(words[1]) if len(words) > 1 else replied(message)
        if source is None:
            await say(message, HOW_TO_SCORE)
        else:
            await self._begin(message, user, lambda job: self.answers.score(job, message, source))

    async def text(self, message: Message, user: User, context: Context) -> None:
        """Whatever is no command."""
        source = source_for(message, context.bot.bot)
        if source is None or not await self._admits(message, user):
            return
        if source.is_empty:
            await say(message, NOTHING)
        elif self.answers.chats.mode(message.chat_id) == "chat":
            await self._begin(message, user, lambda job: self.answers.chat(job, message, source, context.bot))
        else:
            await self._begin(message, user, lambda job: self.answers.score(job, message, source))

    async def unknown(self, message: Message, user: User, context: Context) -> None:
        """In a group the command may be another bot's."""
        if is_private(message) and await self._admits(message, user):
            await say(message, "I do not know this command. /help tells what I can do.")

    async def stop(self, message: Message, user: User, context: Context) -> None:
        """Heard whatever the limits. In a group it stops the answers to the one who says so."""
        if not self._knows(user):
            return
        count = await self._stop(message, user)
        if await self._admits(message, user):
            await say(message, "Stopped." if count else "There is nothing to stop.")

    async def forget(self, message: Message, user: User, context: Context) -> None:
        if not self._knows(user):
            return
        await self._stop(message, user)
        had_one = self.answers.chats.forget(message.chat_id)
        if await self._admits(message, user):
            await say(message, "Our conversation is deleted." if had_one else "There is no conversation that I remember.")

    async def member(self, update: Update, context: Context) -> None:
        """The bot was blocked by a user, or removed from a group."""
        change = update.my_chat_member
        if change is not None and change.new_chat_member.status in {ChatMemberStatus.LEFT, ChatMemberStatus.BANNED}:
            await self.answers.work.stop(change.chat.id, None, End.LEFT)
            self.answers.chats.leave(change.chat.id)

    async def _stop(self, message: Message, user: User) -> int:
        return await self.answers.work.stop(message.chat_id, None if is_private(message) else user.id, End.STOPPED)

    def _knows(self, user: User) -> bool:
        return not self.answers.settings.users or user.id in self.answers.settings.users

    async def _admits(self, message: Message, user: User) -> bool:
        """Counts the message. If it is not to be answered, says why, but not in answer to a flood, nor to strangers in a group."""
        verdict = await self.allowance.take(user.id)
        if not verdict.is_allowed:
            if verdict.refusal is not None:
                await say(message, verdict.refusal)
            return False
        if self._knows(user):
            return True
        if is_private(message):
            await say(message, f"This bot answers only the people whom its owner named. Your user id, should you ask for that: {user.id}")
        return False

    async def _begin(self, message: Message, user: User, write: Callable[[Job], Awaitable[None]]) -> None:
        async def run(job: Job) -> None:
            try:
                await write(job)
            except Forbidden:
                self.answers.chats.leave(job.chat)
            except asyncio.CancelledError:
                if job.end is End.LEFT:
                    self.answers.chats.leave(job.chat)
                raise

        try:
            task = self.answers.work.begin(message.chat_id, user.id, run, lambda: say(message, CUT))
        except Busy as busy:
            await say(message, str(busy))
        else:
            task.add_done_callback(lambda done: self._report(done, message))

    def _report(self, task: asyncio.Task[None], message: Message) -> None:
        """An answer failed in a way that nobody foresaw: the error handler logs it and tells the user."""
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self.application.create_task(self.application.process_error(Update(0, message=message), error))


async def _replace(query: CallbackQuery, text: str) -> Any:
    """Writes into the message with the buttons. It has this text already if the same button was pressed twice."""
    try:
        return await query.edit_message_text(text, reply_markup=BUTTONS)
    except BadRequest:
        return None
