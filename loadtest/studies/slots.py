"""`python -m loadtest.studies.slots`: measures Litmus with few and with many slots under the same load; writes runs/slots-*.jsonl.

Every server is a new process. Each repeat has all numbers of slots in a new random order, so that drift over time affects all alike.
The load is a closed loop: each client sends a request, reads the answer to its end, and sends the next.
"""

import argparse
import asyncio
import json
import random
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil

from loadtest.load import monitor
from loadtest.peers import clients, servers
from loadtest.peers.benchmark import VERSIONED_PACKAGES
from loadtest.peers.clients import ChatClient
from loadtest.peers.servers import Peer, PeerFailed
from loadtest.record import Record
from loadtest.run import Run, create_run, installed_version, report_progress
from loadtest.summary import format_number, percentile

MODEL = "models/storyteller"
POLL_INTERVAL_S = 1.0  # /slots reports only the last 100 requests, so it is polled
CHAT_FIELDS = ("ttft_ms", "tpot_ms", "e2e_ms", "queue_ms", "prompt_tokens", "completion_tokens")
COLUMNS = ("slots", "chats", "tokens/s", "TPOT p50 ms", "TPOT p95 ms", "TTFT p50 ms", "TTFT p95 ms", "queue p50 ms", "memory MB")


@dataclass(frozen=True, slots=True)
class Options:
    """`repeats`: servers for each number of slots. Each client sends one uncounted chat first. The manifest records these names."""

    slots: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    clients: int = 32
    requests_per_client: int = 3
    prompt_words: int = 17
    new_tokens: int = 64
    repeats: int = 5
    seed: int = 0


QUICK = Options(slots=(1, 4), clients=4, requests_per_client=1, new_tokens=8, repeats=1)


@dataclass(slots=True)
class ClientGroup:
    """All clients of one server. `waits_ms`: how long each request waited for a slot, by request id, as /slots reports it."""

    client: ChatClient
    options: Options
    waits_ms: dict[str, float] = field(default_factory=dict)

    async def send_all(self, texts: Sequence[str]) -> list[Record]:
        """Sends the texts from closed loops; every client has its share of them. Raises `PeerFailed`."""
        count = self.options.clients

        async def loop(number: int) -> list[Record]:
            return [await self.client.ask(clients.user_message(text), self.options.new_tokens) for text in texts[number::count]]

        groups = await asyncio.gather(*(loop(number) for number in range(count)))
        return [record for group in groups for record in group]

    async def poll_waits(self) -> None:
        status, body = await self.client.fetch("GET", "/slots")
        slots = monitor.parse_slots(json.loads(body)) if status == HTTPStatus.OK else None
        if slots is None:
            raise PeerFailed(f"{self.client.server.peer.name} does not report its slots: {status} {body[:300]!r}")
        self.waits_ms |= slots.queue_times_ms

    async def send_all_and_poll(self, texts: Sequence[str]) -> tuple[list[Record], float]:
        """Sends the texts; returns the records, with the time that each waited for a slot, and the duration in seconds."""
        begin_s = time.perf_counter()
        polling = asyncio.create_task(self._keep_polling())
        try:
            records = await self.send_all(texts)
            seconds = time.perf_counter() - begin_s
        finally:
            polling.cancel()
            with suppress(asyncio.CancelledError):
                await polling
        await self.poll_waits()
        return [replace(record, queue_ms=self.waits_ms.get(record.request or "")) for record in records], seconds

    async def _keep_polling(self) -> None:
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            await self.poll_waits()


def litmus_with_slots(args: argparse.Namespace, slots: int) -> Peer:
    """Returns Litmus with this number of slots and the options of the command line."""
    peer = servers.litmus_peer(args.model, args.quantize, args.device, slots)
    return replace(peer, name=f"{peer.name}-{slots}-slots", command=(*peer.command, "--model.dtype", args.dtype))


def shuffle_servers(slots: Sequence[int], repeats: int, seed: int) -> list[tuple[int, int]]:
    """Returns (repeat, slots) of every server to start."""
    draw = random.Random(seed)
    return [(repeat, count) for repeat in range(repeats) for count in draw.sample(slots, len(slots))]


async def measure_chats(server: servers.Server, options: Options, repeat: int) -> tuple[list[Record], float, dict[str, Any]]:
    """Returns the records of the counted chats, their duration in seconds, and the model card. Each repeat has its own prompts."""
    chats = options.clients * options.requests_per_client
    name = f"slots/{options.seed}/{repeat}"
    warm_up = clients.random_texts(f"{name}/warm", options.clients, options.prompt_words)
    counted = clients.random_texts(f"{name}/counted", chats, options.prompt_words)
    async with clients.connect(server) as client:
        client.concurrency = options.clients
        _, models = await client.fetch("GET", "/v1/models")
        card = json.loads(models)["data"][0]
        await ClientGroup(client, options).send_all(warm_up)
        records, seconds = await ClientGroup(client, options).send_all_and_poll(counted)
    return records, seconds, card


def measure_server(args: argparse.Namespace, options: Options, slots: int, repeat: int, run: Run) -> list[dict[str, Any]]:
    """Measures one server; returns a row for each chat and one for the round. Raises `PeerFailed`."""
    begin_s = time.perf_counter()
    with servers.running(litmus_with_slots(args, slots), run.path.parent) as server:
        start_s = time.perf_counter() - begin_s
        records, seconds, card = asyncio.run(measure_chats(server, options, repeat))
        memory_bytes = resident_bytes()
    if card["slots"] != slots:
        raise PeerFailed(f"the server has {card['slots']} slots instead of {slots}")
    tokens = sum(record.completion_tokens or 0 for record in records)
    cell = {"slots": slots, "repeat": repeat}
    chats = [{"kind": "chat", **cell, **{name: getattr(record, name) for name in CHAT_FIELDS}} for record in records]
    served_as = {name: card[name] for name in ("dtype", "quantize", "device", "context")}
    measured = {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds, "start_s": start_s, "own_bytes": memory_bytes}
    return [*chats, {"kind": "round", **cell, "chats": len(chats), **measured, **served_as}]


def resident_bytes() -> int:
    """Returns the unique set size of all descendants of this process: memory of the server, while only that runs."""
    return sum(process.memory_full_info().uss for process in psutil.Process().children(recursive=True))


def measure(args: argparse.Namespace, options: Options, run: Run) -> tuple[list[dict[str, Any]], bool]:
    """Measures the servers until one fails; returns the rows, and whether every server succeeded."""
    rows: list[dict[str, Any]] = []
    for repeat, slots in shuffle_servers(options.slots, options.repeats, options.seed):
        try:
            server_rows = measure_server(args, options, slots, repeat, run)
        except PeerFailed as error:
            run.note({"kind": "failed", "slots": slots, "repeat": repeat, "why": str(error)})
            report_progress(f"repeat {repeat + 1} of {options.repeats}, {slots} slots failed, and no further server was started: {error}")
            return rows, False
        for row in server_rows:
            run.note(row)
        rows += server_rows
        report_progress(f"repeat {repeat + 1} of {options.repeats}, {slots} slots: {server_rows[-1]['tokens_per_s']:.0f} tokens/s")
    return rows, True


def table(rows: Sequence[dict[str, Any]], slots: Sequence[int]) -> str:
    """Formats medians of the rounds, and percentiles over all chats, of each number of slots as Markdown."""
    cells = [list(COLUMNS), ["---:"] * len(COLUMNS), *(_line(rows, count) for count in slots)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _line(rows: Sequence[dict[str, Any]], slots: int) -> list[str]:
    own_rows = [row for row in rows if row["slots"] == slots]
    rounds = [row for row in own_rows if row["kind"] == "round"]
    chats = [row for row in own_rows if row["kind"] == "chat"]
    if not rounds:
        return [str(slots), "0", *["-"] * (len(COLUMNS) - 2)]

    def percentile_of(name: str, share: float) -> float:
        return percentile([row[name] for row in chats if row[name] is not None], share)

    shares = (("tpot_ms", 0.5), ("tpot_ms", 0.95), ("ttft_ms", 0.5), ("ttft_ms", 0.95), ("queue_ms", 0.5))
    times = [percentile_of(name, share) for name, share in shares]
    rate = statistics.median(row["tokens_per_s"] for row in rounds)
    memory_mb = statistics.median(row["own_bytes"] for row in rounds) / 1e6
    return [str(slots), str(len(chats)), *map(format_number, [rate, *times, memory_mb])]


def run_facts(args: argparse.Namespace, options: Options, argv: Sequence[str]) -> dict[str, Any]:
    return {
        "command": shlex.join([sys.executable, "-m", "loadtest.studies.slots", *argv]),
        "quick": args.quick,
        "versions": {name: installed_version(name) for name in VERSIONED_PACKAGES},
        "cores": servers.available_cores(),
        "model": {"id": args.model, "quantize": args.quantize},
        "options": asdict(options),
    }


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.studies.slots", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=MODEL, help="folder or hub name")
    parser.add_argument("--quantize", choices=["none", "int8", "nf4", "fp4", "int4"], default="none")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slots", type=int, nargs="+", choices=range(1, 1025), metavar="N", help="default 1 2 4 8 16 32")
    parser.add_argument("--clients", type=int, choices=range(1, 1025), metavar="N", help="clients at once; default 32")
    parser.add_argument("--requests-per-client", type=int, choices=range(1, 1001), metavar="N", help="default 3")
    parser.add_argument("--new-tokens", type=int, choices=range(2, 100_001), metavar="N", help="of every answer; default 64")
    parser.add_argument("--repeats", type=int, choices=range(1, 1001), metavar="N", help="servers for each number of slots; default 5")
    parser.add_argument("--seed", type=int, help="seed of the order and the prompts")
    parser.add_argument("--quick", action="store_true", help="a short run that shows whether everything works; not a measurement")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    return parser.parse_args(argv)


def options_of(args: argparse.Namespace) -> Options:
    """Returns the default or quick options, overridden by those on the command line."""
    overrides = {name: getattr(args, name) for name in Options.__slots__ if getattr(args, name, None) is not None}
    if "slots" in overrides:
        overrides["slots"] = tuple(dict.fromkeys(overrides["slots"]))
    return replace(QUICK if args.quick else Options(), **overrides)


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    options = options_of(args)
    run = create_run(args.out, "slots", run_facts(args, options, argv))
    rows, succeeded = measure(args, options, run)
    run.close()
    if rows:
        sys.stdout.write(
            f"{table(rows, options.slots)}\n\n{'Quick run: not a measurement. ' if args.quick else ''}Every chat is in {run.path}\n"
        )
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
