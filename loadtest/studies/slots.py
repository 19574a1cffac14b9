"""`python -m loadtest.studies.slots`: Litmus with few and with many slots under one crowd, as a table and as runs/slots-*.jsonl.

Every server is a process of its own. Each repeat is all numbers of slots in an order of its own, so that what changes with time touches
all alike. The crowd is a closed loop: everyone asks, reads to the end and asks again.
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
from loadtest.peers.benchmark import VERSIONS
from loadtest.peers.clients import Chatter
from loadtest.peers.servers import Peer, PeerFailed
from loadtest.record import Record
from loadtest.run import Run, create_run, installed, tell
from loadtest.summary import number, percentile

MODEL = "models/storyteller"
LOOK_S = 1.0  # between looks at the server's slots: it tells of the last 100 requests only
FIELDS = ("ttft_ms", "tpot_ms", "e2e_ms", "queue_ms", "prompt_tokens", "completion_tokens")
HEAD = ("slots", "chats", "tokens/s", "TPOT p50 ms", "TPOT p95 ms", "TTFT p50 ms", "TTFT p95 ms", "queue p50 ms", "memory MB")


@dataclass(frozen=True, slots=True)
class Options:
    """`repeats` are servers of each number of slots; each answers one uncounted chat a client before those that count."""

    slots: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    clients: int = 32
    requests_per_client: int = 3
    prompt_words: int = 17
    new_tokens: int = 64
    repeats: int = 5
    seed: int = 0


QUICK = Options(slots=(1, 4), clients=4, requests_per_client=1, new_tokens=8, repeats=1)


@dataclass(slots=True)
class Crowd:
    """All clients of one server. `waits_ms` is what the server says of the time that requests waited for a slot, by their ids."""

    chatter: Chatter
    options: Options
    waits_ms: dict[str, float] = field(default_factory=dict)

    async def rush(self, texts: Sequence[str]) -> list[Record]:
        """Every client takes its share of the texts, one after the other."""
        count = self.options.clients

        async def loop(client: int) -> list[Record]:
            return [await self.chatter.ask(clients.says(text), self.options.new_tokens) for text in texts[client::count]]

        groups = await asyncio.gather(*(loop(client) for client in range(count)))
        return [record for group in groups for record in group]

    async def look(self) -> None:
        status, answer = await self.chatter.fetch("GET", "/slots")
        found = monitor.slots(json.loads(answer)) if status == HTTPStatus.OK else None
        if found is None:
            raise PeerFailed(f"{self.chatter.server.peer.name} does not tell of its slots: {status} {answer[:300]!r}")
        self.waits_ms |= found.waits_ms

    async def watched(self, texts: Sequence[str]) -> tuple[list[Record], float]:
        """The records, with the time each waited for a slot, and how long all of them took."""
        begin_s = time.perf_counter()
        looking = asyncio.create_task(self._look_on())
        try:
            records = await self.rush(texts)
            seconds = time.perf_counter() - begin_s
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking
        await self.look()
        return [replace(record, queue_ms=self.waits_ms.get(record.request or "")) for record in records], seconds

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()


def served(given: argparse.Namespace, slots: int) -> Peer:
    """Litmus as it is started by itself, but with so many slots."""
    peer = servers.litmus(given.model, given.quantize, given.device, slots)
    return replace(peer, name=f"{peer.name}-{slots}-slots", command=(*peer.command, "--model.dtype", given.dtype))


def order(slots: Sequence[int], repeats: int, seed: int) -> list[tuple[int, int]]:
    """Of (repeat, slots)."""
    draw = random.Random(seed)
    return [(repeat, count) for repeat in range(repeats) for count in draw.sample(slots, len(slots))]


async def push(server: servers.Server, options: Options, repeat: int) -> tuple[list[Record], float, dict[str, Any]]:
    """Records of the counted chats, how long they took, and the card of what answered. The prompts are the repeat's."""
    chats = options.clients * options.requests_per_client
    name = f"slots/{options.seed}/{repeat}"
    warm = clients.texts(f"{name}/warm", options.clients, options.prompt_words)
    counted = clients.texts(f"{name}/counted", chats, options.prompt_words)
    async with clients.chatter(server) as chatter:
        chatter.clients = options.clients
        _, models = await chatter.fetch("GET", "/v1/models")
        card = json.loads(models)["data"][0]
        await Crowd(chatter, options).rush(warm)
        records, seconds = await Crowd(chatter, options).watched(counted)
    return records, seconds, card


def one(given: argparse.Namespace, options: Options, slots: int, repeat: int, run: Run) -> list[dict[str, Any]]:
    """The rows of one server: each chat, and the round that they make. Raises `PeerFailed`."""
    begin_s = time.perf_counter()
    with servers.running(served(given, slots), run.path.parent) as server:
        start_s = time.perf_counter() - begin_s
        records, seconds, card = asyncio.run(push(server, options, repeat))
        held = own_bytes()
    if card["slots"] != slots:
        raise PeerFailed(f"the server has {card['slots']} slots, {slots} were asked for")
    tokens = sum(record.completion_tokens or 0 for record in records)
    place = {"slots": slots, "repeat": repeat}
    chats = [{"kind": "chat", **place, **{name: getattr(record, name) for name in FIELDS}} for record in records]
    served_as = {name: card[name] for name in ("dtype", "quantize", "device", "context")}
    measured = {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds, "start_s": start_s, "own_bytes": held}
    return [*chats, {"kind": "round", **place, "chats": len(chats), **measured, **served_as}]


def own_bytes() -> int:
    """Memory of all processes below this one that is in no other process: the server's, while only that runs."""
    return sum(process.memory_full_info().uss for process in psutil.Process().children(recursive=True))


def measure(given: argparse.Namespace, options: Options, run: Run) -> tuple[list[dict[str, Any]], bool]:
    """All rows, and whether every server did what it was asked."""
    rows: list[dict[str, Any]] = []
    well = True
    for repeat, slots in order(options.slots, options.repeats, options.seed):
        try:
            found = one(given, options, slots, repeat, run)
            said = f"{found[-1]['tokens_per_s']:.0f} tokens/s"
        except PeerFailed as error:
            found = [{"kind": "failed", "slots": slots, "repeat": repeat, "why": str(error)}]
            said, well = f"failed: {error}", False
        for row in found:
            run.note(row)
        rows += found
        tell(f"repeat {repeat + 1} of {options.repeats}, {slots} slots: {said}")
    return rows, well


def table(rows: Sequence[dict[str, Any]], slots: Sequence[int]) -> str:
    """Markdown: medians of the rounds, and percentiles of all chats of so many slots."""
    cells = [list(HEAD), ["---:"] * len(HEAD), *(_line(rows, count) for count in slots)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _line(rows: Sequence[dict[str, Any]], slots: int) -> list[str]:
    mine = [row for row in rows if row["slots"] == slots]
    rounds = [row for row in mine if row["kind"] == "round"]
    chats = [row for row in mine if row["kind"] == "chat"]
    if not rounds:
        return [str(slots), "0", *["-"] * (len(HEAD) - 2)]

    def at(name: str, share: float) -> float:
        return percentile([row[name] for row in chats if row[name] is not None], share)

    times = [at("tpot_ms", 0.5), at("tpot_ms", 0.95), at("ttft_ms", 0.5), at("ttft_ms", 0.95), at("queue_ms", 0.5)]
    rate = statistics.median(row["tokens_per_s"] for row in rounds)
    held = statistics.median(row["own_bytes"] for row in rounds) / 1e6
    return [str(slots), str(len(chats)), *map(number, [rate, *times, held])]


def facts(given: argparse.Namespace, options: Options, words: Sequence[str]) -> dict[str, Any]:
    return {
        "command": shlex.join([sys.executable, "-m", "loadtest.studies.slots", *words]),
        "quick": given.quick,
        "versions": {name: installed(name) for name in VERSIONS},
        "cores": servers.cores(),
        "model": {"id": given.model, "quantize": given.quantize},
        "options": asdict(options),
    }


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.studies.slots", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=MODEL, help="folder or hub name")
    parser.add_argument("--quantize", choices=["none", "int8", "nf4", "fp4", "int4"], default="none")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slots", type=int, nargs="+", choices=range(1, 1025), metavar="N", help="1 2 4 8 16 32")
    parser.add_argument("--clients", type=int, choices=range(1, 1025), metavar="N", help="32, at once")
    parser.add_argument("--requests-per-client", type=int, choices=range(1, 1001), metavar="N", help="3")
    parser.add_argument("--new-tokens", type=int, choices=range(2, 100_001), metavar="N", help="64, of every answer")
    parser.add_argument("--repeats", type=int, choices=range(1, 1001), metavar="N", help="5 servers for each number of slots")
    parser.add_argument("--seed", type=int, help="of the order and the prompts")
    parser.add_argument("--quick", action="store_true", help="so little that it shows whether all runs, and nothing else")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    return parser.parse_args(words)


def options_of(given: argparse.Namespace) -> Options:
    """What was asked for, over the quick or the full measure."""
    told = {name: getattr(given, name) for name in Options.__slots__ if getattr(given, name, None) is not None}
    if "slots" in told:
        told["slots"] = tuple(dict.fromkeys(told["slots"]))
    return replace(QUICK if given.quick else Options(), **told)


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    options = options_of(given)
    run = create_run(given.out, "slots", facts(given, options, words))
    rows, well = measure(given, options, run)
    run.close()
    sys.stdout.write(f"{table(rows, options.slots)}\n\n{'Quick: no measurement. ' if given.quick else ''}Each chat: {run.path}\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
