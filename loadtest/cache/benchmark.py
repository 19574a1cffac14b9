"""`python -m loadtest.cache.benchmark`: measures what a start costs from a disk and from memory. Prints a table; writes runs/cache-*.jsonl.

Run again with the same options, it resumes where it stopped. loadtest.cache.trial measures one start, loadtest.cache.storage sets the
state of the files.
"""

import argparse
import fcntl
import hashlib
import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from loadtest.cache import storage
from loadtest.cache.storage import CannotMeasure
from loadtest.cache.trial import Cell, Factors, Failed, ModelPaths, Refused, Storage, measure_start, plan_cells, shuffle_starts, table
from loadtest.peers.servers import available_cores
from loadtest.run import Run, create_run, git_commit, machine_facts, report_progress

STORAGES = get_args(Storage)
READ_METHODS = ("mmap", "read", "pread")
QUANTIZATIONS = ("none", "int8", "nf4", "fp4", "int4")
FULL_DEFAULTS = {"repeats": 10, "by": ["mmap", "read"], "quantize": ["none", "int8", "nf4", "int4"]}
QUICK_DEFAULTS = {"repeats": 2, "by": ["mmap", "read"], "quantize": ["none", "nf4"]}
VOCABULARY_SIZE, CONTEXT = 49152, 4096
APP_FOLDER = Path(__file__).resolve().parents[2] / "app"
PACKAGES = ("torch", "transformers", "safetensors", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a Llama with heads of 64 values, three heads for each KV head, and a feed-forward 8/3 of the hidden size."""

    hidden: int
    layers: int

    @property
    def parameters(self) -> int:
        return VOCABULARY_SIZE * self.hidden + self.layers * 32 * self.hidden**2 // 3

    def options(self) -> list[str]:
        heads = self.hidden // 64
        sizes = {"hidden": self.hidden, "layers": self.layers, "heads": heads, "kv-heads": heads // 3, "ff": 8 * self.hidden // 3}
        return [arg for name, value in sizes.items() for arg in (f"--{name}", str(value))]


def shape_of(size: str) -> Shape:
    """Returns the shape nearest to `size` (135M, 1.7B) whose hidden size is about 24 times its layers. Raises `ValueError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([MB])", size.upper())
    parameters = float(match[1]) * {"M": 1e6, "B": 1e9}[match[2]] if match else 0
    if not 20e6 <= parameters <= 10e9:
        raise ValueError(f"{size!r}: a size is a number of parameters from 20M to 10B, such as 135M or 1.7B")
    shapes = [Shape(hidden, round((parameters - VOCABULARY_SIZE * hidden) / (32 * hidden**2 / 3))) for hidden in range(192, 8192, 192)]
    return min((shape for shape in shapes if shape.layers > 0), key=lambda shape: abs(math.log(shape.hidden / shape.layers / 24)))


def ensure_model(size: str, out: Path) -> Path:
    """Returns the folder of a random-weight model of that size under `out`; makes the model if it is missing."""
    folder = out / f"llama-{size.lower()}"
    if not (folder / "tokenizer_config.json").is_file():  # written last
        report_progress(f"making {folder} ...")
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        options = [*shape_of(size).options(), "--vocabulary", str(VOCABULARY_SIZE)]
        subprocess.run([sys.executable, "-m", "models.synthetic", "--out", str(part), *options], check=True, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    return folder


def model_folders(args: argparse.Namespace) -> dict[str, Path]:
    """Returns the folders by model name, as rows name them. Raises `CannotMeasure`."""
    sizes = args.size or ([] if args.model else ["135M"])
    folders = [*args.model, *(ensure_model(size, args.out) for size in sizes)]
    by_name = {folder.resolve().name: folder for folder in folders}
    if len(by_name) < len(folders):
        raise CannotMeasure("two models have folders of the same name, so rows could not tell them apart: rename one folder")
    for folder in folders:
        storage.check_disk(folder)
    return by_name


def fingerprint(paths: Iterable[Path]) -> str:
    """Hashes names, sizes and modification times: a run is not resumed with other files."""
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def plan_of(args: argparse.Namespace, factors: Factors, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Returns all that rows of one run have in common. The number of repeats is left out, so that a run can be extended."""
    app_digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(APP_FOLDER.rglob("*.py")))).hexdigest()[:12]
    digests = {name: fingerprint(storage.files_of(folder)) for name, folder in folders.items()}
    options = {"factors": asdict(factors), "cross": args.cross, "seed": args.seed, "device": args.device}
    versions = {name: version(name) for name in PACKAGES}
    environment = {"models": digests, "app": app_digest, "versions": versions, "machine": machine_facts()["machine"]}
    return json.loads(json.dumps({**options, **environment}))


def open_run(out: Path, plan: dict[str, Any], facts: dict[str, Any]) -> tuple[Run, list[dict[str, Any]]]:
    """Opens the newest run with this plan, or creates one; returns it with its rows.

    A last line that was cut short is removed from the file. Raises `CannotMeasure` if the run is damaged or another process writes it.
    """
    for path in sorted(out.glob("cache-*.jsonl"), reverse=True):
        with path.open(encoding="utf-8") as file:
            head = file.readline()
        if not head.endswith("\n") or json.loads(head).get("plan") != plan:
            continue
        run = Run(path, path.open("r+", encoding="utf-8"))
        _lock(run)
        complete = path.read_bytes().rpartition(b"\n")[0] + b"\n"
        run.file.truncate(len(complete))
        run.file.seek(0, 2)
        try:
            return run, [json.loads(line) for line in complete.splitlines()]
        except ValueError as error:
            raise CannotMeasure(f"{path} has a line that is not JSON ({error}); move the file away to start a new run") from error
    run = create_run(out, "cache", {"plan": plan, **facts})
    _lock(run)
    return run, []


def _lock(run: Run) -> None:
    try:
        fcntl.flock(run.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CannotMeasure(f"another process is writing {run.path}; wait until it has ended") from error


@contextmanager
def memory_copies(folders: Mapping[str, Path], target: Path, needed: bool) -> Iterator[dict[str, ModelPaths]]:
    """Yields the paths of the models. If `needed`, they have copies under `target` on a tmpfs inside the block. Raises `CannotMeasure`."""
    try:
        yield {
            name: ModelPaths(folder, storage.copy_to_memory(folder, target.parent, target / name) if needed else None)
            for name, folder in folders.items()
        }
    finally:
        shutil.rmtree(target, ignore_errors=True)


def measure(run: Run, rows: list[dict[str, Any]], starts: Sequence[tuple[Cell, int]], paths: Mapping[str, ModelPaths], device: str) -> bool:
    """Measures every start that `rows` lacks and appends its row. Returns whether all of them could be measured."""
    done = {(*(row[name] for name in Cell.__slots__), row["repeat"]) for row in rows if row["kind"] == "start"}
    succeeded = True
    for number, (cell, repeat) in enumerate(starts, 1):
        if (*asdict(cell).values(), repeat) in done:
            continue
        head = {"repeat": repeat, "order": number, "at": utc_now()}
        try:
            row = {"kind": "start", **head, **measure_start(cell, paths[cell.model], device)}
            summary = f"{row['load_s']:.2f} s"
        except (Refused, Failed) as error:
            row = {"kind": type(error).__name__.lower(), **head, **asdict(cell), "why": str(error)}
            summary, succeeded = f"{row['kind']}: {error}", False
        run.note(row)
        rows.append(row)
        report_progress(f"{number}/{len(starts)} {' '.join(map(str, asdict(cell).values()))}: {summary}")
    return succeeded


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.cache.benchmark", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, nargs="+", default=[], help="folders of models, on a disk")
    parser.add_argument(
        "--size", nargs="+", default=[], help="random-weight models to make, such as 135M 1.7B; default 135M without --model"
    )
    parser.add_argument("--storage", nargs="+", choices=STORAGES, default=list(STORAGES))
    parser.add_argument("--by", nargs="+", choices=READ_METHODS, help="mmap: as Litmus loads; read: whole files; pread: each tensor")
    parser.add_argument("--quantize", nargs="+", choices=QUANTIZATIONS)
    parser.add_argument("--cores", type=int, nargs="+", metavar="N", help="numbers of cores to compare; default all and 1")
    parser.add_argument(
        "--cross", action="store_true", help="measure all combinations, not one factor at a time from the first level of each"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        choices=range(1, 1001),
        metavar="N",
        help="starts of each combination; default 10; a higher number extends an earlier run",
    )
    parser.add_argument("--quick", action="store_true", help="a short run that shows whether everything works; not a measurement")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of starts")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args(argv)
    available = available_cores()
    core_counts = [available] if args.quick else sorted({available, 1}, reverse=True)
    defaults: dict[str, Any] = {**(QUICK_DEFAULTS if args.quick else FULL_DEFAULTS), "cores": core_counts}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not all(1 <= count <= available for count in args.cores):
        parser.error(f"--cores: this process may use 1 to {available} cores")
    try:
        for size in args.size:
            shape_of(size)
    except ValueError as error:
        parser.error(f"--size {error}")
    for folder in args.model:
        if not (folder / "config.json").is_file():
            parser.error(f"--model {folder}: not a folder with a config.json")
    return args


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the copy on the tmpfs is removed
    try:
        folders = model_folders(args)
        factors = Factors(tuple(folders), tuple(args.storage), tuple(args.by), tuple(args.quantize), tuple(args.cores))
        cells = plan_cells(factors, args.cross)
        disks = {
            name: {"file_system": storage.file_system_of(folder), "read_ahead_kb": storage.read_ahead_kb(folder)}
            for name, folder in folders.items()
        }
        run, rows = open_run(args.out, plan_of(args, factors, folders), {"disks": disks})
        run.note(
            {
                "kind": "call",
                "at": utc_now(),
                "command": shlex.join([sys.executable, "-m", "loadtest.cache.benchmark", *argv]),
                "commit": git_commit(),
            }
        )
        with memory_copies(folders, args.tmpfs / f"litmus-{run.path.stem}", "tmpfs" in args.storage) as paths:
            succeeded = measure(run, rows, shuffle_starts(cells, args.repeats, args.seed), paths, args.device)
    except CannotMeasure as error:
        report_progress(str(error))
        return 2
    run.close()
    sys.stdout.write(f"{table(rows, cells)}\n\n{'Quick run: not a measurement. ' if args.quick else ''}Every start is in {run.path}\n")
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
