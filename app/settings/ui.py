"""The groups of settings of what calls the server over HTTP: the page and the Telegram bot."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from app.settings.group import Filled, Group

BOT_TOKEN = re.compile(r"\d+:[\w-]{4,}", re.ASCII)


class UISettings(Group):
    enabled: bool = Field(True, description="serve the Gradio page at /ui")
    server: str = Field("http://127.0.0.1:8000", description="only for `python -m ui`: URL of the server that the page talks to")
    port: int = Field(7860, ge=1024, le=65535, description="only for `python -m ui`: port of the page")
    flags: Filled | None = Field(
        None,
        description="file that keeps what visitors say about answers and verdicts, a JSON line each, with a hash of the text; nothing is "
        "kept when not set",
    )
    key: SecretStr | None = Field(
        None, description="only for `python -m ui`: a key of the server that all visitors use; without it, the page asks each for one"
    )


def _bot_token(token: SecretStr) -> SecretStr:
    """Refuses what cannot be a token, without quoting it."""
    if not BOT_TOKEN.fullmatch(token.get_secret_value()):
        raise ValueError("this is not a token as @BotFather gives them: digits, a colon, and about 35 letters, digits, - and _")
    return token


class TelegramSettings(Group):
    """Only for `python -m ui.telegram`."""

    token: Annotated[SecretStr, AfterValidator(_bot_token)] | None = Field(
        None, description="the bot's token, from @BotFather; in the environment or .env only, never on the command line"
    )
    server: str = Field("http://127.0.0.1:8000", pattern=r"^https?://\S+$", description="URL of the server that the bot asks")
    key: SecretStr | None = Field(None, description="a key of the server, for the bot alone; in the environment or .env only")
    api: str = Field(
        "https://api.telegram.org", pattern=r"^https?://\S+[^/]$", description="URL of the Bot API, if it is a server of your own"
    )
    model: str | None = Field(None, description="name of the served model that scores and chats; the server's default one when not set")
    users: tuple[int, ...] = Field((), description="ids of the Telegram users whom the bot answers, such as [12345]; everybody when empty")
    messages_per_minute: int = Field(10, ge=1, description="messages of one user that are answered in a minute")
    requests_per_user: int = Field(3, ge=1, description="messages of one user that wait for their answer at once")
    requests: int = Field(16, ge=1, description="requests of the bot that the server works on at once")
    max_waiting: int = Field(
        200, ge=1, description="messages of all users that wait for their answer; further ones are refused in a sentence"
    )
    max_tokens: int = Field(512, ge=1, description="tokens of an answer; after them the bot says that it was cut")
    max_file_bytes: int = Field(500_000, ge=1, le=20_000_000, description="limit of a .txt file")
    conversations: int = Field(1000, ge=1, description="chats whose conversation is kept in memory; the one that rested longest is dropped")
    conversation_messages: int = Field(40, ge=2, description="messages of a conversation that are kept; the oldest are dropped")
    conversation_chars: int = Field(
        20_000, ge=1000, description="characters of a conversation that are kept; the oldest messages are dropped"
    )
    conversation_minutes: int = Field(60, ge=1, le=10_080, description="minutes without a message after which a conversation is deleted")
    drain_s: int = Field(20, ge=0, le=3600, description="seconds that answers in flight have to finish after SIGTERM")
