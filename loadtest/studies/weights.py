"""`python -m loadtest.studies.weights`: what each quantization costs and saves: memory, load time, speed, quality, as runs/weights-*.jsonl.

Each start and each measurement of speed is a fresh process, all of a repeat in an order of its own. Speed and memory are those of
`--model`; quality is that of the bundled pair, as random weights have none (models.detector.quality, once: the same texts
give the same scores).
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from loadtest.cache import storage, trial
from loadtest.process import Failed, call, facts, markdown
from loadtest.run import Run, create_run, tell

MODEL = "models/storyteller"
WEIGHTS = ("none", "int8", "nf4", "fp4", "int4")
HEAD = ("quantize", "dtype", "memory MB", "load s", "tokens/s at once", "perplexity", "AUROC")


@dataclass(slots=True)
class Bench:
    given: argparse.Namespace
    run: Run
    dtypes: dict[str, str] = field(default_factory=dict)  # that a start computes in, by quantization
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: bool = False

    def note(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.run.note(row)

    def attempt(self, kind: str, quantize: str, repeat: int) -> None:
        """A failure is a row that says why."""
        tell(f"{kind} {quantize} {repeat} ...")
        measures = {"start": self.start, "speed": self.speed, "quality": self.quality}
        try:
            for row in measures[kind](quantize):
                self.note({"kind": kind, **row, "quantize": quantize, "repeat": repeat})
        except (Failed, trial.Failed, storage.NotThere) as error:
            self.failed = True
            self.note({"kind": "failed", "what": kind, "quantize": quantize, "repeat": repeat, "why": str(error)})
            tell(f"failed: {error}")

    def start(self, quantize: str) -> Iterator[dict[str, Any]]:
        with alone(self.given.model) as folder:
            found = start(folder, quantize, self.given.device)
        self.dtypes[quantize] = found["dtype"]
        yield found

    def speed(self, quantize: str) -> Iterator[dict[str, Any]]:
        given = self.given
        words = ["--model", given.model, "--quantize", quantize, "--device", given.device, "--dtype", self.dtypes[quantize]]
        words += ["--repeats", str(given.rounds), "--new-tokens", str(given.new_tokens), "--at-once", *map(str, given.at_once)]
        yield from ({**line, "kind": "speed"} for line in call("app.benchmarks.engine", *words).lines)

    def quality(self, quantize: str) -> Iterator[dict[str, Any]]:
        words = ["--quantize", quantize, "--data", str(self.given.data), "--device", self.given.device, "--texts", str(self.given.texts)]
        yield from call("models.detector.quality", *words).lines


@contextmanager
def alone(model: str) -> Iterator[str]:
    """The model without the observer that comes with the bundled one: a folder of links. A hub name stays what it is."""
    if not Path(model).is_dir():
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in Path(model).resolve().iterdir():
            (Path(folder) / path.name).symlink_to(path)
        yield folder


def start(model: str, quantize: str, device: str) -> dict[str, Any]:
    """One start from files that are in memory. `memory_bytes`: what the process grew by from its imports to its first token."""
    if Path(model).is_dir():
        storage.read(storage.files(Path(model)))
    command = [sys.executable, "-m", "app.benchmarks.start", "--model", model, "--quantize", quantize, "--device", device]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        try:
            trial.answer(process, errors)
            before = psutil.Process(process.pid).memory_info().rss
            found = trial.answer(process, errors, b"\n")
        finally:
            process.kill()
            process.communicate()
    return {**found, "imported_bytes": before, "memory_bytes": found["rss_bytes"] - before}


def plan(weights: Sequence[str], repeats: int, seed: int) -> list[tuple[str, str, int]]:
    """Every start and every speed in each repeat, in an order of its own; then the qualities."""
    draw = random.Random(seed)
    cells = [(kind, quantize) for kind in ("start", "speed") for quantize in weights]
    shuffled = [(*cell, repeat) for repeat in range(1, repeats + 1) for cell in draw.sample(cells, len(cells))]
    return [*shuffled, *(("quality", quantize, 1) for quantize in weights)]


def table(rows: Sequence[dict[str, Any]], weights: Sequence[str], at_once: Sequence[int]) -> str:
    """Medians over the repeats; a dash where there is nothing."""
    lines = []
    for quantize in weights:
        own = [row for row in rows if row["quantize"] == quantize]
        starts = [row for row in own if row["kind"] == "start"]
        speeds = [_median([row["tokens_per_s"] for row in own if row["kind"] == "speed" and row["at_once"] == count]) for count in at_once]
        quality: dict[str, Any] = next((row for row in own if row["kind"] == "quality"), {"auroc": {}})
        areas = ", ".join(f"{method} {area[0]:.3f}" for method, area in quality["auroc"].items())
        cells = [_median([row["memory_bytes"] / 1e6 for row in starts]), _median([row["load_s"] for row in starts], 2), ", ".join(speeds)]
        perplexity = f"{quality['perplexity']:.2f}" if "perplexity" in quality else "-"
        lines.append([quantize, starts[0]["dtype"] if starts else "-", *cells, perplexity, areas or "-"])
    head = [f"tokens/s of {', '.join(map(str, at_once))} at once" if name == "tokens/s at once" else name for name in HEAD]
    return markdown(head, lines)


def _median(values: Sequence[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f}" if values else "-"


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.studies.weights", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=MODEL, help="of memory, load and speed; quality is the bundled pair's")
    parser.add_argument("--quantize", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--at-once", type=int, nargs="+", metavar="N", help="requests in flight; 1 8 32")
    parser.add_argument("--new-tokens", type=int, help="of an answer; 64")
    parser.add_argument("--rounds", type=int, help="counted, of each process that measures speed; 3")
    parser.add_argument("--repeats", type=int, help="starts, and measurements of speed; 5")
    parser.add_argument("--texts", type=int, help="of each side, for quality; 120; 0 leaves quality out")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds stories/")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--quick", action="store_true", help="so little that it shows whether all runs, and nothing else")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    given = parser.parse_args(words)
    full = {"at_once": [1, 8, 32], "new_tokens": 64, "rounds": 3, "repeats": 5, "texts": 120}
    quick = {"at_once": [1, 2, 4], "new_tokens": 8, "rounds": 1, "repeats": 2, "texts": 6}
    for name, value in (quick if given.quick else full).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    model = {"id": given.model, "device": given.device}
    bench = Bench(given, create_run(given.out, "weights", {**facts("loadtest.studies.weights", given, words), "model": model}))
    for quantize in list(given.quantize):  # not counted: kernels are compiled and their files read; it also tells the dtype
        try:
            next(bench.start(quantize))
        except (Failed, trial.Failed, storage.NotThere) as error:
            bench.failed = True
            bench.note({"kind": "failed", "what": "start", "quantize": quantize, "repeat": 0, "why": str(error)})
            tell(f"{quantize}: {error}")
    for kind, quantize, repeat in plan(list(bench.dtypes), given.repeats, given.seed):
        if kind == "quality" and not given.texts:
            continue
        bench.attempt(kind, quantize, repeat)
    bench.run.close()
    shown = table(bench.rows, given.quantize, given.at_once)
    sys.stdout.write(f"{shown}\n\n{'Quick: no measurement. ' if given.quick else ''}Each measurement: {bench.run.path}\n")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
