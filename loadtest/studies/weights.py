"""`python -m loadtest.studies.weights`: measures memory, load time, speed and quality of each quantization; writes runs/weights-*.jsonl.

Each start and each measurement of speed is a fresh process, in a new random order in every repeat. Quality is measured
once (models.detector.quality), as the same texts always give the same scores: on stories for the bundled pair, on texts of many writers for
other models.
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
from loadtest.process import ProgramFailed, manifest_facts, markdown_table, run_module
from loadtest.run import Run, create_run, report_progress

MODEL = "models/storyteller"
QUANTIZATIONS = ("none", "int8", "nf4", "fp4", "int4")
COLUMNS = ("quantize", "dtype", "memory MB", "load s", "tokens/s at once", "perplexity", "AUROC")


@dataclass(slots=True)
class Bench:
    args: argparse.Namespace
    run: Run
    dtypes: dict[str, str] = field(default_factory=dict)  # that the first start reported, by quantization
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: bool = False

    def record_row(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.run.note(row)

    def measure_and_record(self, kind: str, quantize: str, repeat: int) -> None:
        """Measures once and records the rows. A failure becomes a row with its reason."""
        report_progress(f"{kind} {quantize} {repeat} ...")
        measures = {"start": self.measure_start, "speed": self.measure_speed, "quality": self.measure_quality}
        try:
            for row in measures[kind](quantize):
                self.record_row({"kind": kind, **row, "quantize": quantize, "repeat": repeat})
        except (ProgramFailed, trial.Failed, storage.CannotMeasure) as error:
            self.failed = True
            self.record_row({"kind": "failed", "what": kind, "quantize": quantize, "repeat": repeat, "why": str(error)})
            report_progress(f"failed: {error}")

    def measure_start(self, quantize: str) -> Iterator[dict[str, Any]]:
        with without_observer(self.args.model) as folder:
            row = start_engine(folder, quantize, self.args.device)
        self.dtypes[quantize] = row["dtype"]
        yield row

    def measure_speed(self, quantize: str) -> Iterator[dict[str, Any]]:
        args = self.args
        options = ["--model", args.model, "--quantize", quantize, "--device", args.device, "--dtype", self.dtypes[quantize]]
        options += ["--repeats", str(args.rounds), "--new-tokens", str(args.new_tokens), "--at-once", *map(str, args.at_once)]
        yield from ({**line, "kind": "speed"} for line in run_module("app.benchmarks.engine", *options))

    def measure_quality(self, quantize: str) -> Iterator[dict[str, Any]]:
        options = ["--quantize", quantize, "--data", str(self.args.data), "--device", self.args.device, "--texts", str(self.args.texts)]
        if self.args.model != MODEL:
            options += ["--model", self.args.model, "--source", "detect"]
        yield from run_module("models.detector.quality", *options)


@contextmanager
def without_observer(model: str) -> Iterator[str]:
    """Yields a folder of links to the model's files, so that the bundled model loads without its observer; a hub name as it is."""
    if not Path(model).is_dir():
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in Path(model).resolve().iterdir():
            (Path(folder) / path.name).symlink_to(path)
        yield folder


def start_engine(model: str, quantize: str, device: str) -> dict[str, Any]:
    """Measures one start from files in the page cache. `memory_bytes`: growth of resident memory from the imports to the first token."""
    if Path(model).is_dir():
        storage.read_all(storage.files_of(Path(model)))
    command = [sys.executable, "-m", "app.benchmarks.start", "--model", model, "--quantize", quantize, "--device", device]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        try:
            trial.read_reply(process, errors)
            imported_bytes = psutil.Process(process.pid).memory_info().rss
            measured = trial.read_reply(process, errors, b"\n")
        finally:
            process.kill()
            process.communicate()
    return {**measured, "imported_bytes": imported_bytes, "memory_bytes": measured["rss_bytes"] - imported_bytes}


def plan_measurements(quantizations: Sequence[str], repeats: int, seed: int) -> list[tuple[str, str, int]]:
    """Returns (kind, quantization, repeat): all starts and speeds in a new random order in every repeat, then the quality of each."""
    draw = random.Random(seed)
    cells = [(kind, quantize) for kind in ("start", "speed") for quantize in quantizations]
    shuffled = [(*cell, repeat) for repeat in range(1, repeats + 1) for cell in draw.sample(cells, len(cells))]
    return [*shuffled, *(("quality", quantize, 1) for quantize in quantizations)]


def table(rows: Sequence[dict[str, Any]], quantizations: Sequence[str], at_once: Sequence[int]) -> str:
    """Formats medians over the repeats as Markdown, with a dash where nothing was measured."""
    lines = []
    for quantize in quantizations:
        own_rows = [row for row in rows if row["quantize"] == quantize]
        starts = [row for row in own_rows if row["kind"] == "start"]
        speeds = [
            _median([row["tokens_per_s"] for row in own_rows if row["kind"] == "speed" and row["at_once"] == count]) for count in at_once
        ]
        quality: dict[str, Any] = next((row for row in own_rows if row["kind"] == "quality"), {"auroc": {}})
        areas = ", ".join(f"{method} {area[0]:.3f}" for method, area in quality["auroc"].items())
        cells = [_median([row["memory_bytes"] / 1e6 for row in starts]), _median([row["load_s"] for row in starts], 2), ", ".join(speeds)]
        perplexity = f"{quality['perplexity']:.2f}" if "perplexity" in quality else "-"
        lines.append([quantize, starts[0]["dtype"] if starts else "-", *cells, perplexity, areas or "-"])
    columns = [f"tokens/s of {', '.join(map(str, at_once))} at once" if name == "tokens/s at once" else name for name in COLUMNS]
    return markdown_table(columns, lines)


def _median(values: Sequence[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f}" if values else "-"


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.studies.weights", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=MODEL, help="folder or hub name")
    parser.add_argument("--quantize", nargs="+", choices=QUANTIZATIONS, default=list(QUANTIZATIONS))
    parser.add_argument("--at-once", type=int, nargs="+", metavar="N", help="requests in flight; default 1 8 32")
    parser.add_argument("--new-tokens", type=int, help="of an answer; default 64")
    parser.add_argument("--rounds", type=int, help="counted, of each process that measures speed; default 3")
    parser.add_argument("--repeats", type=int, help="starts, and measurements of speed; default 5")
    parser.add_argument("--texts", type=int, help="human and machine texts each, for quality; default 120; 0: no quality")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that contains stories/ and detect/")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order")
    parser.add_argument("--quick", action="store_true", help="a short run that shows whether everything works; not a measurement")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args(argv)
    full = {"at_once": [1, 8, 32], "new_tokens": 64, "rounds": 3, "repeats": 5, "texts": 120}
    quick = {"at_once": [1, 2, 4], "new_tokens": 8, "rounds": 1, "repeats": 2, "texts": 6}
    for name, value in (quick if args.quick else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    model = {"id": args.model, "device": args.device}
    bench = Bench(args, create_run(args.out, "weights", {**manifest_facts("loadtest.studies.weights", args, argv), "model": model}))
    for quantize in list(args.quantize):  # not counted: compiles kernels, reads the files, reports the dtype
        try:
            next(bench.measure_start(quantize))
        except (ProgramFailed, trial.Failed, storage.CannotMeasure) as error:
            bench.failed = True
            bench.record_row({"kind": "failed", "what": "start", "quantize": quantize, "repeat": 0, "why": str(error)})
            report_progress(f"{quantize}: {error}")
    for kind, quantize, repeat in plan_measurements(list(bench.dtypes), args.repeats, args.seed):
        if kind == "quality" and not args.texts:
            continue
        bench.measure_and_record(kind, quantize, repeat)
    bench.run.close()
    markdown = table(bench.rows, args.quantize, args.at_once)
    sys.stdout.write(f"{markdown}\n\n{'Quick run: not a measurement. ' if args.quick else ''}Every measurement is in {bench.run.path}\n")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
