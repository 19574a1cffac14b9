"""A server of OpenAI's wire that keeps time: it answers after delays that are known, and stamps what it did with its own clock.

`perf_counter` is the machine's, so its stamps and those of a client on the same machine can be laid beside one another.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

CUT = {"truncated", "cut"}


@dataclass
class Served:
    """One chat: when it was read, when each delta was sent, when all was."""

    id: str
    fate: str
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
class Metronome:
    """`fate` says what becomes of the n-th chat, the probe's being the 0th: ok, busy, truncated (no end), cut (in a chunk), wrong, mute.

    `lacks` names what the server does not have: usage, done, score, models, chunks. `pages` are further answers, by route.
    """

    ttft_s: float = 0.1
    gap_s: float = 0.02
    deltas: int = 5
    tokens: int = 9
    fate: Callable[[int], str] = lambda number: "ok"
    lacks: frozenset[str] = frozenset()
    pages: dict[str, Any] = field(default_factory=dict)
    retry_after: str = "1"
    served: list[Served] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    stalls: list[tuple[float, float]] = field(default_factory=list)
    url: str = ""

    def stall(self, seconds: float) -> None:
        """The whole server stands still, its socket too."""
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
                await self.other(writer, method, route)
            await writer.drain()
        except ConnectionError:
            pass  # the client left
        finally:
            writer.close()

    async def chat(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        number = len(self.served)
        one = Served(f"chat-{number}", self.fate(number), body, time.perf_counter())
        self.served.append(one)
        if one.fate == "busy":
            answer(writer, 429, {"error": {"code": "full"}}, f"Retry-After: {self.retry_after}\r\n")
            return
        chunked = "chunks" not in self.lacks
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n")
        send = (
            (lambda text: writer.write(f"{len(text):x}\r\n{text}\r\n".encode())) if chunked else (lambda text: writer.write(text.encode()))
        )
        if one.fate == "mute":
            await asyncio.sleep(3600)
        send(event(one.id, {"role": "assistant", "content": ""}))
        for index in range(self.deltas):
            await asyncio.sleep(one.received_s + self.ttft_s + index * self.gap_s - time.perf_counter())
            send(event(one.id, {"content": "word "}))
            one.sent_s.append(time.perf_counter())
            await writer.drain()
        self.end(writer, send, one)

    def end(self, writer: asyncio.StreamWriter, send: Callable[[str], None], one: Served) -> None:
        if one.fate == "cut":
            writer.write(b"ffff\r\nhalf a chunk")
        if one.fate not in CUT:
            send(event(one.id, {}, "length" if one.fate == "wrong" else "stop"))
            if "usage" not in self.lacks:
                send(event(one.id, None, usage={"prompt_tokens": 7, "completion_tokens": self.tokens}))
            if "done" not in self.lacks:
                send("data: [DONE]\n\n")
        if "chunks" not in self.lacks and one.fate != "cut":
            writer.write(b"0\r\n\r\n")
        one.ended_s = time.perf_counter()

    async def other(self, writer: asyncio.StreamWriter, method: str, route: str) -> None:
        if route == "/v1/models" and "models" not in self.lacks:
            answer(writer, 200, {"data": [{"id": "metronome", "quantize": "none"}]})
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


def event(id: str, delta: dict[str, str] | None, finish: str | None = None, usage: dict[str, int] | None = None) -> str:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return f"data: {json.dumps({'id': id, 'choices': choices, **({'usage': usage} if usage else {})})}\n\n"


@contextmanager
def ticking(metronome: Metronome, stall_at_s: float | None = None, stall_s: float = 1.0) -> Iterator[Metronome]:
    """Runs it in a thread. A stall comes `stall_at_s` after the first chat behind the probe."""
    loop, listening = asyncio.new_event_loop(), threading.Event()

    async def main() -> None:
        server = await asyncio.start_server(metronome.serve, "127.0.0.1", 0, backlog=1024)
        metronome.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        listening.set()
        if stall_at_s is not None:
            while len(metronome.served) < 2:
                await asyncio.sleep(0.005)
            loop.call_later(stall_at_s, metronome.stall, stall_s)

    def run() -> None:
        loop.run_until_complete(main())
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))

    thread = threading.Thread(target=run)
    thread.start()
    assert listening.wait(10)
    try:
        yield metronome
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
