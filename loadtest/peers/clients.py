"""Measures one server: rounds of streaming clients, continued conversations, streams beside a long prompt, chats beside scores.

Every answer must have exactly the requested number of tokens. Times are measured at the client.
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
from loadtest.peers.targets import gaps_overlapping, gaps_within
from loadtest.record import Record, Start, Stream

Messages = list[dict[str, str]]
READ_TIMEOUT_S = 600  # without a byte from the server
CONNECTION_ERRORS = (aiohttp.ClientError, TimeoutError)  # refused, reset, silent or cut short
LONG_ANSWER_TOKENS = 1500  # more tokens than a stream gets while a long prompt is prefilled


@dataclass(frozen=True, slots=True)
class Options:
    """How much load is sent. The run's manifest records these names.

    `rounds` are counted; one uncounted round comes before them. `talk_tokens` and `long_tokens` are prompt lengths of the continued
    conversation and of the prompt that interferes with streams. `texts` and `lengths` (tokens) are those of app.benchmarks.scoring.
    """

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
    """The totals of one round."""

    requests: int
    prompt_tokens: int
    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def sum_rounds(rounds: Sequence[Round]) -> Round:
    """Adds the rounds up, so that each weighs by its duration."""
    return Round(
        sum(each.requests for each in rounds),
        sum(each.prompt_tokens for each in rounds),
        sum(each.tokens for each in rounds),
        sum(each.seconds for each in rounds),
    )


@dataclass(slots=True)
class ChatClient:
    """Sends requests to one server. It uses aiohttp, as a client that takes little CPU time leaves more of the machine to the server."""

    http: aiohttp.ClientSession
    server: Server
    concurrency: int = 1
    begin_s: float = field(default_factory=time.perf_counter)

    async def ask(self, messages: Messages, max_tokens: int, stream: Stream | None = None) -> Record:
        """Streams an answer of exactly `max_tokens`. Pass a `stream` to read its deltas while it runs. Raises `PeerFailed`."""
        body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0.0, "stream": True}
        body |= {"stream_options": {"include_usage": True}, **self.server.peer.extra_body}
        stream = stream or self.stream()
        stream.start = Start("chat", self.concurrency, time.perf_counter(), self.begin_s)
        try:
            async with self.http.post(f"{self.server.url}/v1/chat/completions", json=body) as response:
                if response.status != HTTPStatus.OK:
                    raise PeerFailed(f"{self.server.peer.name} answered {response.status}: {(await response.read())[:300]!r}")
                async for data in response.content.iter_any():
                    stream.feed(data, time.perf_counter())
        except CONNECTION_ERRORS as error:
            raise PeerFailed(f"{self.server.peer.name}: {type(error).__name__} {error}") from error
        if not self.server.peer.sends_done:
            stream.done = stream.usage is not None
        return self._checked(stream.record(time.perf_counter()), max_tokens)

    def stream(self) -> Stream:
        return Stream(Start("chat", self.concurrency, time.perf_counter(), self.begin_s))

    def _checked(self, record: Record, max_tokens: int) -> Record:
        if record.outcome != "ok" or record.completion_tokens != max_tokens or record.ttft_ms is None:
            reason = record.reason or f"returned {record.completion_tokens} tokens instead of {max_tokens}"
            raise PeerFailed(f"{self.server.peer.name}: {reason}")
        return record

    async def score(self, text: str) -> None:
        status, answer = await self.fetch("POST", "/v1/score", {"text": text})
        if status != HTTPStatus.OK or json.loads(answer)["data"][0]["object"] != "score":
            raise PeerFailed(f"{self.server.peer.name} did not score a text: {status} {answer[:300]!r}")

    async def fetch(self, method: str, route: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """Sends a request that does not stream; returns status and body. Raises `PeerFailed`."""
        try:
            async with self.http.request(method, f"{self.server.url}{route}", json=body) as response:
                return response.status, await response.read()
        except CONNECTION_ERRORS as error:
            raise PeerFailed(f"{self.server.peer.name}: {type(error).__name__} {error}") from error


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[ChatClient]:
    """Yields a client of the server. Each request opens its own connection, as servers differ in how long they keep one open."""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=READ_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http:
        yield ChatClient(http, server)


def user_message(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def random_texts(seed: str, count: int, words: int) -> list[str]:
    """Returns texts that share no prefix, so that no prefix cache helps."""
    return [prompts.random_text(random.Random(f"{seed}/{index}"), words) for index in range(count)]


def prompts_by_round(options: Options, clients: int) -> list[list[str]]:
    """Returns the messages of each round, the uncounted round first. They are the same for every server and for the bare engine."""
    count = clients * (options.requests_per_client if clients > 1 else options.requests_alone)
    return [random_texts(f"{clients}/{number}", count, options.prompt_words) for number in range(options.rounds + 1)]


async def warm_up(client: ChatClient, options: Options) -> None:
    """Sends two requests that are not counted."""
    for text in random_texts("warm", 2, options.prompt_words):
        await client.ask(user_message(text), options.new_tokens)


async def words_for_tokens(client: ChatClient, tokens: int) -> int:
    """Returns how many words make a prompt of so many tokens, from the usage of two uncounted requests."""
    short, long = [await client.ask(user_message(prompts.random_text(random.Random(words), words)), 1) for words in (40, 120)]
    per_word = ((long.prompt_tokens or 0) - (short.prompt_tokens or 0)) / 80
    return round((tokens - (short.prompt_tokens or 0)) / per_word) + 40


async def run_round(client: ChatClient, messages: Sequence[str], clients: int, new_tokens: int) -> Round:
    """Sends the messages from `clients` closed loops."""

    async def loop(number: int) -> list[Record]:
        return [await client.ask(user_message(text), new_tokens) for text in messages[number::clients]]

    begin_s = time.perf_counter()
    groups = await asyncio.gather(*(loop(number) for number in range(clients)))
    seconds = time.perf_counter() - begin_s
    records = [record for group in groups for record in group]
    tokens = sum(record.completion_tokens or 0 for record in records)
    return Round(len(records), sum(record.prompt_tokens or 0 for record in records), tokens, seconds)


@dataclass(frozen=True, slots=True)
class Conversation:
    """The TTFT in milliseconds of a conversation's first turn, and of its next turn."""

    prompt_tokens: int
    first_ms: float
    continued_ms: float


async def measure_continued(client: ChatClient, options: Options) -> list[Conversation]:
    """Measures conversations of a long message, its answer and a short next turn, one at a time. The first one is not counted."""
    conversations = []
    for text in random_texts("talk", options.repeats + 1, await words_for_tokens(client, options.talk_tokens)):
        stream = client.stream()
        first = await client.ask(user_message(text), options.new_tokens, stream)
        messages = [*user_message(text), {"role": "assistant", "content": stream.text}, *user_message("And then?")]
        second = await client.ask(messages, options.new_tokens)
        conversations.append(Conversation(first.prompt_tokens or 0, first.ttft_ms or 0.0, second.ttft_ms or 0.0))
    return conversations[1:]


@dataclass(frozen=True, slots=True)
class PrefillInterference:
    """Gaps in milliseconds between the deltas of streams: `calm_ms` before a long prompt was sent, `pressed_ms` during its prefill."""

    prompt_tokens: int
    read_ms: float
    calm_ms: tuple[float, ...]
    pressed_ms: tuple[float, ...]


async def measure_prefill_interference(client: ChatClient, options: Options) -> list[PrefillInterference]:
    """Measures how the prefill of a long prompt delays other streams. The first measurement is not counted."""
    long_prompts = random_texts("long", options.repeats + 1, await words_for_tokens(client, options.long_tokens))
    return [await _measure_interference_once(client, options, number, text) for number, text in enumerate(long_prompts)][1:]


async def _measure_interference_once(client: ChatClient, options: Options, number: int, long_prompt: str) -> PrefillInterference:
    """Starts streams with long answers and sends the long prompt once each has `calm_deltas`. Its prefill ends with its first token."""
    streams = [client.stream() for _ in range(options.streams)]
    short_prompts = random_texts(f"stream/{number}", options.streams, options.prompt_words)
    answers = (client.ask(user_message(text), LONG_ANSWER_TOKENS, stream) for text, stream in zip(short_prompts, streams, strict=True))
    tasks = [asyncio.create_task(answer) for answer in answers]
    try:
        while any(len(stream.deltas_s) <= options.calm_deltas for stream in streams):
            _check_running(tasks)
            await asyncio.sleep(0.01)
        sent_s = time.perf_counter()
        record = await client.ask(user_message(long_prompt), 1)
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
    calm = [1000 * gap for stream in streams for gap in gaps_within(stream.deltas_s, since_s, sent_s)]
    pressed = [1000 * gap for stream in streams for gap in gaps_overlapping(stream.deltas_s, sent_s, until_s)]
    return PrefillInterference(record.prompt_tokens or 0, 1000 * (until_s - sent_s), tuple(calm), tuple(pressed))


def _check_running(tasks: Sequence["asyncio.Task[Record]"]) -> None:
    for task in tasks:
        if task.done():
            task.result()
            raise PeerFailed(f"a stream of {LONG_ANSWER_TOKENS} tokens ended before the long prompt was prefilled")


async def measure_tpot(client: ChatClient, options: Options, scoring: bool) -> list[float]:
    """Returns the TPOT in milliseconds of each chat. With `scoring`, one text after another is scored meanwhile."""
    client.concurrency = options.streams
    texts = random_texts(f"tpot/{scoring}", options.streams * options.chats_per_stream, options.prompt_words)

    async def loop(number: int) -> list[Record]:
        return [await client.ask(user_message(text), options.new_tokens) for text in texts[number :: options.streams]]

    scores = asyncio.create_task(_keep_scoring(client, options)) if scoring else None
    try:
        groups = await asyncio.gather(*(loop(number) for number in range(options.streams)))
    finally:
        if scores is not None:
            scores.cancel()
    if scores is not None:
        with suppress(asyncio.CancelledError):
            await scores
    return [record.tpot_ms for group in groups for record in group if record.tpot_ms is not None]


async def _keep_scoring(client: ChatClient, options: Options) -> None:
    draw = random.Random("scores")
    while True:
        await client.score(prompts.random_text(draw, options.score_words))
