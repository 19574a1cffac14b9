"""A fake OpenAI-compatible server that answers after known delays and records with its own clock when it did what.

`perf_counter` is shared by all processes of a machine, so these times can be compared with those of a client on the same machine.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

INCOMPLETE = {"truncated", "cut"}  # behaviours that omit the end of a stream


@dataclass
class ServedChat:
    """One chat that the server answered: when the request was read, when each delta was sent, and when the response ended."""

    id: str
    behaviour: str
    body: dict[str, Any]
    received_s: float
    sent_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0

    @property
    def ttft_ms(self) -> float:
        return 1000 * (self.sent_s[0] - self.received_s)

    @property
    def e2e_ms(self) -> float:
        return 1000 * (self.ended_s - self.received_s)

    @property
    def gaps_ms(self) -> list[float]:
        return [1000 * (later - earlier) for earlier, later in zip(self.sent_s, self.sent_s[1:], strict=False)]


@dataclass
class TimedServer:
    """The delays of the server and what it recorded.

    `behaviour_of` maps the number of a chat (the probe's is 0) to: ok, busy (429), truncated (no end of the stream), cut (within an HTTP
    chunk), wrong (finish_reason length with too few tokens), mute (no answer). `lacks` names missing features: usage, done, score, models,
    chunks. `pages` are further responses, by route.
    """

    ttft_s: float = 0.1
    gap_s: float = 0.02
    deltas: int = 5
    tokens: int = 9
    behaviour_of: Callable[[int], str] = lambda number: "ok"
    lacks: frozenset[str] = frozenset()
    pages: dict[str, Any] = field(default_factory=dict)
    retry_after: str = "1"
    served: list[ServedChat] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    stalls: list[tuple[float, float]] = field(default_factory=list)
    url: str = ""

    def stall(self, seconds: float) -> None:
        """Blocks the whole server, its socket included."""
        begin_s = time.perf_counter()
        time.sleep(seconds)
        self.stalls.append((begin_s, time.perf_counter()))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, route, _ = head.split(" ", 2)
        size = next((int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0)
        body = json.loads(await reader.readexactly(size)) if size else {}
        try:
            if (method, route) == ("POST", "/v1/chat/completions"):
                await self.chat(writer, body)
            else:
                await self.answer_other(writer, method, route)
            await writer.drain()
        except ConnectionError:
            pass  # the client left
        finally:
            writer.close()

    async def chat(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        number = len(self.served)
        chat = ServedChat(f"chat-{number}", self.behaviour_of(number), body, time.perf_counter())
        self.served.append(chat)
        if chat.behaviour == "busy":
            answer(writer, 429, {"error": {"code": "full"}}, f"Retry-After: {self.retry_after}\r\n")
            return
        chunked = "chunks" not in self.lacks
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n")
        send = (
            (lambda text: writer.write(f"{len(text):x}\r\n{text}\r\n".encode())) if chunked else (lambda text: writer.write(text.encode()))
        )
        if chat.behaviour == "mute":
            await asyncio.sleep(3600)
        send(event(chat.id, {"role": "assistant", "content": ""}))
        for index in range(self.deltas):
            await asyncio.sleep(chat.received_s + self.ttft_s + index * self.gap_s - time.perf_counter())
            send(event(chat.id, {"content": "word "}))
            chat.sent_s.append(time.perf_counter())
            await writer.drain()
        self.end(writer, send, chat)

    def end(self, writer: asyncio.StreamWriter, send: Callable[[str], None], chat: ServedChat) -> None:
        if chat.behaviour == "cut":
            writer.write(b"ffff\r\nhalf a chunk")
        if chat.behaviour not in INCOMPLETE:
            send(event(chat.id, {}, "length" if chat.behaviour == "wrong" else "stop"))
            if "usage" not in self.lacks:
                send(event(chat.id, None, usage={"prompt_tokens": 7, "completion_tokens": self.tokens}))
            if "done" not in self.lacks:
                send("data: [DONE]\n\n")
        if "chunks" not in self.lacks and chat.behaviour != "cut":
            writer.write(b"0\r\n\r\n")
        chat.ended_s = time.perf_counter()

    async def answer_other(self, writer: asyncio.StreamWriter, method: str, route: str) -> None:
        if route == "/v1/models" and "models" not in self.lacks:
            answer(writer, 200, {"data": [{"id": "timed-model", "quantize": "none"}]})
        elif (method, route) == ("POST", "/v1/score") and "score" not in self.lacks:
            await asyncio.sleep(self.ttft_s)
            self.scores.append(time.perf_counter())
            answer(writer, 200, {"data": [{"object": "score", "index": 0}], "usage": {"prompt_tokens": 7}})
        elif route in self.pages:
            answer(writer, 200, self.pages[route](self) if callable(self.pages[route]) else self.pages[route])
        else:
            answer(writer, 404, {})


def answer(writer: asyncio.StreamWriter, status: int, body: Any, headers: str = "") -> None:
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    writer.write(f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {len(data)}\r\n{headers}\r\n".encode() + data)


def event(id: str, delta: dict[str, str] | None, finish_reason: str | None = None, usage: dict[str, int] | None = None) -> str:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return f"data: {json.dumps({'id': id, 'choices': choices, **({'usage': usage} if usage else {})})}\n\n"


@contextmanager
def running(timed: TimedServer, stall_at_s: float | None = None, stall_s: float = 1.0) -> Iterator[TimedServer]:
    """Runs the server in a thread. If `stall_at_s` is given, it stalls that long after the first chat that follows the probe."""
    loop, listening = asyncio.new_event_loop(), threading.Event()

    async def main() -> None:
        server = await asyncio.start_server(timed.serve, "127.0.0.1", 0, backlog=1024)
        timed.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        listening.set()
        if stall_at_s is not None:
            while len(timed.served) < 2:
                await asyncio.sleep(0.005)
            loop.call_later(stall_at_s, timed.stall, stall_s)

    def run() -> None:
        loop.run_until_complete(main())
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))

    thread = threading.Thread(target=run)
    thread.start()
    assert listening.wait(60)
    try:
        yield timed
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=60)
        loop.close()
