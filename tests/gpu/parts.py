"""Which parts there are, in which order and for how long; runs each in a process of its own and collects what it finds.

Knows nothing of torch: a card whose driver hangs must not hang this process.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu.machine import facts

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 460.0  # of all parts together
SCRATCH_BYTES = 20 * 2**30  # for a model of 16 GB
MARGIN_S = 3.0  # a part that ends by itself is asked to do so this much earlier
Line = dict[str, Any]
Note = Callable[[Line], None]


@dataclass(frozen=True)
class Part:
    """`weight` is its share of the seconds; what a part leaves goes to those after it."""

    name: str
    number: int  # in the exit code
    weight: float


PARTS = (
    Part("answers", 1, 100),  # tokens, scores and forms against transformers
    Part("quantized", 2, 90),  # layers in 4 and 8 bits, memory, out of memory
    Part("speed", 4, 85),  # an 8B shape in bfloat16
    Part("speed-nf4", 8, 42),
    Part("speed-int4", 64, 42),
    Part("server", 16, 80),  # over HTTP, one and two replicas, a killed worker
    Part("peers", 32, 55),  # transformers' own ways to generate, with the weights of `speed`
)


def limit_s(parts: Sequence[Part], left_s: float) -> float:
    """Seconds of the first of these parts, of those that are left for all of them."""
    return left_s * parts[0].weight / sum(part.weight for part in parts)


def run_part(command: Sequence[str], seconds: float, log: Path, note: Note) -> bool:
    """Run a part, at most so long, and pass on its lines; returns whether all of it went well."""
    with log.open("ab") as errors:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
    timed_out = threading.Event()
    timer = threading.Timer(seconds, lambda: (timed_out.set(), end_group(process)))
    timer.start()
    good = True
    assert process.stdout is not None
    for raw in process.stdout:
        with contextlib.suppress(ValueError):  # what a library prints
            line = json.loads(raw)
            if isinstance(line, dict) and "kind" in line:
                good = good and line.get("ok", True)
                note(line)
    code = process.wait()
    timer.cancel()
    end_group(process)  # what it has left running
    if timed_out.is_set():
        note({"kind": "ended", "ok": False, "why": f"stopped after {seconds:.0f} s"})
    elif code not in (0, 1):
        note({"kind": "ended", "ok": False, "why": f"ended with code {code}", "log": last_lines(log)})
    return good and code == 0


def end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def last_lines(log: Path, count: int = 12) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-count:]


def scratch_folder() -> Path:
    """Where models of 16 GB are written and read: memory, where there is enough of it."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > SCRATCH_BYTES
    return Path(tempfile.mkdtemp(prefix="litmus-gpu-", dir=memory if roomy else None))


def words(line: Line) -> str:
    """A line for people."""
    mark = {True: "ok  ", False: "FAIL"}.get(line.get("ok"), "    ")
    hidden = {"kind", "ok", "name", "part", "at_s", "log", "trace"}
    rest = ", ".join(f"{key} {value}" for key, value in line.items() if key not in hidden and value not in ("", None))
    tail = "".join(f"\n         {text}" for text in line.get("trace", line.get("log", [])))
    return f"{mark} {line.get('part', '')}: {line.get('name', line['kind'])}{f' ({rest})' if rest else ''}{tail}\n"


def check(parts: Sequence[Part], options: argparse.Namespace, note: Note, log: Path) -> int:
    """Run the parts; returns the exit code."""
    begin, scratch, failed = time.monotonic(), options.scratch or scratch_folder(), 0
    scratch.mkdir(parents=True, exist_ok=True)
    note({"kind": "scratch", "folder": str(scratch), "free_gb": round(shutil.disk_usage(scratch).free / 1e9, 1)})
    try:
        for place, part in enumerate(parts):
            seconds = limit_s(parts[place:], options.seconds - (time.monotonic() - begin))
            command = [sys.executable, str(Path(__file__).parent), "--run", part.name, "--seconds", f"{seconds - MARGIN_S:.1f}"]
            command += ["--device", options.device, "--scratch", str(scratch), "--port", str(options.port)]
            started = time.monotonic()

            def tell(line: Line, name: str = part.name) -> None:
                note({"part": name, "at_s": round(time.monotonic() - begin, 1), **line})

            good = run_part(command, seconds, log, tell)
            tell({"kind": "part", "name": "all of it", "ok": good, "seconds": round(time.monotonic() - started, 1)})
            failed += 0 if good else part.number
    finally:
        if options.scratch is None:
            shutil.rmtree(scratch, ignore_errors=True)
    return failed


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="python tests/gpu", description="Checks and measures Litmus on a CUDA card.")
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help=f"default: all, {' '.join(names)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument("--device", default="cuda:0", help="cpu: the same program with tiny shapes, to see that it runs")
    parser.add_argument("--port", type=int, default=8530, help="of the server in the part `server`")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--scratch", type=Path, help="folder for the models, which stay there for the next run; default: a new one")
    parser.add_argument("--run", choices=names, help=argparse.SUPPRESS)  # this process is that part
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    options = parse_args(argv)
    if options.run is not None:
        from gpu.child import run

        return run(options)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"gpu-{datetime.now(UTC):%Y%m%dT%H%M%S}Z.jsonl"
    with path.open("x", encoding="utf-8") as file:

        def note(line: Line) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()
            sys.stdout.write(words(line))
            sys.stdout.flush()

        note({"kind": "manifest", "time": datetime.now(UTC).isoformat(timespec="seconds"), "device": options.device, **facts(ROOT)})
        failed = check([part for part in PARTS if part.name in options.parts], options, note, path.with_suffix(".log"))
        note({"kind": "end", "ok": not failed, "exit_code": failed})
    sys.stdout.write(f"written to {path}\n")
    return failed
