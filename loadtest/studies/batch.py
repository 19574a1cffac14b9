"""`python -m loadtest.studies.batch`: how much slower chats become beside a batch; writes runs/batch-*.jsonl.

People chat all the time, in closed loops: for a while alone, then beside a batch of completions, alone again, then beside a batch of texts
to score, so that each batch is compared with the chats just before it. A turn counts once the batch has answered its first line.
"""

import argparse
import asyncio
import json
import shlex
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from loadtest import prompts
from loadtest.peers import clients, servers
from loadtest.peers.benchmark import VERSIONED_PACKAGES
from loadtest.peers.clients import ChatClient
from loadtest.peers.servers import PeerFailed
from loadtest.record import Record
from loadtest.run import Run, create_run, installed_version, report_progress
from loadtest.studies.slots import MODEL, litmus_with_slots
from loadtest.summary import format_number, percentile

COMPLETIONS, SCORES = "/v1/completions", "/v1/score"
COLUMNS = ("chats", "answers", "TPOT p50 ms", "TPOT p95 ms", "to alone", "TTFT p50 ms", "TTFT p95 ms", "lines/s of the batch")
POLL_INTERVAL_S = 0.2
FIRST_LINE_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Options:
    """`turn_s`: how long the chats run alone, and how long beside each batch, in every one of the `turns`. The manifest records these."""

    clients: int = 4
    turns: int = 2
    turn_s: float = 25.0
    slots: int = 32
    prompt_words: int = 17
    new_tokens: int = 64
    lines: int = 4000
    text_words: int = 170
    seed: int = 0


QUICK = Options(clients=2, turns=1, turn_s=2.0, new_tokens=8, lines=400)


@dataclass(slots=True)
class BatchStudy:
    """One run of a server. Rows have the `kind`, the `turn`, the answers' times in milliseconds and the lines a second of the batch."""

    client: ChatClient
    options: Options
    run: Run
    rows: list[dict[str, Any]] = field(default_factory=list)

    async def measure(self) -> None:
        """Measures every turn. Raises `PeerFailed`."""
        await clients.warm_up(self.client, clients.Options(new_tokens=self.options.new_tokens))
        for turn in range(self.options.turns):
            for endpoint in (COMPLETIONS, SCORES):
                await self.measure_turn(turn, f"alone, before {endpoint}")
                async with self.running_batch(turn, endpoint) as batch:
                    await self.measure_turn(turn, f"beside {endpoint}", batch)

    async def measure_turn(self, turn: int, kind: str, batch: str | None = None) -> None:
        report_progress(f"turn {turn + 1} of {self.options.turns}: {kind} ...")
        lines, begin_s = await self.completed_lines(batch), time.perf_counter()
        loops = (self.chat_until(begin_s + self.options.turn_s, f"{self.options.seed}/{turn}/{n}") for n in range(self.options.clients))
        records = [record for group in await asyncio.gather(*loops) for record in group]
        rate = (await self.completed_lines(batch) - lines) / (time.perf_counter() - begin_s)
        times = {name: [getattr(record, name) for record in records] for name in ("tpot_ms", "ttft_ms")}
        self.rows.append({"kind": kind, "turn": turn, **times, "lines_per_s": rate})
        self.run.note(self.rows[-1])

    async def chat_until(self, end_s: float, seed: str) -> list[Record]:
        rng, records = Random(seed), []
        while time.perf_counter() < end_s:
            text = prompts.random_text(rng, self.options.prompt_words)
            records.append(await self.client.ask(clients.user_message(text), self.options.new_tokens))
        return records

    @asynccontextmanager
    async def running_batch(self, turn: int, endpoint: str) -> AsyncIterator[str]:
        """Yields the id of a batch that has begun to answer lines; cancels it in the end, and waits until it is gone."""
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", b"\n".join(batch_lines(self.options, turn, endpoint)), filename="lines.jsonl")
        file = await self.post("/v1/files", data=form)
        body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h"}
        batch = (await self.post("/v1/batches", json=body))["id"]
        try:
            begin_s = time.perf_counter()
            while not await self.completed_lines(batch):
                if time.perf_counter() - begin_s > FIRST_LINE_TIMEOUT_S:
                    raise PeerFailed(f"the batch answered no line within {FIRST_LINE_TIMEOUT_S} s")
                await asyncio.sleep(POLL_INTERVAL_S)
            yield batch
        finally:
            await self.post(f"/v1/batches/{batch}/cancel")
            while (await self.batch(batch))["status"] in {"in_progress", "finalizing", "cancelling"}:
                await asyncio.sleep(POLL_INTERVAL_S)

    async def completed_lines(self, batch: str | None) -> int:
        return 0 if batch is None else int((await self.batch(batch))["request_counts"]["completed"])

    async def batch(self, id: str) -> dict[str, Any]:
        status, answer = await self.client.fetch("GET", f"/v1/batches/{id}")
        return checked(status, answer)

    async def post(self, route: str, **body: Any) -> dict[str, Any]:
        async with self.client.http.post(f"{self.client.server.url}{route}", **body) as response:
            return checked(response.status, await response.read())


def checked(status: int, answer: bytes) -> dict[str, Any]:
    if status != HTTPStatus.OK:
        raise PeerFailed(f"the server answered {status}: {answer[:300]!r}")
    return dict(json.loads(answer))


def batch_lines(options: Options, turn: int, endpoint: str) -> list[bytes]:
    """The lines of a batch's file. No two texts are alike."""
    rng = Random(f"{options.seed}/{turn}/{endpoint}")
    words = options.prompt_words if endpoint == COMPLETIONS else options.text_words
    fields = {"max_tokens": options.new_tokens, "ignore_eos": True} if endpoint == COMPLETIONS else {}
    name = "prompt" if endpoint == COMPLETIONS else "text"
    bodies = [{name: prompts.random_text(rng, words), **fields} for _ in range(options.lines)]
    return [
        json.dumps({"custom_id": str(number), "method": "POST", "url": endpoint, "body": body}).encode()
        for number, body in enumerate(bodies)
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the rows as Markdown, the turns of a kind together; "to alone": TPOT at p95 beside a batch to that just before it."""
    cells = [list(COLUMNS), ["---", *["---:"] * (len(COLUMNS) - 1)]]
    alone_ms = float("nan")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = [row for row in rows if row["kind"] == kind]
        tpot, ttft = ([value for row in of_kind for value in row[name] if value is not None] for name in ("tpot_ms", "ttft_ms"))
        p95_ms, is_alone = percentile(tpot, 0.95), kind.startswith("alone")
        alone_ms = p95_ms if is_alone else alone_ms
        rate = sum(row["lines_per_s"] for row in of_kind) / len(of_kind)
        times = [format_number(percentile(ttft, share)) for share in (0.5, 0.95)]
        ratio, lines = ("", "") if is_alone else (f"{p95_ms / alone_ms:.2f}", format_number(rate))
        cells.append([kind, str(len(ttft)), format_number(percentile(tpot, 0.5)), format_number(p95_ms), ratio, *times, lines])
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


async def measure(server: servers.Server, options: Options, run: Run) -> list[dict[str, Any]]:
    async with clients.connect(server) as client:
        client.concurrency = options.clients
        study = BatchStudy(client, options, run)
        await study.measure()
        return study.rows


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.studies.batch", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=MODEL, help="folder, GGUF file or hub name")
    parser.add_argument("--quantize", choices=["none", "int8", "int4", "nf4"], default="none")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clients", type=int, choices=range(1, 1025), metavar="N", help="who chat at once; default 4")
    parser.add_argument("--turns", type=int, choices=range(1, 1001), metavar="N", help="default 2")
    parser.add_argument("--turn-s", type=float, metavar="SECONDS", help="default 25")
    parser.add_argument("--quick", action="store_true", help="a short run that shows whether everything works; not a measurement")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    overrides = {name: value for name in Options.__slots__ if (value := getattr(args, name, None)) is not None}
    options = replace(QUICK if args.quick else Options(), **overrides)
    facts = {
        "command": shlex.join([sys.executable, "-m", "loadtest.studies.batch", *argv]),
        "quick": args.quick,
        "versions": {name: installed_version(name) for name in VERSIONED_PACKAGES},
        "cores": servers.available_cores(),
        "model": {"id": args.model, "dtype": args.dtype, "quantize": args.quantize},
        "options": asdict(options),
    }
    run = create_run(args.out, "batch", facts)
    try:
        with servers.running(litmus_with_slots(args, options.slots), run.path.parent) as server:
            rows = asyncio.run(measure(server, options, run))
    except PeerFailed as error:
        run.note({"kind": "failed", "why": str(error)})
        report_progress(f"{error}; rows measured before are in {run.path}")
        return 1
    finally:
        run.close()
    sys.stdout.write(f"{table(rows)}\n\n{'Quick run: not a measurement. ' if args.quick else ''}Every answer's times are in {run.path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
