"""`python -m loadtest.studies.gap`: sends one load through every layer, from the bare model to a stream; writes runs/gap-*.jsonl.

A wave is a number of requests sent at once, all with equally many prompt tokens and new tokens; it lasts until the last is answered.
Each round starts every program anew, in a random order: `generate` and the engine (app.benchmarks.engine), and the server, which is
asked for whole answers and for streams. The first wave of each is not counted.
"""

import argparse
import asyncio
import json
import random
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil

from loadtest.peers import clients, servers
from loadtest.peers.benchmark import VERSIONED_PACKAGES, run_program
from loadtest.peers.clients import ChatClient
from loadtest.peers.servers import PeerFailed
from loadtest.run import Run, create_run, installed_version, report_progress
from loadtest.studies.slots import MODEL, litmus_with_slots
from loadtest.summary import format_number

IN_PROCESS = ("generate", "engine")
LAYERS = (*IN_PROCESS, "whole", "stream")
COLUMNS = ("at once", "layer", "tokens/s", "ms a token", "more than the layer before", "API's CPU", "client's CPU")


@dataclass(frozen=True, slots=True)
class Options:
    """`waves` is the number of counted waves in a round, for each layer and each number of requests at once. The manifest records these."""

    at_once: tuple[int, ...] = (1, 8, 32)
    rounds: int = 7
    waves: int = 6
    prompt_words: int = 17
    new_tokens: int = 64
    seed: int = 0


QUICK = Options(at_once=(1, 4), rounds=1, waves=1, new_tokens=8)


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a server: the worker that holds the model, and all others."""

    worker: psutil.Process
    others: tuple[psutil.Process, ...]

    def cpu_seconds(self) -> dict[str, float]:
        """Returns the CPU seconds so far of worker, other processes, and this process (the client)."""
        api_s = sum(map(cpu_s, self.others))
        return {"worker_s": cpu_s(self.worker), "api_s": api_s, "client_s": time.process_time()}


@dataclass(frozen=True, slots=True)
class Wave:
    """How long a wave took, and the prompt tokens of each request."""

    seconds: float
    lengths: tuple[int, ...]


@dataclass(slots=True)
class GapStudy:
    """One run. `prompt_tokens` is the mean prompt length by the server's usage; layers in process get random prompts of that length."""

    args: argparse.Namespace
    options: Options
    run: Run
    rows: list[dict[str, Any]] = field(default_factory=list)
    prompt_tokens: int | None = None

    def measure(self) -> None:
        """Measures every round. Raises `PeerFailed`."""
        for turn, programs in enumerate(shuffle_programs(self.options.rounds, self.options.seed)):
            for program in programs:
                report_progress(f"round {turn + 1} of {self.options.rounds}: {program} ...")
                rows = self.measure_server(turn) if program == "server" else self.measure_in_process(program, turn)
                for row in rows:
                    self.run.note(row)
                    self.rows.append(row)

    def measure_in_process(self, layer: str, turn: int) -> Iterator[dict[str, Any]]:
        args, options = self.args, self.options
        command = [sys.executable, "-m", "app.benchmarks.engine", "--model", args.model, "--what", layer, "--quantize", args.quantize]
        command += ["--dtype", args.dtype, "--device", args.device, "--prompt-tokens", str(self.prompt_tokens)]
        command += ["--new-tokens", str(options.new_tokens), "--repeats", str(options.waves), "--at-once", *map(str, options.at_once)]
        for line in run_program(command, self.run):
            for wave, rates in enumerate(line["runs"]):
                yield self.wave_row(turn, layer, line["at_once"], wave, rates["tokens_per_s"])

    def measure_server(self, turn: int) -> list[dict[str, Any]]:
        with servers.running(litmus_with_slots(self.args, max(self.options.at_once)), self.run.path.parent) as server:
            return asyncio.run(self.measure_http_layers(server, turn))

    async def measure_http_layers(self, server: servers.Server, turn: int) -> list[dict[str, Any]]:
        """Measures both HTTP layers with every number of requests at once, in the round's order. Returns the rows."""
        cells = [(layer, at_once) for layer in LAYERS if layer not in IN_PROCESS for at_once in self.options.at_once]
        rows: list[dict[str, Any]] = []
        lengths: list[int] = []
        server_processes = find_processes()
        async with clients.connect(server) as client:
            for layer, at_once in random.Random(f"{self.options.seed}/{turn}").sample(cells, len(cells)):
                waves, cpu = await self.send_waves(client, server_processes, f"{turn}/{layer}/{at_once}", layer, at_once)
                tokens = at_once * self.options.new_tokens
                rows += [self.wave_row(turn, layer, at_once, number, tokens / wave.seconds) for number, wave in enumerate(waves)]
                cell = {"round": turn, "layer": layer, "at_once": at_once}
                seconds = sum(wave.seconds for wave in waves)
                rows.append({"kind": "cpu", **cell, "tokens": tokens * len(waves), "seconds": seconds, **cpu})
                lengths += [length for wave in waves for length in wave.lengths]
        if self.prompt_tokens is None:
            self.prompt_tokens = round(statistics.mean(lengths))
        rows.append({"kind": "prompts", "round": turn, "mean": statistics.mean(lengths), "bare": self.prompt_tokens})
        return rows

    async def send_waves(
        self, client: ChatClient, server_processes: Processes, name: str, layer: str, at_once: int
    ) -> tuple[list[Wave], dict[str, float]]:
        """Sends one uncounted wave and the counted ones. Returns the latter, and the CPU seconds spent on them."""
        options = self.options
        client.concurrency = at_once
        seeds = [f"gap/{options.seed}/{name}/{wave}" for wave in range(options.waves + 1)]
        texts = [clients.random_texts(seed, at_once, options.prompt_words) for seed in seeds]
        await send_wave(client, layer, texts[0], options.new_tokens)
        before = server_processes.cpu_seconds()
        waves = [await send_wave(client, layer, wave_texts, options.new_tokens) for wave_texts in texts[1:]]
        return waves, {name: value - before[name] for name, value in server_processes.cpu_seconds().items()}

    def wave_row(self, turn: int, layer: str, at_once: int, wave: int, tokens_per_s: float) -> dict[str, Any]:
        return {"kind": "wave", "round": turn, "layer": layer, "at_once": at_once, "wave": wave, "tokens_per_s": tokens_per_s}


async def send_wave(client: ChatClient, layer: str, texts: Sequence[str], new_tokens: int) -> Wave:
    """Sends all texts at once. Raises `PeerFailed` for an answer of another length."""

    async def ask(text: str) -> int:
        if layer == "stream":
            return (await client.ask(clients.user_message(text), new_tokens)).prompt_tokens or 0
        return await ask_without_stream(client, text, new_tokens)

    begin_s = time.perf_counter()
    lengths = await asyncio.gather(*map(ask, texts))
    return Wave(time.perf_counter() - begin_s, tuple(lengths))


async def ask_without_stream(client: ChatClient, text: str, new_tokens: int) -> int:
    """Requests one answer without streaming; returns its number of prompt tokens. Raises `PeerFailed`."""
    peer = client.server.peer
    body = {"messages": clients.user_message(text), "max_tokens": new_tokens, "temperature": 0.0, **peer.extra_body}
    status, answer = await client.fetch("POST", "/v1/chat/completions", body)
    if status != HTTPStatus.OK:
        raise PeerFailed(f"{peer.name} answered {status}: {answer[:300]!r}")
    usage = json.loads(answer)["usage"]
    if usage["completion_tokens"] != new_tokens:
        raise PeerFailed(f"{peer.name}: returned {usage['completion_tokens']} tokens instead of {new_tokens}")
    return usage["prompt_tokens"]


def find_processes() -> Processes:
    """Returns the descendants of this process: those of the server, while it runs. The worker has the most memory of its own."""
    *others, worker = sorted(psutil.Process().children(recursive=True), key=lambda process: process.memory_full_info().uss)
    return Processes(worker, tuple(others))


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def shuffle_programs(rounds: int, seed: int) -> list[list[str]]:
    """Returns the order of the programs in each round. The first round begins with the server, which reports how long the prompts are."""
    draw = random.Random(seed)
    orders = [draw.sample(("server", *IN_PROCESS), 1 + len(IN_PROCESS)) for _ in range(rounds)]
    orders[0].sort(key=lambda program: program != "server")
    return orders


def table(rows: Sequence[dict[str, Any]], at_once: Sequence[int]) -> str:
    """Formats the rows as Markdown. "ms a token" is what one of the clients waits for a token; CPU is in seconds per second of the run."""
    cells = [list(COLUMNS), ["---:", "---", *["---:"] * (len(COLUMNS) - 2)]]
    for count in at_once:
        previous_ms: float | None = None
        for layer in LAYERS:
            cell_rows = [row for row in rows if row.get("layer") == layer and row["at_once"] == count]
            ms = mean_token_ms(cell_rows, count)
            added = "" if previous_ms is None else f"{ms - previous_ms:+.2f}"
            shares = [median_cpu_share(cell_rows, name) for name in ("api_s", "client_s")]
            cells.append([str(count), layer, format_number(1000 * count / ms), f"{ms:.2f}", added, *shares])
            previous_ms = ms
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def mean_token_ms(rows: Sequence[dict[str, Any]], at_once: int) -> float:
    """Returns the mean over the rounds of the milliseconds a token of the median wave. Means add up, so each layer's share can be told."""
    rounds: dict[int, list[float]] = {}
    for row in rows:
        if row["kind"] == "wave":
            rounds.setdefault(row["round"], []).append(1000 * at_once / row["tokens_per_s"])
    return statistics.mean(map(statistics.median, rounds.values()))


def median_cpu_share(rows: Sequence[dict[str, Any]], name: str) -> str:
    shares = [row[name] / row["seconds"] for row in rows if row["kind"] == "cpu"]
    return f"{statistics.median(shares):.2f}" if shares else ""


def run_facts(args: argparse.Namespace, options: Options, argv: Sequence[str]) -> dict[str, Any]:
    return {
        "command": shlex.join([sys.executable, "-m", "loadtest.studies.gap", *argv]),
        "quick": args.quick,
        "versions": {name: installed_version(name) for name in VERSIONED_PACKAGES},
        "cores": servers.available_cores(),
        "device": args.device,
        "model": {"id": args.model, "dtype": args.dtype, "quantize": args.quantize, "slots": max(options.at_once)},
        "options": asdict(options),
    }


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.studies.gap", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=MODEL, help="folder or hub name")
    parser.add_argument("--quantize", choices=["none", "int8", "nf4", "fp4"], default="none")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of every layer")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--at-once", type=int, nargs="+", choices=range(1, 1025), metavar="N", help="requests at once; default 1 8 32")
    parser.add_argument("--rounds", type=int, choices=range(1, 1001), metavar="N", help="default 7")
    parser.add_argument("--waves", type=int, choices=range(1, 1001), metavar="N", help="in every round; default 6")
    parser.add_argument("--new-tokens", type=int, choices=range(2, 100_001), metavar="N", help="of every answer; default 64")
    parser.add_argument("--seed", type=int, help="seed of the order and the prompts")
    parser.add_argument("--quick", action="store_true", help="a short run that shows whether everything works; not a measurement")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    return parser.parse_args(argv)


def options_of(args: argparse.Namespace) -> Options:
    """Returns the default or quick options, overridden by those on the command line."""
    overrides = {name: getattr(args, name) for name in Options.__slots__ if getattr(args, name, None) is not None}
    if "at_once" in overrides:
        overrides["at_once"] = tuple(sorted(set(overrides["at_once"])))
    return replace(QUICK if args.quick else Options(), **overrides)


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    study = GapStudy(args, options_of(args), create_run(args.out, "gap", run_facts(args, options_of(args), argv)))
    try:
        study.measure()
    except PeerFailed as error:
        study.run.note({"kind": "failed", "why": str(error)})
        report_progress(f"{error}; rows measured before are in {study.run.path}")
        return 1
    finally:
        study.run.close()
    markdown = table(study.rows, study.options.at_once)
    sys.stdout.write(f"{markdown}\n\n{'Quick run: not a measurement. ' if args.quick else ''}Every wave is in {study.run.path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
