"""`python -m loadtest.peers.benchmark`: Litmus beside its peers on this machine, in one run, as a table and as runs/engine-*.jsonl.

Each server and each bare measurement is a process of its own. Those whose tokens per second over HTTP are compared are up at once and
take turns, the others come one after the other. What is not on this machine is not run, and its rows say so. loadtest.peers.targets has the
rows, loadtest.peers.clients says what is asked, loadtest.peers.servers of whom, loadtest.peers.roundrobin in which order.
"""

import argparse
import asyncio
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loadtest.peers import clients, roundrobin, servers
from loadtest.peers.clients import QUICK, Options, Round
from loadtest.peers.servers import Peer, PeerAbsent, PeerFailed
from loadtest.peers.targets import ROWS, chosen, contests, owner, table, wanted
from loadtest.process import ended
from loadtest.run import Run, create_run, installed, tell
from loadtest.summary import percentile

MODEL = Path("runs/llama-135m")
VERSIONS = ("torch", "transformers", "bitsandbytes", "litserve", "accelerate")
SLOTS = 32
LLAMA_CONTEXT = 512  # tokens a slot: more than prompt and answer
UNEQUAL = 0.02  # share by which prompts may differ in tokens between two servers


@dataclass(slots=True)
class Bench:
    """One run: what was found, and what could not be."""

    given: argparse.Namespace
    options: Options
    run: Run
    values: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, float] = field(default_factory=dict)  # prompt tokens a request, by value
    failed: bool = False

    def note(self, name: str, number: float, **more: Any) -> None:
        self.values[name] = number
        self.run.note({"kind": "measurement", "name": name, "value": number, **more})

    @contextmanager
    def excused(self, who: str) -> Iterator[None]:
        """What of one `what/weights` cannot be measured is missing with its reason."""
        try:
            yield
        except PeerAbsent as error:
            self.lack(who, f"not run: {error}")
        except PeerFailed as error:
            self.lack(who, f"failed: {error}")
            self.failed = True

    def lack(self, who: str, why: str) -> None:
        self.missing[who] = why
        self.run.note({"kind": "missing", "name": who, "why": why})
        tell(f"{who}: {why}")

    async def contest(self, names: Sequence[str]) -> None:
        """Rounds in turn of everyone in `names`, values all, who can be started; the first is not counted."""
        tell(f"in turn: {', '.join(names)} ...")
        count = 1 if names[0].endswith("/alone") else self.options.clients
        found: dict[str, list[Round]] = {}
        async with AsyncExitStack() as stack:
            plays: dict[str, roundrobin.Play] = {}
            for name in [name for name in names if owner(name) not in self.missing]:
                with self.excused(owner(name)):
                    plays[name] = await stack.enter_async_context(self.contender(name, count))
            for number, messages in enumerate(clients.rounds(self.options, count)):
                for name in [name for name in plays if owner(name) not in self.missing]:
                    with self.excused(owner(name)):
                        found.setdefault(name, []).append(await plays[name](messages))
                        tell(f"turn {number} of {self.options.rounds}: {name} {found[name][-1].tokens_per_s:.1f} tokens/s")
        for name in [name for name in found if owner(name) not in self.missing]:
            counted = found[name][1:]
            whole = clients.together(counted)
            self.lengths[name] = whole.prompt_tokens / whole.requests
            self.note(name, whole.tokens_per_s, clients=count, rounds=[asdict(one) for one in counted])

    def contender(self, name: str, count: int) -> AbstractAsyncContextManager[roundrobin.Play]:
        """Raises `PeerAbsent`."""
        if not name.startswith("engine/"):
            return roundrobin.served(self.peer(owner(name)), self.run.path.parent, self.options, count)
        return roundrobin.bare([*self.program(owner(name)), "--at-once", str(count), "--chats"], self.options.new_tokens)

    def attempt(self, who: str, names: set[str]) -> None:
        """All values of one `what/weights` that it has by itself, or why there are none."""
        tell(f"{who} ...")
        with self.excused(who):
            if who.split("/")[0] in ("engine", "manager", "generate"):
                self.bare(who)
            elif who.split("/")[0] in ("scorer", "published"):
                self.scoring(who)
            else:
                with servers.running(self.peer(who), self.run.path.parent) as server:
                    asyncio.run(self.ask(who, names, server))

    def program(self, who: str) -> list[str]:
        what, quantize = who.split("/")
        command = [sys.executable, "-m", "app.benchmarks.engine", "--model", str(self.given.model), "--what", what, "--quantize", quantize]
        return [*command, "--device", self.given.device, "--new-tokens", str(self.options.new_tokens)]

    def bare(self, who: str) -> None:
        crowd = self.options.clients
        counts = [crowd] if who.startswith("generate/") else sorted({1, min(8, crowd), crowd})
        command = [*self.program(who), "--repeats", str(self.options.repeats), "--at-once", *map(str, counts)]
        line = list(answers(command, self.run))[-1]
        self.note(f"{who}/whole", line["tokens_per_s"])
        if line["decode_per_s"] is not None:
            self.note(f"{who}/decode", line["decode_per_s"])

    def scoring(self, who: str) -> None:
        what, quantize = who.split("/")
        command = [sys.executable, "-m", "app.benchmarks.scoring", "--model", str(self.given.model), "--quantize", quantize]
        command += ["--what", "engine" if what == "scorer" else what, "--device", self.given.device, "--texts", str(self.options.texts)]
        command += ["--repeats", str(self.options.repeats), "--lengths", *map(str, self.options.lengths)]
        (line,) = answers(command, self.run)
        self.note(f"{who}/rate", line["texts_per_s"])
        self.note(f"{who}/peak", line["peak_bytes"] / 1e6)

    def peer(self, who: str) -> Peer:
        """How to start it. Raises `PeerAbsent`."""
        given = self.given
        what, weights = who.split("/")
        if what == "litmus":
            return servers.litmus(str(given.model), given.four_bit if weights == "4bit" else "none", given.device, SLOTS)
        if what == "transformers":
            return servers.transformers(str(given.model), given.device)
        binary = servers.find_llama(given.llama_server)
        return servers.llama(binary, find_gguf(given, weights, binary), SLOTS, LLAMA_CONTEXT)

    async def ask(self, who: str, names: set[str], server: servers.Server) -> None:
        async with clients.chatter(server) as chatter:
            await clients.warm(chatter, self.options)
            if "continued" in names:
                talks = await clients.continued(chatter, self.options)
                lines = [asdict(talk) for talk in talks]
                self.note(f"{who}/first", statistics.median(talk.first_ms for talk in talks), talks=lines)
                self.note(f"{who}/continued", statistics.median(talk.continued_ms for talk in talks))
            if "pressed" in names:
                found_gaps = await clients.press(chatter, self.options)
                calm = [gap for one in found_gaps for gap in one.calm_ms]
                pressed = [gap for one in found_gaps for gap in one.pressed_ms]
                self.note(f"{who}/calm", statistics.median(calm), gaps=len(calm))
                self.note(f"{who}/pressed", percentile(pressed, 0.99), gaps=len(pressed), presses=[asdict(one) for one in found_gaps])
            if "beside" in names:
                for value, scoring in (("apart", False), ("beside", True)):
                    times = await clients.tpot(chatter, self.options, scoring)
                    self.note(f"{who}/{value}", percentile(times, 0.95), chats=len(times), tpot_ms=times)

    def check_lengths(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Rates are comparable only where the prompts were equally long."""
        for ours, theirs in pairs:
            mine, other = self.lengths.get(ours), self.lengths.get(theirs)
            if mine and other and abs(mine - other) > UNEQUAL * mine:
                self.values.pop(theirs)
                self.missing[owner(theirs)] = f"failed: prompts of {other:.1f} tokens beside Litmus's {mine:.1f}"
                self.failed = True


def answers(command: Sequence[str], run: Run) -> Iterator[dict[str, Any]]:
    """The JSON lines of `app.benchmarks.engine`, kept in the run. Raises `PeerFailed`."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PeerFailed(ended(command[1:], done.returncode, done.stderr))
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            run.note(found)
            yield found


def find_gguf(given: argparse.Namespace, weights: str, binary: Path) -> Path:
    """The F16 file given, or made of the model made here; its Q4_0 beside it, or made by llama-quantize. Raises `PeerAbsent`."""
    whole: Path = given.gguf or MODEL.with_name(f"{MODEL.name}-f16.gguf")
    if not whole.is_file() and (given.gguf or given.model != MODEL):
        raise PeerAbsent(f"{whole} is no file" if given.gguf else "no GGUF of this model; give one with --gguf (make: GGUF=...)")
    if not whole.is_file():
        if find_spec("gguf") is None:
            raise PeerAbsent("no GGUF; give one with --gguf (make: GGUF=...), or pip install gguf")
        make_model("--gguf")
    return whole if weights == "f16" else quantized(whole, given.gguf_4bit, binary)


def quantized(whole: Path, given: Path | None, binary: Path) -> Path:
    small = given or whole.with_name(whole.stem.replace("-f16", "").replace("-F16", "") + "-q4_0.gguf")
    tool = binary.with_name("llama-quantize")
    if not small.is_file() and given is None and tool.is_file():
        subprocess.run([*servers.with_libraries(tool), str(whole), str(small), "Q4_0"], check=True, capture_output=True)
    if not small.is_file():
        raise PeerAbsent(f"{small} is no file; give one with --gguf-4bit")
    return small


def make_model(*more: str) -> None:
    subprocess.run([sys.executable, "-m", "models.synthetic", "--out", str(MODEL), *more], check=True, capture_output=True)


def facts(given: argparse.Namespace, options: Options, words: Sequence[str]) -> dict[str, Any]:
    return {
        "command": shlex.join([sys.executable, "-m", "loadtest.peers.benchmark", *words]),
        "commit": output("git", "describe", "--always", "--dirty", "--abbrev=40"),
        "versions": {name: installed(name) for name in VERSIONS},
        "llama_server": servers.llama_version(given.llama_server),
        "cores": servers.cores(),
        "model": str(given.model),
        "four_bit": given.four_bit,
        "device": given.device,
        "options": asdict(options),
    }


def output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.peers.benchmark", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=MODEL, help="folder; a random one of 135 million parameters is made when not given")
    parser.add_argument("--gguf", type=Path, help="the same model for llama-server, F16")
    parser.add_argument("--gguf-4bit", type=Path, help="the same, Q4_0; llama-quantize makes it when not given")
    parser.add_argument("--llama-server", type=Path, help="when it is not on PATH")
    default = "nf4" if Path("/dev/nvidiactl").exists() else "int4"
    parser.add_argument("--four-bit", choices=["int4", "nf4", "fp4"], default=default, help="Litmus's weights beside Q4_0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), choices=ROWS, metavar="N", help="rows of the table; all")
    parser.add_argument("--quick", action="store_true", help="so little of everything that it shows whether all runs, and nothing else")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    options = QUICK if given.quick else Options()
    if given.model == MODEL and not (MODEL / "config.json").is_file():
        make_model()
    marks = chosen(given.rows)
    bench = Bench(given, options, create_run(given.out, "engine", facts(given, options, words)))
    for names in contests(marks):
        asyncio.run(bench.contest(names))
    for who, values in wanted(marks).items():
        bench.attempt(who, values)
    bench.check_lengths([(mark.ours, mark.theirs) for mark in marks])
    shown = table(marks, bench.values, bench.missing)
    bench.run.note({"kind": "table", "markdown": shown})
    bench.run.close()
    sys.stdout.write(f"{shown}\n\n{'Quick: no measurement. ' if given.quick else ''}Each measurement: {bench.run.path}\n")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
