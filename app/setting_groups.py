"""The groups of settings that say how the server deals with those who call it: queue, limits, security, retention, the page, the bot."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

BOT_TOKEN = re.compile(r"\d+:[\w-]{4,}", re.ASCII)
BROWSER_ORIGIN = re.compile(r"\*|https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?")
HOST_NAME = re.compile(r"[a-z0-9.-]+|\[[0-9a-f:]+\]")


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class QueueSettings(Group):
    max_waiting: int = Field(256, ge=1, description="requests that may wait for a slot; more are refused with 429")
    resume_wait_s: float = Field(
        120, ge=0, description="seconds that a request whose model's process died waits for another process, which goes on with it"
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        description="deadline of a request that names none by timeout_s or X-Request-Timeout: it fails with 408; none when not set",
    )
    max_waiting_tokens: int = Field(
        1_000_000, ge=1024, description="tokens of the prompts and texts that may wait for a slot; more are refused with 429"
    )


class LimitSettings(Group):
    requests_per_minute: int | None = Field(
        None, ge=1, description="requests of one client, which is a key or an address, in a minute; no limit when not set"
    )
    tokens_per_minute: int | None = Field(
        None, ge=1, description="tokens of prompts and answers of one client in a minute; no limit when not set"
    )
    concurrent_requests: int | None = Field(
        None, ge=1, description="requests of one client that this server works on at once; no limit when not set"
    )
    storage: str = Field(
        "memory://",
        pattern=r"^(memory://|rediss?://\S+)$",
        description="where the requests and tokens of the last minute are counted: memory://, or redis://host:6379 for several servers",
    )

    @property
    def are_set(self) -> bool:
        return any(limit is not None for limit in (self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests))


def _origin(text: str) -> str:
    """Accepts an origin as browsers send it; any other text could never match."""
    if not BROWSER_ORIGIN.fullmatch(text):
        raise ValueError(
            f"{text!r} is not an origin: write scheme and host in lower case, such as https://example.org or http://localhost:3000, "
            "and nothing after them"
        )
    return text


def _host(text: str) -> str:
    """Accepts a host name, or an IP address, as it stands in a URL but without a port."""
    if not HOST_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a host name: write it in lower case and without a port, such as litmus.example.org")
    return text


class SecuritySettings(Group):
    cors_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        (), description="origins whose web pages may call the API, such as https://example.org; * allows all"
    )
    banned_users: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="values of the request field `user` that are refused with 403"
    )
    keys_file: str | None = Field(
        None,
        description="file with one key a line, written by `python -m serve.keys new`; with it, or with keys, every request needs a key",
    )
    keys: tuple[str, ...] = Field((), repr=False, description="further keys: lines as in the keys file")
    bans_file: str | None = Field(None, description="YAML file of banned users, banned keys and blocked content; a change is noticed")
    hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = Field(
        (), description="further host names under which browsers reach this server, such as litmus.example.org behind a proxy"
    )

    model_paths: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        None,
        description="what POST /admin/models may load: folders with all that is in them; hub: any hub name; cache: hub names that are in "
        "the hub's cache; when not set, the folders of the models in the settings, and cache",
    )

    @property
    def needs_keys(self) -> bool:
        return bool(self.keys or self.keys_file is not None)


class RetentionSettings(Group):
    folder: str | None = Field(None, description="keep requests and their answers in files in this folder; nothing is kept when not set")
    days: int = Field(30, ge=1, le=3650, description="days after which what was kept is deleted")


class UISettings(Group):
    enabled: bool = Field(True, description="serve the Gradio page at /ui")
    server: str = Field("http://127.0.0.1:8000", description="only for `python -m ui`: URL of the server that the page talks to")
    port: int = Field(7860, ge=1024, le=65535, description="only for `python -m ui`: port of the page")
    flags: str | None = Field(
        None,
        description="file that keeps what visitors say about a wrong verdict, a JSON line each, with a hash of the text; nothing is kept "
        "when not set",
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
