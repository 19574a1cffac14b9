"""`python -m loadtest.load.closedloop`: measures a running server with a closed loop of streaming clients.

It prints a table and writes runs/bench-*.jsonl.
For each number of clients it runs a phase of chats, then a phase of scores, so that tokens/s and scores/s are measured separately.
A client of a closed loop waits for an answer before its next request: this shows the server's capacity, not how a queue grows.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtest import prompts
from loadtest.record import Kind, Record, Start, Stream, score_record
from loadtest.run import Run, create_run
from loadtest.summary import Round, table

NO_SERVER = "No server answers at {url} ({why}). Start one with `make run`, or give another with --url (make: URL=...)."


@dataclass(frozen=True, slots=True)
class Options:
    """What each client sends. The field names are keys of the manifest's `options`."""

    url: str
    requests_per_client: int
    max_tokens: int
    score_words: int
    seed: int


class NoServer(Exception):
    """No server answers, or it lists no model; the message is for the person who ran the command."""


@dataclass(frozen=True, slots=True)
class Client:
    """Sends requests and times them. `clients` is how many clients run at once, `run_s` the start of the run (`time.perf_counter`)."""

    http: httpx.AsyncClient
    options: Options
    run_s: float
    clients: int

    def start(self, kind: Kind) -> Start:
        return Start(kind, self.clients, time.perf_counter(), self.run_s)

    async def chat(self, rng: random.Random) -> Record:
        body = prompts.short_chat_body(rng, self.options.max_tokens)
        start = self.start("chat")
        try:
            async with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    return start.record(time.perf_counter(), response.status_code, None)
                return await _read_stream(Stream(start), response)
        except httpx.TransportError as error:
            return start.record(time.perf_counter(), 0, type(error).__name__)

    async def score(self, rng: random.Random) -> Record:
        body = prompts.score_body(rng, self.options.score_words)
        start = self.start("score")
        try:
            response = await self.http.post("/v1/score", json=body)
        except httpx.TransportError as error:
            return start.record(time.perf_counter(), 0, type(error).__name__)
        end_s = time.perf_counter()
        if response.status_code != httpx.codes.OK:
            return start.record(end_s, response.status_code, None)
        return score_record(start, end_s, response.json(), texts=1)


async def _read_stream(stream: Stream, response: httpx.Response) -> Record:
    """The record of a stream. If the connection breaks, the record says "truncated" and keeps what was measured before."""
    try:
        async for data in response.aiter_bytes():
            stream.feed(data, time.perf_counter())
    except httpx.TransportError as error:
        stream.error = f"truncated: {type(error).__name__}"
    return stream.record(time.perf_counter())


async def first_model_card(http: httpx.AsyncClient) -> dict[str, Any]:
    """The first model card of /v1/models. Raises `NoServer`."""
    try:
        response = await http.get("/v1/models")
        response.raise_for_status()
        return response.json()["data"][0]
    except (httpx.HTTPError, json.JSONDecodeError, KeyError, IndexError) as error:
        raise NoServer(NO_SERVER.format(url=http.base_url, why=str(error) or type(error).__name__)) from error


async def run_phase(
    send: Callable[[random.Random], Awaitable[Record]], clients: int, options: Options, run: Run
) -> tuple[list[Record], float]:
    """Runs `clients` closed loops at once. Returns their records, and the seconds until the slowest was done."""

    async def loop(number: int) -> list[Record]:
        rng = random.Random(f"{options.seed}/{clients}/{number}")
        records = []
        for _ in range(options.requests_per_client):
            records.append(await send(rng))
            run.add(records[-1])
        return records

    begin = time.perf_counter()
    groups = await asyncio.gather(*(loop(number) for number in range(clients)))
    return [record for group in groups for record in group], time.perf_counter() - begin


async def measure(options: Options, counts: Sequence[int], folder: Path) -> tuple[list[Round], Path]:
    """Measures each number of clients in turn, after one chat and one score that warm the server up and are not recorded.

    Returns the rounds and the path of the run file. Raises `NoServer`.
    """
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=options.url, timeout=600, limits=limits) as http:
        card = await first_model_card(http)
        facts = {"url": options.url, "model": card, "users": list(counts), "options": {"warm_up": 1, **asdict(options)}}
        run = create_run(folder, "bench", facts)
        run_s = time.perf_counter()
        warm_up = Client(http, options, run_s, 1)
        await warm_up.chat(random.Random(options.seed))
        await warm_up.score(random.Random(options.seed))
        rounds = []
        for clients in counts:
            client = Client(http, options, run_s, clients)
            chats, chat_s = await run_phase(client.chat, clients, options, run)
            scores, score_s = await run_phase(client.score, clients, options, run)
            rounds.append(Round(clients, [*chats, *scores], chat_s, score_s))
        run.close()
    return rounds, run.path


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.load.closedloop", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], choices=range(1, 1025), metavar="N")
    parser.add_argument("--requests-per-client", type=int, default=4, help="number of chats of each client, and of scores")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--score-words", type=int, default=150, help="length of each text to score")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = _parse_arguments(argv)
    options = Options(args.url.rstrip("/"), args.requests_per_client, args.max_tokens, args.score_words, args.seed)
    try:
        rounds, path = asyncio.run(measure(options, args.clients, args.out))
    except NoServer as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{table(rounds)}\n\nEach request: {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
