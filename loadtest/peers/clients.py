"""What is asked of a server to measure it: rounds of streaming clients, continued talks, streams beside a long prompt or scores.

Every answer is checked to be as long as it was asked to be. Times are the client's; a value is a number or it is not there.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp

from loadtest import prompts
from loadtest.peers.servers import PeerFailed, Server
from loadtest.peers.targets import calm_gaps, gaps
from loadtest.record import Record, Start, Stream

Messages = list[dict[str, str]]
TIMEOUT_S = 600  # without a byte
BROKEN = (aiohttp.ClientError, TimeoutError)  # of a connection: refused, reset, silent, cut short
LONG_ANSWER = 1500  # more than a stream gets to say while a prompt is read


@dataclass(frozen=True, slots=True)
class Options:
    """How much is asked. `rounds` are counted, one more goes before them."""

    clients: int = 32
    prompt_words: int = 17
    new_tokens: int = 32
    requests_per_client: int = 2
    requests_alone: int = 8
    rounds: int = 5
    talk_tokens: int = 1000
    long_tokens: int = 2000
    streams: int = 8
    chats_per_stream: int = 5
    repeats: int = 3
    score_words: int = 150
    calm_deltas: int = 32
    texts: int = 24
    lengths: tuple[int, ...] = (50, 100, 200, 400, 700, 1000)


QUICK = Options(
    clients=4,
    new_tokens=8,
    requests_per_client=1,
    requests_alone=2,
    rounds=1,
    talk_tokens=200,
    long_tokens=400,
    streams=2,
    chats_per_stream=1,
    repeats=1,
    texts=3,
    lengths=(50,),
    calm_deltas=8,
)


@dataclass(frozen=True, slots=True)
class Round:
    """What one round came to."""

    requests: int
    prompt_tokens: int
    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def together(rounds: Sequence[Round]) -> Round:
    """All as one: a slow round weighs by its seconds."""
    prompt_tokens, tokens = sum(one.prompt_tokens for one in rounds), sum(one.tokens for one in rounds)
    return Round(sum(one.requests for one in rounds), prompt_tokens, tokens, sum(one.seconds for one in rounds))


@dataclass(slots=True)
class Chatter:
    """Asks one server, by a client that costs little: what it takes of the machine, the server does not have."""

    http: aiohttp.ClientSession
    server: Server
    clients: int = 1
    begin_s: float = field(default_factory=time.perf_counter)

    async def ask(self, messages: Messages, max_tokens: int, stream: Stream | None = None) -> Record:
        """Stream an answer of exactly `max_tokens`. `stream` may be given to look at while it goes. Raises `PeerFailed`."""
        body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0.0, "stream": True}
        body |= {"stream_options": {"include_usage": True}, **self.server.peer.extra}
        stream = stream or self.stream()
        stream.start = Start("chat", self.clients, time.perf_counter(), self.begin_s)
        try:
            async with self.http.post(f"{self.server.url}/v1/chat/completions", json=body) as response:
                if response.status != HTTPStatus.OK:
                    raise PeerFailed(f"{self.server.peer.name} answered {response.status}: {(await response.read())[:300]!r}")
                async for data in response.content.iter_any():
                    stream.feed(data, time.perf_counter())
        except BROKEN as error:
            raise PeerFailed(f"{self.server.peer.name}: {type(error).__name__} {error}") from error
        if not self.server.peer.done:
            stream.done = stream.usage is not None
        return self._checked(stream.record(time.perf_counter()), max_tokens)

    def stream(self) -> Stream:
        return Stream(Start("chat", self.clients, time.perf_counter(), self.begin_s))

    def _checked(self, record: Record, max_tokens: int) -> Record:
        if record.outcome != "ok" or record.completion_tokens != max_tokens or record.ttft_ms is None:
            what = record.reason or f"{record.completion_tokens} tokens came, {max_tokens} were asked for"
            raise PeerFailed(f"{self.server.peer.name}: {what}")
        return record

    async def score(self, text: str) -> None:
        status, answer = await self.fetch("POST", "/v1/score", {"text": text})
        if status != HTTPStatus.OK or json.loads(answer)["data"][0]["object"] != "score":
            raise PeerFailed(f"{self.server.peer.name} did not score: {status} {answer[:300]!r}")

    async def fetch(self, method: str, route: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """Status and body of what does not stream. Raises `PeerFailed`."""
        try:
            async with self.http.request(method, f"{self.server.url}{route}", json=body) as response:
                return response.status, await response.read()
        except BROKEN as error:
            raise PeerFailed(f"{self.server.peer.name}: {type(error).__name__} {error}") from error


@asynccontextmanager
async def chatter(server: Server) -> AsyncIterator[Chatter]:
    """Each request has a connection of its own: servers differ in when they close one that is kept."""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http:
        yield Chatter(http, server)


def says(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def texts(seed: str, count: int, words: int) -> list[str]:
    """Texts that share no beginning."""
    return [prompts.text(random.Random(f"{seed}/{index}"), words) for index in range(count)]


def rounds(options: Options, clients: int) -> list[list[str]]:
    """Messages of each round, the uncounted one first; the same for every server, and for the bare engine."""
    count = clients * (options.requests_per_client if clients > 1 else options.requests_alone)
    return [texts(f"{clients}/{number}", count, options.prompt_words) for number in range(options.rounds + 1)]


async def warm(chatter: Chatter, options: Options) -> None:
    """Two requests that are not counted."""
    for text in texts("warm", 2, options.prompt_words):
        await chatter.ask(says(text), options.new_tokens)


async def words_of(chatter: Chatter, tokens: int) -> int:
    """How many words make a prompt of so many tokens, by what the server says of two that are not counted."""
    short, long = [await chatter.ask(says(prompts.text(random.Random(words), words)), 1) for words in (40, 120)]
    per_word = ((long.prompt_tokens or 0) - (short.prompt_tokens or 0)) / 80
    return round((tokens - (short.prompt_tokens or 0)) / per_word) + 40


async def play(chatter: Chatter, messages: Sequence[str], clients: int, new_tokens: int) -> Round:
    """`clients` closed loops share the messages."""

    async def loop(number: int) -> list[Record]:
        return [await chatter.ask(says(text), new_tokens) for text in messages[number::clients]]

    begin_s = time.perf_counter()
    groups = await asyncio.gather(*(loop(number) for number in range(clients)))
    seconds = time.perf_counter() - begin_s
    records = [record for group in groups for record in group]
    tokens = sum(record.completion_tokens or 0 for record in records)
    return Round(len(records), sum(record.prompt_tokens or 0 for record in records), tokens, seconds)


@dataclass(frozen=True, slots=True)
class Talk:
    """Milliseconds to the first token of a conversation, and of its next turn."""

    prompt_tokens: int
    first_ms: float
    continued_ms: float


async def continued(chatter: Chatter, options: Options) -> list[Talk]:
    """A long message, its answer, and a short next turn, alone on the server. The first talk is not counted."""
    talks = []
    for text in texts("talk", options.repeats + 1, await words_of(chatter, options.talk_tokens)):
        stream = chatter.stream()
        first = await chatter.ask(says(text), options.new_tokens, stream)
        turn = [*says(text), {"role": "assistant", "content": stream.text}, *says("And then?")]
        then = await chatter.ask(turn, options.new_tokens)
        talks.append(Talk(first.prompt_tokens or 0, first.ttft_ms or 0.0, then.ttft_ms or 0.0))
    return talks[1:]


@dataclass(frozen=True, slots=True)
class Press:
    """Gaps in milliseconds between the deltas of streams, before a long prompt came and while it was read."""

    prompt_tokens: int
    read_ms: float
    calm_ms: tuple[float, ...]
    pressed_ms: tuple[float, ...]


async def press(chatter: Chatter, options: Options) -> list[Press]:
    """The first one is not counted."""
    long = texts("long", options.repeats + 1, await words_of(chatter, options.long_tokens))
    return [await _press_once(chatter, options, number, text) for number, text in enumerate(long)][1:]


async def _press_once(chatter: Chatter, options: Options, number: int, long: str) -> Press:
    """Streams that answer at length; when each has `calm_deltas`, the long prompt. Window: from its leaving to its first token."""
    streams = [chatter.stream() for _ in range(options.streams)]
    asked = texts(f"stream/{number}", options.streams, options.prompt_words)
    tasks = [asyncio.create_task(chatter.ask(says(text), LONG_ANSWER, stream)) for text, stream in zip(asked, streams, strict=True)]
    try:
        while any(len(stream.deltas_s) <= options.calm_deltas for stream in streams):
            _check_running(tasks)
            await asyncio.sleep(0.01)
        sent_s = time.perf_counter()
        record = await chatter.ask(says(long), 1)
        until_s = sent_s + (record.ttft_ms or 0.0) / 1000
        while any(stream.deltas_s[-1] < until_s for stream in streams):
            _check_running(tasks)
            await asyncio.sleep(0.01)
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
    since_s = max(stream.deltas_s[0] for stream in streams)
    calm = [1000 * gap for stream in streams for gap in calm_gaps(stream.deltas_s, since_s, sent_s)]
    pressed = [1000 * gap for stream in streams for gap in gaps(stream.deltas_s, sent_s, until_s)]
    return Press(record.prompt_tokens or 0, 1000 * (until_s - sent_s), tuple(calm), tuple(pressed))


def _check_running(tasks: Sequence["asyncio.Task[Record]"]) -> None:
    for task in tasks:
        if task.done():
            task.result()
            raise PeerFailed(f"a stream of {LONG_ANSWER} tokens was over before the long prompt was read")


async def tpot(chatter: Chatter, options: Options, scoring: bool) -> list[float]:
    """Milliseconds a token of each chat, with or without one text after the other being scored all the while."""
    chatter.clients = options.streams
    asked = texts(f"tpot/{scoring}", options.streams * options.chats_per_stream, options.prompt_words)

    async def loop(number: int) -> list[Record]:
        return [await chatter.ask(says(text), options.new_tokens) for text in asked[number :: options.streams]]

    scores = asyncio.create_task(_score_on(chatter, options)) if scoring else None
    try:
        groups = await asyncio.gather(*(loop(number) for number in range(options.streams)))
    finally:
        if scores is not None:
            scores.cancel()
    if scores is not None:
        with suppress(asyncio.CancelledError):
            await scores
    return [record.tpot_ms for group in groups for record in group if record.tpot_ms is not None]


async def _score_on(chatter: Chatter, options: Options) -> None:
    draw = random.Random("scores")
    while True:
        await chatter.score(prompts.text(draw, options.score_words))
