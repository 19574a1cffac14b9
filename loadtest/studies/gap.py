"""`python -m loadtest.studies.gap`: one load through every layer from the bare model to a stream over HTTP, as a table and as
runs/gap-*.jsonl.

A wave is so many requests at once, each with as many prompt tokens and as many new ones as any other, and lasts until the last is
answered. Each round starts every program anew, in an order of its own: `generate` and the engine by `app.benchmarks.engine`, and the
server, which is asked for whole answers and for streams. What a first wave costs is not counted.
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
from loadtest.peers.benchmark import VERSIONS, answers
from loadtest.peers.clients import Chatter
from loadtest.peers.servers import PeerFailed
from loadtest.run import Run, create_run, installed, tell
from loadtest.studies.slots import MODEL, served
from loadtest.summary import number

BARE = ("generate", "engine")
LAYERS = (*BARE, "whole", "stream")
HEAD = ("at once", "layer", "tokens/s", "ms a token", "more than the layer before", "API's CPU", "client's CPU")


@dataclass(frozen=True, slots=True)
class Options:
    """`waves` are counted in every round, for each layer and number at once."""

    at_once: tuple[int, ...] = (1, 8, 32)
    rounds: int = 7
    waves: int = 6
    prompt_words: int = 17
    new_tokens: int = 64
    seed: int = 0


QUICK = Options(at_once=(1, 4), rounds=1, waves=1, new_tokens=8)


@dataclass(frozen=True, slots=True)
class Processes:
    """Of a server: the one that holds the model, and the others."""

    worker: psutil.Process
    others: tuple[psutil.Process, ...]

    def used(self) -> dict[str, float]:
        """CPU seconds so far, with those of this process, the client."""
        api_s = sum(map(cpu_s, self.others))
        return {"worker_s": cpu_s(self.worker), "api_s": api_s, "client_s": time.process_time()}


@dataclass(frozen=True, slots=True)
class Wave:
    """How long one took, and how many tokens each of its prompts had."""

    seconds: float
    lengths: tuple[int, ...]


@dataclass(slots=True)
class Gap:
    """One run. `prompt_tokens` is how long the server says the prompts are; the bare layers get random ones of that length."""

    given: argparse.Namespace
    options: Options
    run: Run
    rows: list[dict[str, Any]] = field(default_factory=list)
    prompt_tokens: int | None = None

    def measure(self) -> None:
        """Every round. Raises `PeerFailed`."""
        for turn, programs in enumerate(order(self.options.rounds, self.options.seed)):
            for program in programs:
                tell(f"round {turn + 1} of {self.options.rounds}: {program} ...")
                found = self.server(turn) if program == "server" else self.bare(program, turn)
                for row in found:
                    self.run.note(row)
                    self.rows.append(row)

    def bare(self, layer: str, turn: int) -> Iterator[dict[str, Any]]:
        given, options = self.given, self.options
        command = [sys.executable, "-m", "app.benchmarks.engine", "--model", given.model, "--what", layer, "--quantize", given.quantize]
        command += ["--dtype", given.dtype, "--device", given.device, "--prompt-tokens", str(self.prompt_tokens)]
        command += ["--new-tokens", str(options.new_tokens), "--repeats", str(options.waves), "--at-once", *map(str, options.at_once)]
        for line in answers(command, self.run):
            for wave, rates in enumerate(line["runs"]):
                yield self.wave(turn, layer, line["at_once"], wave, rates["tokens_per_s"])

    def server(self, turn: int) -> list[dict[str, Any]]:
        with servers.running(served(self.given, max(self.options.at_once)), self.run.path.parent) as server:
            return asyncio.run(self.ask(server, turn))

    async def ask(self, server: servers.Server, turn: int) -> list[dict[str, Any]]:
        """Both HTTP layers at every number at once, in the round's order."""
        cells = [(layer, at_once) for layer in LAYERS if layer not in BARE for at_once in self.options.at_once]
        rows: list[dict[str, Any]] = []
        lengths: list[int] = []
        found = processes()
        async with clients.chatter(server) as chatter:
            for layer, at_once in random.Random(f"{self.options.seed}/{turn}").sample(cells, len(cells)):
                sent, spent = await self.waves(chatter, found, f"{turn}/{layer}/{at_once}", layer, at_once)
                tokens = at_once * self.options.new_tokens
                rows += [self.wave(turn, layer, at_once, wave, tokens / one.seconds) for wave, one in enumerate(sent)]
                place = {"round": turn, "layer": layer, "at_once": at_once}
                rows.append({"kind": "cpu", **place, "tokens": tokens * len(sent), "seconds": sum(one.seconds for one in sent), **spent})
                lengths += [length for one in sent for length in one.lengths]
        if self.prompt_tokens is None:
            self.prompt_tokens = round(statistics.mean(lengths))
        rows.append({"kind": "prompts", "round": turn, "mean": statistics.mean(lengths), "bare": self.prompt_tokens})
        return rows

    async def waves(self, chatter: Chatter, found: Processes, name: str, layer: str, at_once: int) -> tuple[list[Wave], dict[str, float]]:
        """The counted ones, and the CPU seconds that went by meanwhile."""
        options = self.options
        chatter.clients = at_once
        texts = [clients.texts(f"gap/{options.seed}/{name}/{wave}", at_once, options.prompt_words) for wave in range(options.waves + 1)]
        await send(chatter, layer, texts[0], options.new_tokens)
        before = found.used()
        sent = [await send(chatter, layer, wave, options.new_tokens) for wave in texts[1:]]
        return sent, {name: value - before[name] for name, value in found.used().items()}

    def wave(self, turn: int, layer: str, at_once: int, wave: int, tokens_per_s: float) -> dict[str, Any]:
        return {"kind": "wave", "round": turn, "layer": layer, "at_once": at_once, "wave": wave, "tokens_per_s": tokens_per_s}


async def send(chatter: Chatter, layer: str, texts: Sequence[str], new_tokens: int) -> Wave:
    """Everyone at once. Raises `PeerFailed` for an answer of another length."""

    async def ask(text: str) -> int:
        if layer == "stream":
            return (await chatter.ask(clients.says(text), new_tokens)).prompt_tokens or 0
        return await ask_whole(chatter, text, new_tokens)

    begin_s = time.perf_counter()
    lengths = await asyncio.gather(*map(ask, texts))
    return Wave(time.perf_counter() - begin_s, tuple(lengths))


async def ask_whole(chatter: Chatter, text: str, new_tokens: int) -> int:
    """One answer that does not stream; the length of its prompt."""
    peer = chatter.server.peer
    body = {"messages": clients.says(text), "max_tokens": new_tokens, "temperature": 0.0, **peer.extra}
    status, answer = await chatter.fetch("POST", "/v1/chat/completions", body)
    if status != HTTPStatus.OK:
        raise PeerFailed(f"{peer.name} answered {status}: {answer[:300]!r}")
    usage = json.loads(answer)["usage"]
    if usage["completion_tokens"] != new_tokens:
        raise PeerFailed(f"{peer.name}: {usage['completion_tokens']} tokens came, {new_tokens} were asked for")
    return usage["prompt_tokens"]


def processes() -> Processes:
    """All below this one, which are the server's while it runs. The model is where most memory of a process's own is."""
    *others, worker = sorted(psutil.Process().children(recursive=True), key=lambda process: process.memory_full_info().uss)
    return Processes(worker, tuple(others))


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def order(rounds: int, seed: int) -> list[list[str]]:
    """Of the programs. In the first round the server comes first: it knows how long the prompts are."""
    draw = random.Random(seed)
    found = [draw.sample(("server", *BARE), 1 + len(BARE)) for _ in range(rounds)]
    found[0].sort(key=lambda program: program != "server")
    return found


def table(rows: Sequence[dict[str, Any]], at_once: Sequence[int]) -> str:
    """Markdown. A token's milliseconds are what each of so many readers waits for it; CPU is in seconds per second of the run."""
    cells = [list(HEAD), ["---:", "---", *["---:"] * (len(HEAD) - 2)]]
    for count in at_once:
        before: float | None = None
        for layer in LAYERS:
            mine = [row for row in rows if row.get("layer") == layer and row["at_once"] == count]
            now = token_ms(mine, count)
            more = "" if before is None else f"{now - before:+.2f}"
            shares = [share(mine, name) for name in ("api_s", "client_s")]
            cells.append([str(count), layer, number(1000 * count / now), f"{now:.2f}", more, *shares])
            before = now
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def token_ms(rows: Sequence[dict[str, Any]], at_once: int) -> float:
    """The mean over the rounds of what each's median wave took, so that what the layers add makes up the whole."""
    rounds: dict[int, list[float]] = {}
    for row in rows:
        if row["kind"] == "wave":
            rounds.setdefault(row["round"], []).append(1000 * at_once / row["tokens_per_s"])
    return statistics.mean(map(statistics.median, rounds.values()))


def share(rows: Sequence[dict[str, Any]], name: str) -> str:
    found = [row[name] / row["seconds"] for row in rows if row["kind"] == "cpu"]
    return f"{statistics.median(found):.2f}" if found else ""


def facts(given: argparse.Namespace, options: Options, words: Sequence[str]) -> dict[str, Any]:
    return {
        "command": shlex.join([sys.executable, "-m", "loadtest.studies.gap", *words]),
        "quick": given.quick,
        "versions": {name: installed(name) for name in VERSIONS},
        "cores": servers.cores(),
        "device": given.device,
        "model": {"id": given.model, "dtype": given.dtype, "quantize": given.quantize, "slots": max(options.at_once)},
        "options": asdict(options),
    }


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.studies.gap", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=MODEL, help="folder or hub name")
    parser.add_argument("--quantize", choices=["none", "int8", "nf4", "fp4"], default="none")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="in every layer")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--at-once", type=int, nargs="+", choices=range(1, 1025), metavar="N", help="1 8 32")
    parser.add_argument("--rounds", type=int, choices=range(1, 1001), metavar="N", help="7")
    parser.add_argument("--waves", type=int, choices=range(1, 1001), metavar="N", help="6, in every round")
    parser.add_argument("--new-tokens", type=int, choices=range(2, 100_001), metavar="N", help="64, of every answer")
    parser.add_argument("--seed", type=int, help="of the order and the prompts")
    parser.add_argument("--quick", action="store_true", help="so little that it shows whether all runs, and nothing else")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    return parser.parse_args(words)


def options_of(given: argparse.Namespace) -> Options:
    """What was asked for, over the quick or the full measure."""
    told = {name: getattr(given, name) for name in Options.__slots__ if getattr(given, name, None) is not None}
    if "at_once" in told:
        told["at_once"] = tuple(sorted(set(told["at_once"])))
    return replace(QUICK if given.quick else Options(), **told)


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    gap = Gap(given, options_of(given), create_run(given.out, "gap", facts(given, options_of(given), words)))
    try:
        gap.measure()
    except PeerFailed as error:
        gap.run.note({"kind": "failed", "why": str(error)})
        tell(f"{error}; what was measured until then: {gap.run.path}")
        return 1
    finally:
        gap.run.close()
    shown = table(gap.rows, gap.options.at_once)
    sys.stdout.write(f"{shown}\n\n{'Quick: no measurement. ' if given.quick else ''}Each wave: {gap.run.path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
