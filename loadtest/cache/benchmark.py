"""`python -m loadtest.cache.benchmark`: what a start costs from a disk and from memory, as a table and as runs/cache-*.jsonl, a line per
start.

The same command again goes on where the last one stopped. loadtest.cache.trial has the starts, loadtest.cache.storage the states of
the files.
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
from loadtest.cache.storage import NotThere
from loadtest.cache.trial import Cell, Factors, Failed, Place, Refused, Storage, cells, order, run, table
from loadtest.peers.servers import cores
from loadtest.run import Run, commit, create_run, machine, tell

STORAGES = get_args(Storage)
WAYS = ("mmap", "read", "pread")
WEIGHTS = ("none", "int8", "nf4", "fp4", "int4")
FULL = {"repeats": 10, "by": ["mmap", "read"], "quantize": ["none", "int8", "nf4", "int4"]}
QUICK = {"repeats": 2, "by": ["mmap", "read"], "quantize": ["none", "nf4"]}
VOCABULARY, CONTEXT = 49152, 4096
APP = Path(__file__).resolve().parents[2] / "app"
PACKAGES = ("torch", "transformers", "safetensors", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Llama: heads of 64, a key-value head for three of them, a feed-forward 8/3 as wide as the stream."""

    hidden: int
    layers: int

    @property
    def parameters(self) -> int:
        return VOCABULARY * self.hidden + self.layers * 32 * self.hidden**2 // 3

    def words(self) -> list[str]:
        heads = self.hidden // 64
        sizes = {"hidden": self.hidden, "layers": self.layers, "heads": heads, "kv-heads": heads // 3, "ff": 8 * self.hidden // 3}
        return [word for name, value in sizes.items() for word in (f"--{name}", str(value))]


def shape_of(size: str) -> Shape:
    """The shape nearest to `size` (135M, 1.7B) among those about 24 times as wide as deep. Raises `ValueError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([MB])", size.upper())
    wanted = float(found[1]) * {"M": 1e6, "B": 1e9}[found[2]] if found else 0
    if not 20e6 <= wanted <= 10e9:
        raise ValueError(f"{size!r}: a size is a number of parameters from 20M to 10B, such as 135M or 1.7B")
    shapes = [Shape(hidden, round((wanted - VOCABULARY * hidden) / (32 * hidden**2 / 3))) for hidden in range(192, 8192, 192)]
    return min((shape for shape in shapes if shape.layers > 0), key=lambda shape: abs(math.log(shape.hidden / shape.layers / 24)))


def folder_of(size: str, out: Path) -> Path:
    """A random-weight model of that size under `out`, made where it is not there yet."""
    folder = out / f"llama-{size.lower()}"
    if not (folder / "tokenizer_config.json").is_file():  # written last
        tell(f"making {folder} ...")
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        words = [*shape_of(size).words(), "--vocabulary", str(VOCABULARY)]
        subprocess.run([sys.executable, "-m", "models.synthetic", "--out", str(part), *words], check=True, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    return folder


def models(given: argparse.Namespace) -> dict[str, Path]:
    """Folders by the name that rows call them by. Raises `NotThere`."""
    sizes = given.size or ([] if given.model else ["135M"])
    folders = [*given.model, *(folder_of(size, given.out) for size in sizes)]
    found = {folder.resolve().name: folder for folder in folders}
    if len(found) < len(folders):
        raise NotThere("two models have folders of the same name: rows could not tell them apart")
    for folder in folders:
        storage.check_disk(folder)
    return found


def digest(paths: Iterable[Path]) -> str:
    """Of names, sizes and times of change: other files are another measurement."""
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def plan(given: argparse.Namespace, factors: Factors, folders: Mapping[str, Path]) -> dict[str, Any]:
    """All that rows must have in common to stand in one table; not how many there are."""
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(APP.rglob("*.py")))).hexdigest()[:12]
    models = {name: digest(storage.files(folder)) for name, folder in folders.items()}
    asked = {"factors": asdict(factors), "cross": given.cross, "seed": given.seed, "device": given.device}
    found = {"models": models, "app": code, "versions": {name: version(name) for name in PACKAGES}, "machine": machine()["machine"]}
    return json.loads(json.dumps({**asked, **found}))


def open_run(out: Path, wanted: dict[str, Any], facts: dict[str, Any]) -> tuple[Run, list[dict[str, Any]]]:
    """The newest run with this plan and the rows it has, a torn last line cut off; a new one where there is none. Raises `NotThere`."""
    for path in sorted(out.glob("cache-*.jsonl"), reverse=True):
        with path.open(encoding="utf-8") as file:
            head = file.readline()
        if not head.endswith("\n") or json.loads(head).get("plan") != wanted:
            continue
        found = Run(path, path.open("r+", encoding="utf-8"))
        _lock(found)
        whole = path.read_bytes().rpartition(b"\n")[0] + b"\n"
        found.file.truncate(len(whole))
        found.file.seek(0, 2)
        try:
            return found, [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise NotThere(f"{path} has a line that is no JSON ({error}); move it away to begin anew") from error
    found = create_run(out, "cache", {"plan": wanted, **facts})
    _lock(found)
    return found, []


def _lock(found: Run) -> None:
    try:
        fcntl.flock(found.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise NotThere(f"another process is writing {found.path}; wait for it") from error


@contextmanager
def copies(folders: Mapping[str, Path], home: Path, needed: bool) -> Iterator[dict[str, Place]]:
    """Where the models lie, with copies under `home` on a tmpfs while they are `needed`. Raises `NotThere`."""
    try:
        yield {name: Place(at, storage.copy_to_memory(at, home.parent, home / name) if needed else None) for name, at in folders.items()}
    finally:
        shutil.rmtree(home, ignore_errors=True)


def measure(found: Run, rows: list[dict[str, Any]], starts: Sequence[tuple[Cell, int]], places: Mapping[str, Place], device: str) -> bool:
    """Every start that `rows` does not have; they grow. False when one could not be had."""
    done = {(*(row[name] for name in Cell.__slots__), row["repeat"]) for row in rows if row["kind"] == "start"}
    well = True
    for number, (cell, repeat) in enumerate(starts, 1):
        if (*asdict(cell).values(), repeat) in done:
            continue
        head = {"repeat": repeat, "order": number, "at": now()}
        try:
            line = {"kind": "start", **head, **run(cell, places[cell.model], device)}
            said = f"{line['load_s']:.2f} s"
        except (Refused, Failed) as error:
            line = {"kind": type(error).__name__.lower(), **head, **asdict(cell), "why": str(error)}
            said, well = f"{line['kind']}: {error}", False
        found.note(line)
        rows.append(line)
        tell(f"{number}/{len(starts)} {' '.join(map(str, asdict(cell).values()))}: {said}")
    return well


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.cache.benchmark", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, nargs="+", default=[], help="folders on a disk")
    parser.add_argument(
        "--size", nargs="+", default=[], help="random-weight models to make, such as 135M 1.7B; 135M when there is no --model"
    )
    parser.add_argument("--storage", nargs="+", choices=STORAGES, default=list(STORAGES))
    parser.add_argument("--by", nargs="+", choices=WAYS, help="mmap, as Litmus loads; read: the whole file first; pread: each tensor")
    parser.add_argument("--quantize", nargs="+", choices=WEIGHTS)
    parser.add_argument("--cores", type=int, nargs="+", metavar="N", help="as many as there are, and one")
    parser.add_argument("--cross", action="store_true", help="all combinations, not one factor at a time from the first of each")
    parser.add_argument("--repeats", type=int, choices=range(1, 1001), metavar="N", help="10; more of them go on with what there is")
    parser.add_argument("--quick", action="store_true", help="so little that it shows whether all runs, and nothing else")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--out", type=Path, default=Path("runs"))
    given = parser.parse_args(words)
    most = cores()
    defaults: dict[str, Any] = {**(QUICK if given.quick else FULL), "cores": [most] if given.quick else sorted({most, 1}, reverse=True)}
    for name, value in defaults.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    if not all(1 <= count <= most for count in given.cores):
        parser.error(f"--cores: this process may use 1 to {most}")
    try:
        for size in given.size:
            shape_of(size)
    except ValueError as error:
        parser.error(f"--size {error}")
    for folder in given.model:
        if not (folder / "config.json").is_file():
            parser.error(f"--model {folder}: no folder with a config.json")
    return given


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the copy on the tmpfs goes
    try:
        folders = models(given)
        factors = Factors(tuple(folders), tuple(given.storage), tuple(given.by), tuple(given.quantize), tuple(given.cores))
        wanted = cells(factors, given.cross)
        disks = {name: {"file_system": storage.kind(at), "read_ahead_kb": storage.read_ahead_kb(at)} for name, at in folders.items()}
        found, rows = open_run(given.out, plan(given, factors, folders), {"disks": disks})
        found.note(
            {
                "kind": "call",
                "at": now(),
                "command": shlex.join([sys.executable, "-m", "loadtest.cache.benchmark", *words]),
                "commit": commit(),
            }
        )
        with copies(folders, given.tmpfs / f"litmus-{found.path.stem}", "tmpfs" in given.storage) as places:
            well = measure(found, rows, order(wanted, given.repeats, given.seed), places, given.device)
    except NotThere as error:
        tell(str(error))
        return 2
    found.close()
    sys.stdout.write(f"{table(rows, wanted)}\n\n{'Quick: no measurement. ' if given.quick else ''}Each start: {found.path}\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
