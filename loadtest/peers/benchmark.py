"""`python -m loadtest.peers.benchmark`: measures Litmus beside its peers on this machine. Prints a table; writes runs/engine-*.jsonl.

Each server and each in-process measurement is a process of its own. Servers whose tokens per second are compared run at once and take
turns (loadtest.peers.roundrobin); all else is measured one after the other. Rows of a peer that is not installed say so. The rows are in
loadtest.peers.targets, the load in loadtest.peers.clients, the servers in loadtest.peers.servers.
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
from pathlib import Path
from typing import Any

from loadtest.peers import clients, roundrobin, servers
from loadtest.peers.clients import QUICK, Options, Round
from loadtest.peers.servers import Peer, PeerAbsent, PeerFailed
from loadtest.peers.targets import ROWS, numbers_by_subject, round_groups, subject_of, table, targets_of_rows
from loadtest.process import exit_message
from loadtest.run import Run, create_run, installed_version, report_progress
from loadtest.summary import percentile

MODEL = Path("runs/llama-135m")
VERSIONED_PACKAGES = ("torch", "transformers", "bitsandbytes", "litserve", "accelerate")
SLOTS = 32
LLAMA_CONTEXT_TOKENS = 512  # of each slot: more than prompt and answer
MAX_LENGTH_DIFFERENCE = 0.02  # relative; between the mean prompt tokens of two servers that are compared


@dataclass(slots=True)
class Bench:
    """One run: the values measured so far by name, and why others are missing by subject (see loadtest.peers.targets)."""

    args: argparse.Namespace
    options: Options
    run: Run
    values: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, float] = field(default_factory=dict)  # mean prompt tokens of a request, by value
    failed: bool = False

    def record_value(self, name: str, value: float, **details: Any) -> None:
        self.values[name] = value
        self.run.note({"kind": "measurement", "name": name, "value": value, **details})

    @contextmanager
    def failures_recorded(self, subject: str) -> Iterator[None]:
        """Records a failure inside the block as the reason why values of the subject are missing."""
        try:
            yield
        except PeerAbsent as error:
            self.record_missing(subject, f"not run: {error}")
        except PeerFailed as error:
            self.record_missing(subject, f"failed: {error}")
            self.failed = True

    def record_missing(self, subject: str, reason: str) -> None:
        self.missing[subject] = reason
        self.run.note({"kind": "missing", "name": subject, "why": reason})
        report_progress(f"{subject}: {reason}")

    async def compare_in_rounds(self, names: Sequence[str]) -> None:
        """Measures the values in `names` by rounds in turn; the first round is not counted. Subjects that fail drop out."""
        report_progress(f"in turn: {', '.join(names)} ...")
        count = 1 if names[0].endswith("/alone") else self.options.clients
        rounds: dict[str, list[Round]] = {}
        async with AsyncExitStack() as stack:
            contenders: dict[str, roundrobin.RunRound] = {}
            for name in [name for name in names if subject_of(name) not in self.missing]:
                with self.failures_recorded(subject_of(name)):
                    contenders[name] = await stack.enter_async_context(self.contender(name, count))
            for number, messages in enumerate(clients.prompts_by_round(self.options, count)):
                for name in [name for name in contenders if subject_of(name) not in self.missing]:
                    with self.failures_recorded(subject_of(name)):
                        rounds.setdefault(name, []).append(await contenders[name](messages))
                        report_progress(f"round {number} of {self.options.rounds}: {name} {rounds[name][-1].tokens_per_s:.1f} tokens/s")
        for name in [name for name in rounds if subject_of(name) not in self.missing]:
            counted = rounds[name][1:]
            total = clients.sum_rounds(counted)
            self.lengths[name] = total.prompt_tokens / total.requests
            self.record_value(name, total.tokens_per_s, clients=count, rounds=[asdict(each) for each in counted])

    def contender(self, name: str, count: int) -> AbstractAsyncContextManager[roundrobin.RunRound]:
        """Returns the context that starts the subject of a value and yields a function to run a round. Raises `PeerAbsent`."""
        if not name.startswith("engine/"):
            return roundrobin.server_contender(self.peer_of(subject_of(name)), self.run.path.parent, self.options, count)
        return roundrobin.program_contender(
            [*self.engine_command(subject_of(name)), "--at-once", str(count), "--chats"], self.options.new_tokens
        )

    def measure_subject(self, subject: str, names: set[str]) -> None:
        """Measures the values of one subject that need no rounds in turn, or records why they are missing."""
        report_progress(f"{subject} ...")
        with self.failures_recorded(subject):
            if subject.split("/")[0] in ("engine", "manager", "generate"):
                self.measure_engine(subject)
            elif subject.split("/")[0] in ("scorer", "published"):
                self.measure_scoring(subject)
            else:
                with servers.running(self.peer_of(subject), self.run.path.parent) as server:
                    asyncio.run(self.measure_server(subject, names, server))

    def engine_command(self, subject: str) -> list[str]:
        program, quantize = subject.split("/")
        command = [
            sys.executable,
            "-m",
            "app.benchmarks.engine",
            "--model",
            str(self.args.model),
            "--what",
            program,
            "--quantize",
            quantize,
        ]
        return [*command, "--device", self.args.device, "--new-tokens", str(self.options.new_tokens)]

    def measure_engine(self, subject: str) -> None:
        most = self.options.clients
        counts = [most] if subject.startswith("generate/") else sorted({1, min(8, most), most})
        command = [*self.engine_command(subject), "--repeats", str(self.options.repeats), "--at-once", *map(str, counts)]
        line = list(run_program(command, self.run))[-1]
        self.record_value(f"{subject}/whole", line["tokens_per_s"])
        if line["decode_per_s"] is not None:
            self.record_value(f"{subject}/decode", line["decode_per_s"])

    def measure_scoring(self, subject: str) -> None:
        program, quantize = subject.split("/")
        command = [sys.executable, "-m", "app.benchmarks.scoring", "--model", str(self.args.model), "--quantize", quantize]
        command += [
            "--what",
            "engine" if program == "scorer" else program,
            "--device",
            self.args.device,
            "--texts",
            str(self.options.texts),
        ]
        command += ["--repeats", str(self.options.repeats), "--lengths", *map(str, self.options.lengths)]
        (line,) = run_program(command, self.run)
        self.record_value(f"{subject}/rate", line["texts_per_s"])
        self.record_value(f"{subject}/peak", line["peak_bytes"] / 1e6)

    def peer_of(self, subject: str) -> Peer:
        """Returns the server of a subject. Raises `PeerAbsent`."""
        args = self.args
        program, weights = subject.split("/")
        if program == "litmus":
            return servers.litmus_peer(str(args.model), args.four_bit if weights == "4bit" else "none", args.device, SLOTS)
        if program == "transformers":
            return servers.transformers_peer(str(args.model), args.device)
        binary = servers.find_llama_server(args.llama_server)
        return servers.llama_peer(binary, find_gguf(args, weights, binary), SLOTS, LLAMA_CONTEXT_TOKENS)

    async def measure_server(self, subject: str, names: set[str], server: servers.Server) -> None:
        async with clients.connect(server) as client:
            await clients.warm_up(client, self.options)
            if "continued" in names:
                conversations = await clients.measure_continued(client, self.options)
                lines = [asdict(conversation) for conversation in conversations]
                self.record_value(
                    f"{subject}/first", statistics.median(conversation.first_ms for conversation in conversations), conversations=lines
                )
                self.record_value(f"{subject}/continued", statistics.median(conversation.continued_ms for conversation in conversations))
            if "pressed" in names:
                measurements = await clients.measure_prefill_interference(client, self.options)
                calm = [gap for each in measurements for gap in each.calm_ms]
                pressed = [gap for each in measurements for gap in each.pressed_ms]
                self.record_value(f"{subject}/calm", statistics.median(calm), gaps=len(calm))
                self.record_value(
                    f"{subject}/pressed", percentile(pressed, 0.99), gaps=len(pressed), presses=[asdict(each) for each in measurements]
                )
            if "beside" in names:
                for value, scoring in (("apart", False), ("beside", True)):
                    times = await clients.measure_tpot(client, self.options, scoring)
                    self.record_value(f"{subject}/{value}", percentile(times, 0.95), chats=len(times), tpot_ms=times)

    def check_lengths(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Drops a peer's value if its prompts had another length in tokens than ours: such rates cannot be compared."""
        for ours, theirs in pairs:
            our_tokens, their_tokens = self.lengths.get(ours), self.lengths.get(theirs)
            if our_tokens and their_tokens and abs(our_tokens - their_tokens) > MAX_LENGTH_DIFFERENCE * our_tokens:
                self.values.pop(theirs)
                self.missing[subject_of(theirs)] = f"failed: its prompts had {their_tokens:.1f} tokens, those of Litmus {our_tokens:.1f}"
                self.failed = True


def run_program(command: Sequence[str], run: Run) -> Iterator[dict[str, Any]]:
    """Runs one of app.benchmarks; writes its JSON lines to the run and yields them. Raises `PeerFailed`."""
    completed = subprocess.run(command, capture_output=True, text=True)
    if completed.returncode:
        raise PeerFailed(exit_message(command[1:], completed.returncode, completed.stderr))
    for line in completed.stdout.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            run.note(row)
            yield row


def find_gguf(args: argparse.Namespace, weights: str, binary: Path) -> Path:
    """Returns the GGUF of the model with these weights. Raises `PeerAbsent`.

    The F16 file is `args.gguf`, or is made from the synthetic model. For 4-bit weights it is quantized to Q4_0.
    """
    f16: Path = args.gguf or MODEL.with_name(f"{MODEL.name}-f16.gguf")
    if not f16.is_file() and (args.gguf or args.model != MODEL):
        raise PeerAbsent(f"{f16} is no file" if args.gguf else "no GGUF of this model; give one with --gguf (make: GGUF=...)")
    if not f16.is_file():
        make_model("--gguf")
    return f16 if weights == "f16" else quantized_gguf(f16, args.gguf_4bit, binary)


def quantized_gguf(f16: Path, path: Path | None, binary: Path) -> Path:
    """Returns `path`, or the Q4_0 file beside `f16`, which llama-quantize makes if it is missing. Raises `PeerAbsent`."""
    q4_0 = path or f16.with_name(f16.stem.replace("-f16", "").replace("-F16", "") + "-q4_0.gguf")
    quantizer = binary.with_name("llama-quantize")
    if not q4_0.is_file() and path is None and quantizer.is_file():
        subprocess.run([*servers.with_library_path(quantizer), str(f16), str(q4_0), "Q4_0"], check=True, capture_output=True)
    if not q4_0.is_file():
        raise PeerAbsent(f"{q4_0} is no file; give one with --gguf-4bit")
    return q4_0


def make_model(*options: str) -> None:
    subprocess.run([sys.executable, "-m", "models.synthetic", "--out", str(MODEL), *options], check=True, capture_output=True)


def run_facts(args: argparse.Namespace, options: Options, argv: Sequence[str]) -> dict[str, Any]:
    return {
        "command": shlex.join([sys.executable, "-m", "loadtest.peers.benchmark", *argv]),
        "commit": output_of("git", "describe", "--always", "--dirty", "--abbrev=40"),
        "versions": {name: installed_version(name) for name in VERSIONED_PACKAGES},
        "llama_server": servers.llama_server_version(args.llama_server),
        "cores": servers.available_cores(),
        "model": str(args.model),
        "four_bit": args.four_bit,
        "device": args.device,
        "options": asdict(options),
    }


def output_of(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.peers.benchmark", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=MODEL, help="folder; by default a random model of 135 million parameters is made")
    parser.add_argument("--gguf", type=Path, help="F16 GGUF of the same model, for llama-server")
    parser.add_argument("--gguf-4bit", type=Path, help="its Q4_0 GGUF; by default llama-quantize makes it")
    parser.add_argument("--llama-server", type=Path, help="the binary, if it is not on PATH")
    default = "nf4" if Path("/dev/nvidiactl").exists() else "int4"
    parser.add_argument("--four-bit", choices=["int4", "nf4", "fp4"], default=default, help="weights of Litmus that are compared with Q4_0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), choices=ROWS, metavar="N", help="rows of the table; default all")
    parser.add_argument("--quick", action="store_true", help="a short run that shows whether everything works; not a measurement")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    options = QUICK if args.quick else Options()
    if args.model == MODEL and not (MODEL / "config.json").is_file():
        make_model()
    targets = targets_of_rows(args.rows)
    bench = Bench(args, options, create_run(args.out, "engine", run_facts(args, options, argv)))
    for names in round_groups(targets):
        asyncio.run(bench.compare_in_rounds(names))
    for subject, values in numbers_by_subject(targets).items():
        bench.measure_subject(subject, values)
    bench.check_lengths([(target.ours, target.theirs) for target in targets])
    markdown = table(targets, bench.values, bench.missing)
    bench.run.note({"kind": "table", "markdown": markdown})
    bench.run.close()
    sys.stdout.write(f"{markdown}\n\n{'Quick run: not a measurement. ' if args.quick else ''}Every measurement is in {bench.run.path}\n")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
