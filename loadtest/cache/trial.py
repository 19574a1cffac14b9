"""One start from one kind of storage, in a fresh process that waits until the files are in the state to be measured; which starts make
a comparison, and the table they come to. The process is `app.benchmarks.start`, or loadtest.cache.storage for the floor.
"""

import itertools
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from scipy.stats import bootstrap

from loadtest.cache import storage

Storage = Literal["cold", "warm", "tmpfs"]
FLOOR = "floor"  # stands where a cell says how it reads
ATTEMPTS = 3  # to bring files into a state
LIMIT_S = 900
HEAD = (
    *("model", "storage", "by", "quantize", "cores", "n", "load s [95%]", "start to first token s", "first token s", "load MB/s"),
    *("plain read MB/s", "process MB", "page cache MB", "tmpfs MB", "peak RSS MB"),
)
STAGES = {
    "open and read": ("open", "read"),
    "deserialize": ("deserialize",),
    "quantize": ("quantize",),
    "to device": ("to_device",),
    "pack": ("pack",),
    "prove": ("prove",),
    "warm up": ("warm_up",),
    "other": ("tokenizer", "build", "rest"),
}


class Refused(Exception):
    """The files could not be brought into the state to be measured, so nothing was."""


class Failed(Exception):
    """The process did not do what it was asked."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of the factors. `by` is how weights are read, or `floor`: every byte by plain reads, and no model."""

    model: str
    storage: Storage
    by: str
    quantize: str
    cores: int


@dataclass(frozen=True, slots=True)
class Factors:
    """Levels of each; the first of each is the one that the other factors are compared at."""

    models: tuple[str, ...]
    storages: tuple[Storage, ...]
    ways: tuple[str, ...]
    weights: tuple[str, ...]
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model's files lie: on a disk and, where tmpfs is measured, in a copy of them."""

    disk: Path
    memory: Path | None


def cells(factors: Factors, cross: bool = False) -> list[Cell]:
    """Every storage by every way, and at every level of one other factor at a time; with `cross` all combinations. Floors besides."""
    first = Cell(factors.models[0], factors.storages[0], factors.ways[0], factors.weights[0], factors.cores[0])
    found: list[Cell] = []
    for here in (replace(first, storage=at) for at in factors.storages):
        found += [replace(here, by=way) for way in factors.ways]
        found += [replace(here, quantize=weights) for weights in factors.weights]
        found += [replace(here, cores=count) for count in factors.cores]
        found += [replace(here, model=model) for model in factors.models]
        if cross:
            others = itertools.product(factors.models, factors.ways, factors.weights, factors.cores)
            found += [Cell(model, here.storage, way, weights, count) for model, way, weights, count in others]
        found += [replace(here, model=model, by=FLOOR, quantize="none") for model in factors.models]
    return list(dict.fromkeys(found))


def order(wanted: Sequence[Cell], repeats: int, seed: int) -> list[tuple[Cell, int]]:
    """Each repeat is all cells in an order of its own, so that what changes with time touches all alike."""
    draw = random.Random(seed)
    return [(cell, repeat) for repeat in range(repeats) for cell in draw.sample(wanted, len(wanted))]


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """A process started in here may use that many."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(mine)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def prepare(cell: Cell, place: Place) -> dict[str, Any]:
    """Bring the files into the cell's state; what mincore says of them. Raises `Refused`."""
    disk = storage.files(place.disk)
    for attempt in range(1, ATTEMPTS + 1):
        if cell.storage == "warm":
            storage.read(disk)
        else:
            storage.cool(disk)
        left = storage.pages(disk)
        copy = storage.pages(storage.files(place.memory)) if cell.storage == "tmpfs" and place.memory else None
        ready = left.share == (1.0 if cell.storage == "warm" else 0.0) and (copy is None or copy.share == 1.0)
        if ready:
            return {"resident_share": (copy or left).share, "disk_resident_share": left.share, "attempts": attempt}
        time.sleep(0.2 * attempt)
    raise Refused(
        f"{left.resident} of {left.total} pages of {place.disk} are in memory, after {ATTEMPTS} attempts to have it {cell.storage}"
    )


def run(cell: Cell, place: Place, device: str) -> dict[str, Any]:
    """The row of one start. Raises `Refused` and `Failed`."""
    folder = place.memory if cell.storage == "tmpfs" else place.disk
    if folder is None:
        raise Refused("there is no copy on a tmpfs")
    command = ["env", "-u", "OMP_NUM_THREADS", "-u", "MKL_NUM_THREADS", sys.executable, "-m"]  # the cores alone say how many threads
    if cell.by == FLOOR:
        command += ["loadtest.cache.storage", str(folder)]
    else:
        command += ["app.benchmarks.start", "--model", str(folder), "--quantize", cell.quantize, "--by", cell.by, "--device", device]
    with tempfile.TemporaryFile() as errors:
        begin_s = time.perf_counter()
        with on_cores(cell.cores):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        end = threading.Timer(LIMIT_S, process.kill)
        end.start()
        try:
            answer(process, errors)
            start_s = time.perf_counter() - begin_s
            state = prepare(cell, place)
            found = answer(process, errors, b"\n")
            cached = storage.pages(storage.files(place.disk)).bytes
        finally:
            end.cancel()
            process.kill()  # it has said all; what it would still do is tidy up
            process.communicate()
    return row(cell, place, {"start_s": start_s, **state, **found, "page_cache_bytes": cached})


def answer(process: subprocess.Popen[bytes], errors: IO[bytes], word: bytes = b"") -> dict[str, Any]:
    """Its next line, after `word` was said to it. Raises `Failed`."""
    if process.stdin is None or process.stdout is None:
        raise Failed("it has no pipes")
    with suppress(BrokenPipeError):  # its silence says more
        process.stdin.write(word)
        process.stdin.flush()
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
        raise Failed(f"it ended with code {process.wait()}: {said[-1] if said else 'no word'}")
    return json.loads(line)


def row(cell: Cell, place: Place, found: dict[str, Any]) -> dict[str, Any]:
    """`ram_bytes` is the memory that the model takes of the machine once it serves, nothing counted twice: of the process what belongs
    to no file, the pages of the files that the page cache holds, and the copy on the tmpfs. Raises `Failed`.
    """
    if found.get("cores_seen", cell.cores) != cell.cores:
        raise Failed(f"it was to have {cell.cores} cores and saw {found['cores_seen']}")
    size = sum(path.stat().st_size for path in storage.files(place.disk))
    copied = sum(512 * path.stat().st_blocks for path in storage.files(place.memory)) if cell.storage == "tmpfs" and place.memory else 0
    sums: dict[str, Any] = {"bytes": size, "bytes_per_s": size / found["load_s"], "tmpfs_bytes": copied}
    if cell.by != FLOOR:
        sums["ram_bytes"] = found["anon_bytes"] + found["page_cache_bytes"] + copied
        sums["total_s"] = found["start_s"] + found["load_s"] + found["first_token_s"]
    return {**asdict(cell), **sums, **found, "machine_load": os.getloadavg()[0]}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% of the median, by bootstrap (percentiles of 2,000 resamples); NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    ends = bootstrap((values,), np.median, n_resamples=2000, method="percentile", rng=0).confidence_interval
    return float(ends.low), float(ends.high)


def table(rows: Sequence[dict[str, Any]], wanted: Sequence[Cell]) -> str:
    """Markdown: medians over the repeats of each cell, and the interval of the load."""
    groups = {
        cell: [row for row in rows if row["kind"] == "start" and all(row[k] == v for k, v in asdict(cell).items())] for cell in wanted
    }
    floors = {(cell.model, cell.storage): _median(group, "bytes_per_s") for cell, group in groups.items() if cell.by == FLOOR}
    lines = [[*HEAD, *STAGES], ["---"] * 5 + ["---:"] * (len(HEAD) + len(STAGES) - 5)]
    for cell, group in groups.items():
        loads = [row["load_s"] for row in group]
        low, high = interval(loads)
        numbers = [f"{_median(group, 'bytes_per_s') / 1e6:.0f}", f"{floors.get((cell.model, cell.storage), math.nan) / 1e6:.0f}"]
        numbers += [f"{_median(group, key) / 1e6:.0f}" for key in ("anon_bytes", "page_cache_bytes", "tmpfs_bytes", "rss_peak_bytes")]
        seconds = [f"{_median(group, key):.2f}" for key in ("total_s", "first_token_s")]
        shown = [f"{_median(group, 'load_s'):.2f} [{low:.2f}, {high:.2f}]", *seconds, *numbers]
        lines.append([*map(str, asdict(cell).values()), str(len(group)), *shown, *(_stage(group, names) for names in STAGES.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("nan", "-")


def _median(group: Sequence[dict[str, Any]], key: str) -> float:
    values = [row[key] for row in group if key in row]
    return float(np.median(values)) if values else math.nan


def _stage(group: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Seconds, and the megabytes that came from a disk meanwhile where there were any; a step that was not taken has neither."""
    found = [[row["stages"][name] for name in names if name in row.get("stages", {})] for row in group]
    if not any(found):
        return "-"
    from_disk = float(np.median([sum(stage["disk_bytes"] for stage in stages) for stages in found])) / 1e6
    seconds = float(np.median([sum(stage["s"] for stage in stages) for stages in found]))
    return f"{seconds:.2f}" + (f" ({from_disk:.0f} MB)" if from_disk >= 1 else "")
