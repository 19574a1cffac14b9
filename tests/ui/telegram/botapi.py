"""Telegram's Bot API, as far as the bot needs it, over real HTTP. Strict: what it does not know it refuses, as Telegram does."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

TOKEN = "4242:the-token-of-the-tests_of-the-bot"
BOT = {"id": 4242, "is_bot": True, "first_name": "Litmus", "username": "litmusbot"}
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
MESSAGE = {"message_thread_id", "link_preview_options", "reply_parameters", "reply_markup"}
PARAMETERS = {  # of each method: those it wants, and those it may have
    "getMe": (set(), set()),
    "deleteWebhook": (set(), {"drop_pending_updates"}),
    "setMyCommands": ({"commands"}, set()),
    "getUpdates": (set(), {"offset", "timeout", "allowed_updates"}),
    "sendMessage": ({"chat_id", "text"}, MESSAGE),
    "sendMessageDraft": ({"chat_id", "draft_id"}, {"text", "message_thread_id"}),
    "editMessageText": ({"chat_id", "message_id", "text"}, {"link_preview_options", "reply_markup"}),
    "sendChatAction": ({"chat_id", "action"}, {"message_thread_id"}),
    "answerCallbackQuery": ({"callback_query_id"}, set()),
    "getFile": ({"file_id"}, set()),
}
Json = dict[str, Any]


class Refusal(Exception):
    def __init__(self, status: int, description: str, retry_after: int | None = None) -> None:
        self.status = status
        self.body = {"ok": False, "error_code": status, "description": description}
        if retry_after is not None:
            self.body["parameters"] = {"retry_after": retry_after}


@dataclass(frozen=True)
class Call:
    method: str
    parameters: Json
    answered: bool

    @property
    def chat(self) -> int:
        return int(self.parameters["chat_id"])

    @property
    def text(self) -> str:
        return self.parameters.get("text", "")


@dataclass
class BotApi:
    """`refuse(method, parameters)` may raise a `Refusal` at any call."""

    url: str = ""
    updates: list[Json] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    messages: dict[tuple[int, int], str] = field(default_factory=dict)  # by chat and id, as they stand now
    files: dict[str, bytes] = field(default_factory=dict)
    blocked: set[int] = field(default_factory=set)
    has_drafts: bool = True
    refuse: Callable[[str, Json], None] = lambda method, parameters: None
    ids: count = field(default_factory=lambda: count(1))

    # What a test does as a user

    def write(self, chat: int, text: str | None = None, user: int | None = None, **fields: Any) -> Json:
        """A message; commands and mentions are marked as Telegram marks them. Without a `user`, the chat is that user's own."""
        message = {
            "message_id": next(self.ids),
            "date": int(time.time()),
            "chat": chat_of(chat),
            "from": {"id": chat if user is None else user, "is_bot": False, "first_name": "Ann-with-a-name"},
            **({} if text is None else {"text": text, "entities": entities(text)}),
            **fields,
        }
        self.push({"message": message})
        return message

    def send_file(self, chat: int, name: str, content: bytes, **fields: Any) -> None:
        file_id = f"file-{next(self.ids)}"
        self.files[file_id] = content
        document = {"file_id": file_id, "file_unique_id": file_id, "file_name": name, "file_size": len(content)}
        self.write(chat, document=document, **fields)

    def press(self, chat: int, data: str) -> None:
        user = {"id": chat, "is_bot": False, "first_name": "Ann"}
        shown = max(message for place, message in self.messages if place == chat)
        message = {"message_id": shown, "date": int(time.time()), "chat": chat_of(chat), "from": BOT, "text": self.messages[chat, shown]}
        self.push({"callback_query": {"id": "1", "from": user, "chat_instance": "1", "data": data, "message": message}})

    def leave(self, chat: int) -> None:
        member = {"user": BOT, "status": "kicked", "until_date": 0}
        user = {"id": chat, "is_bot": False, "first_name": "Ann"}
        change = {"chat": chat_of(chat), "from": user, "date": int(time.time()), "new_chat_member": member}
        self.push({"my_chat_member": {**change, "old_chat_member": {"user": BOT, "status": "member"}}})

    def push(self, update: Json) -> None:
        self.updates.append({"update_id": next(self.ids), **update})

    # What a test sees

    def sent(self, chat: int) -> list[str]:
        """The messages of the bot in this chat, as they stand now."""
        return [text for (place, _), text in sorted(self.messages.items()) if place == chat]

    def frames(self, chat: int) -> list[str]:
        return [call.text for call in self.calls if call.method == "sendMessageDraft" and call.chat == chat]

    def of(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]

    # What Telegram does

    async def answer(self, method: str, parameters: Json, request: Request) -> Any:
        if method not in PARAMETERS or (method == "sendMessageDraft" and not self.has_drafts):
            raise Refusal(404, "Not Found")
        wanted, allowed = PARAMETERS[method]
        if missing := wanted - parameters.keys():
            raise Refusal(400, f"Bad Request: {missing} is missing")
        if unknown := parameters.keys() - wanted - allowed:
            raise Refusal(400, f"Bad Request: {unknown} is not known")
        self.refuse(method, parameters)
        if "chat_id" in parameters and int(parameters["chat_id"]) in self.blocked:
            raise Refusal(403, "Forbidden: bot was blocked by the user")
        handler = getattr(self, f"on_{method}", None)
        return True if handler is None else await handler(parameters, request)

    async def on_getMe(self, parameters: Json, request: Request) -> Json:  # noqa: N802
        return BOT

    async def on_getUpdates(self, parameters: Json, request: Request) -> list[Json]:  # noqa: N802
        end_s = time.monotonic() + float(parameters.get("timeout", 0))
        kinds, offset = json.loads(parameters.get("allowed_updates", "[]")), int(parameters.get("offset", 0))
        self.updates[:] = [update for update in self.updates if update["update_id"] >= offset]
        while not self.updates and time.monotonic() < end_s and not await request.is_disconnected():
            await asyncio.sleep(0.01)
        return [update for update in self.updates if not kinds or set(kinds) & update.keys()][:100]

    async def on_sendMessage(self, parameters: Json, request: Request) -> Json:  # noqa: N802
        chat, text = int(parameters["chat_id"]), checked(parameters["text"])
        message = next(self.ids)
        self.messages[chat, message] = text
        return {"message_id": message, "date": int(time.time()), "chat": chat_of(chat), "from": BOT, "text": text}

    async def on_sendMessageDraft(self, parameters: Json, request: Request) -> bool:  # noqa: N802
        if int(parameters["chat_id"]) < 0 or int(parameters["draft_id"]) == 0:
            raise Refusal(400, "Bad Request: TEXTDRAFT_PEER_INVALID")
        checked(parameters.get("text") or "Thinking")
        return True

    async def on_editMessageText(self, parameters: Json, request: Request) -> Json:  # noqa: N802
        place, text = (int(parameters["chat_id"]), int(parameters["message_id"])), checked(parameters["text"])
        if place not in self.messages:
            raise Refusal(400, "Bad Request: message to edit not found")
        if self.messages[place] == text:
            raise Refusal(400, "Bad Request: message is not modified: specified new message content is exactly the same")
        self.messages[place] = text
        return {"message_id": place[1], "date": int(time.time()), "chat": chat_of(place[0]), "from": BOT, "text": text}

    async def on_getFile(self, parameters: Json, request: Request) -> Json:  # noqa: N802
        file_id = parameters["file_id"]
        if len(self.files[file_id]) > 20_000_000:
            raise Refusal(400, "Bad Request: file is too big")
        return {"file_id": file_id, "file_unique_id": file_id, "file_size": len(self.files[file_id]), "file_path": f"documents/{file_id}"}


def checked(text: str) -> str:
    """As Telegram keeps it. Raises what Telegram answers to a text it does not take."""
    if not text.strip():
        raise Refusal(400, "Bad Request: message text is empty")
    if len(text.encode("utf-16-le")) // 2 > 4096:
        raise Refusal(400, "Bad Request: message is too long")
    return text.strip()


def chat_of(chat: int) -> Json:
    return {"id": chat, "type": "private" if chat > 0 else "supergroup", **({} if chat > 0 else {"title": "A group"})}


def entities(text: str) -> list[Json]:
    """Commands and mentions: words that begin with / or @. Offsets count UTF-16 units; tests write such words in ASCII, and first."""
    found, start = [], 0
    for word in text.split(" "):
        kind = {"/": "bot_command", "@": "mention"}.get(word[:1])
        if kind:
            found.append({"type": kind, "offset": start, "length": len(word)})
        start += len(word) + 1
    return found


def create_bot_api(api: BotApi) -> FastAPI:
    app = FastAPI()

    @app.post("/bot{token}/{method}")
    async def call(token: str, method: str, request: Request) -> Response:
        if token != TOKEN:
            return JSONResponse(Refusal(401, "Unauthorized").body, 401)
        if not request.headers.get("content-type", FORMS[0]).startswith(FORMS):
            return JSONResponse(Refusal(400, "Bad Request: this is no form").body, 400)
        parameters = dict(await request.form())
        try:
            body, status = {"ok": True, "result": await api.answer(method, parameters, request)}, 200
        except Refusal as refusal:
            body, status = refusal.body, refusal.status
        if method != "getUpdates":
            api.calls.append(Call(method, parameters, status == 200))
        return JSONResponse(body, status)

    @app.get("/file/bot{token}/documents/{file_id}")
    async def download(token: str, file_id: str) -> Response:
        return Response(api.files[file_id], status_code=200 if token == TOKEN else 404)

    return app
