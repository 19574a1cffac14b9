"""Builds the bot: its parts, the library's application around them, and what is done at its start and end."""

import asyncio
import logging
import sys
import time
from typing import Any

from telegram import LinkPreviewOptions, Update
from telegram.error import Conflict, Forbidden, InvalidToken, NetworkError, RetryAfter, TelegramError
from telegram.ext import (
    AIORateLimiter,
    Application,
    ApplicationBuilder,
    CallbackQueryHandler,
    ChatMemberHandler,
    CommandHandler,
    ContextTypes,
    Defaults,
    MessageHandler,
    filters,
)
from telegram.request import HTTPXRequest

from app.errors import SetupError
from app.settings import TelegramSettings
from ui.client import Client
from ui.telegram.allowance import Allowance
from ui.telegram.answers import Answers, Pace, say
from ui.telegram.chats import Bounds, Chats
from ui.telegram.commands import COMMANDS, Commands
from ui.telegram.screen import deliver
from ui.telegram.work import Work

TOKEN_REFUSED = frozenset({401, 404})
UPDATES = ("message", "callback_query", "my_chat_member")
RETRIES = 5  # after a 429, as long as Telegram says
POOL_TIMEOUT_S = 10.0
SWEEP_S = 60.0
BROKEN = "Something went wrong in the bot, and this message was not answered. Please try again."
logger = logging.getLogger(__name__)


def create_application(settings: TelegramSettings, pace: Pace | None = None) -> Application:
    """Raises `SetupError` without a token. Nothing is sent before it is started."""
    if settings.token is None:
        raise SetupError(
            "setting telegram.token: is missing; make a bot with @BotFather and set LITMUS_TELEGRAM__TOKEN to the token it gives"
        )
    bounds = Bounds(
        settings.conversations, settings.conversation_messages, settings.conversation_chars, 60.0 * settings.conversation_minutes
    )
    work = Work(settings.requests, settings.requests_per_user, settings.max_waiting)
    key = settings.key.get_secret_value() if settings.key else None
    answers = Answers(settings, Client(settings.server, key), Chats(bounds), work, pace or Pace())
    application = _library(settings, settings.token.get_secret_value(), answers)
    _add_handlers(application, Commands(answers, Allowance(settings.messages_per_minute), application))
    return application


def _library(settings: TelegramSettings, token: str, answers: Answers) -> Application:
    """Links in an answer are not fetched for a preview: a model may write any. Updates are handled at once, answers are tasks of `Work`."""

    async def begin(application: Application) -> None:
        await deliver(lambda: application.bot.set_my_commands(COMMANDS))
        sweeper.append(asyncio.create_task(_sweep(answers.chats)))
        logger.info("the bot is ready and asks %s", settings.server)

    async def end(application: Application) -> None:
        for task in sweeper:
            task.cancel()
        cut = await answers.work.drain(settings.drain_s)
        logger.info("the bot ends; answers that were cut: %d", cut)

    async def end_rest(application: Application) -> None:
        await _cancel_rest()
        if updates.refused:
            raise InvalidToken

    updates = Updates(connection_pool_size=1)
    sweeper: list[asyncio.Task[None]] = []
    defaults = Defaults(link_preview_options=LinkPreviewOptions(is_disabled=True), allow_sending_without_reply=True)
    builder = ApplicationBuilder().token(token).base_url(f"{settings.api}/bot").base_file_url(f"{settings.api}/file/bot")
    limiter = AIORateLimiter(answers.pace.per_second, 1, answers.pace.group_per_minute, 60, max_retries=RETRIES)
    limited = builder.rate_limiter(limiter).defaults(defaults).concurrent_updates(True)
    return (
        limited.pool_timeout(POOL_TIMEOUT_S)
        .get_updates_request(updates)
        .job_queue(None)
        .post_init(begin)
        .post_stop(end)
        .post_shutdown(end_rest)
        .build()
    )


class Updates(HTTPXRequest):
    """Asks for updates. Where Telegram refuses the token it ends the program as SIGTERM does, and `run_polling` raises `InvalidToken`: the
    library only stops asking, and the bot would stay and hear nobody.
    """

    refused = False

    async def do_request(self, *arguments: Any, **options: Any) -> tuple[int, bytes]:
        status, content = await super().do_request(*arguments, **options)
        if status in TOKEN_REFUSED and not self.refused:
            self.refused = True
            asyncio.get_running_loop().call_soon(sys.exit)  # as the library does at SIGTERM
            await asyncio.Event().wait()  # until it cancels this
        return status, content


def _add_handlers(application: Application, commands: Commands) -> None:
    for name in ("start", "help", "privacy"):
        application.add_handler(CommandHandler(name, commands.on(commands.words(name))))
    for handler in (commands.mode, commands.score, commands.stop, commands.forget):
        application.add_handler(CommandHandler(handler.__name__, commands.on(handler)))
    application.add_handler(MessageHandler(filters.COMMAND, commands.on(commands.unknown)))
    application.add_handler(MessageHandler(~filters.StatusUpdate.ALL, commands.on(commands.text)))
    application.add_handler(CallbackQueryHandler(commands.button))
    application.add_handler(ChatMemberHandler(commands.member, ChatMemberHandler.MY_CHAT_MEMBER))
    application.add_error_handler(_on_error)


async def _on_error(update: object, context: ContextTypes.DEFAULT_TYPE) -> None:
    """Logs the kind of the error alone, as its words may quote a message; tells the user, unless Telegram itself is what failed."""
    error = context.error
    if isinstance(error, Forbidden):
        logger.info("a chat cannot be written to any more")
    elif isinstance(error, Conflict):
        logger.error("another program asks for the updates of this bot: only one may run with a token")
    elif isinstance(error, NetworkError | RetryAfter):
        logger.warning("Telegram failed or asked for patience (%s); the bot goes on by itself", type(error).__name__)
    else:
        logger.error("a message could not be answered", exc_info=error)
        if isinstance(update, Update) and update.effective_message is not None and not isinstance(error, TelegramError):
            await say(update.effective_message, BROKEN)


async def _cancel_rest() -> None:
    """The library leaves its last request for updates to itself: it must end before the event loop does."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


async def _sweep(chats: Chats) -> None:
    """Old conversations are deleted also if nobody writes any more."""
    while True:
        await asyncio.sleep(SWEEP_S)
        chats.expire(time.monotonic())
