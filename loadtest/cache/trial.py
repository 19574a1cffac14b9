"""Measures one start from one kind of storage, plans which starts make a comparison, and formats the results as a table.

A start is a fresh process that imports everything, then waits until its files are in the state to be measured. It is
`app.benchmarks.start`, or loadtest.cache.storage for the lower bound.
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

from loadtest.cache import storage

Storage = Literal["cold", "warm", "tmpfs"]
FLOOR = "floor"  # `Cell.by` of the lower bound: plain reads of every file, no model
PREPARE_ATTEMPTS = 3
START_LIMIT_S = 900  # a start that takes longer is killed
COLUMNS = (
    *("model", "storage", "by", "quantize", "cores", "n", "load s [95%]", "start to first token s", "first token s", "load MB/s"),
    *("plain read MB/s", "process MB", "page cache MB", "tmpfs MB", "peak RSS MB"),
)
STAGE_COLUMNS = {  # a column of the table: the stages of `app.benchmarks.start` that it sums
    "open and read": ("open", "read"),
    "deserialize": ("deserialize",),
    "quantize": ("quantize",),
    "to device": ("to_device",),
    "pack": ("pack",),
    "prove": ("prove",),
    "warm up": ("warm_up",),
    "other": ("tokenizer", "forms", "build", "rest"),
}


class Refused(Exception):
    """The files could not be brought into the state to be measured, so the start was not measured."""


class Failed(Exception):
    """The measured process ended early or did not run as configured."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of the factors. `by` is how weights are read, or `FLOOR`."""

    model: str
    storage: Storage
    by: str
    quantize: str
    cores: int


@dataclass(frozen=True, slots=True)
class Factors:
    """The levels of each factor. The first level of each is the baseline at which the other factors are compared."""

    models: tuple[str, ...]
    storages: tuple[Storage, ...]
    ways: tuple[str, ...]
    weights: tuple[str, ...]
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelPaths:
    """The folder of a model on a disk and, if tmpfs is measured, that of its copy in memory."""

    disk: Path
    memory: Path | None


def plan_cells(factors: Factors, cross: bool = False) -> list[Cell]:
    """Plans the cells: in every storage, the baseline with one factor varied at a time; with `cross` all combinations.

    Each model also gets a lower-bound cell in every storage.
    """
    baseline = Cell(factors.models[0], factors.storages[0], factors.ways[0], factors.weights[0], factors.cores[0])
    planned: list[Cell] = []
    for base in (replace(baseline, storage=level) for level in factors.storages):
        planned += [replace(base, by=way) for way in factors.ways]
        planned += [replace(base, quantize=weights) for weights in factors.weights]
        planned += [replace(base, cores=count) for count in factors.cores]
        planned += [replace(base, model=model) for model in factors.models]
        if cross:
            combinations = itertools.product(factors.models, factors.ways, factors.weights, factors.cores)
            planned += [Cell(model, base.storage, way, weights, count) for model, way, weights, count in combinations]
        planned += [replace(base, model=model, by=FLOOR, quantize="none") for model in factors.models]
    return list(dict.fromkeys(planned))


def shuffle_starts(cells: Sequence[Cell], repeats: int, seed: int) -> list[tuple[Cell, int]]:
    """Returns (cell, repeat) pairs. Each repeat has all cells in a new random order, so that drift over time affects all cells alike."""
    draw = random.Random(seed)
    return [(cell, repeat) for repeat in range(repeats) for cell in draw.sample(cells, len(cells))]


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Limits processes started inside the block to `count` cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def prepare_files(cell: Cell, paths: ModelPaths) -> dict[str, Any]:
    """Brings the files into the cell's state and returns what mincore reports of them. Raises `Refused` if they stay in another state."""
    disk = storage.files_of(paths.disk)
    for attempt in range(1, PREPARE_ATTEMPTS + 1):
        if cell.storage == "warm":
            storage.read_all(disk)
        else:
            storage.drop_from_cache(disk)
        pages = storage.count_pages(disk)
        copied = storage.count_pages(storage.files_of(paths.memory)) if cell.storage == "tmpfs" and paths.memory else None
        ready = pages.share == (1.0 if cell.storage == "warm" else 0.0) and (copied is None or copied.share == 1.0)
        if ready:
            return {"resident_share": (copied or pages).share, "disk_resident_share": pages.share, "attempts": attempt}
        time.sleep(0.2 * attempt)
    raise Refused(
        f"{pages.resident} of {pages.total} pages of {paths.disk} are in memory after {PREPARE_ATTEMPTS} attempts to make it {cell.storage}"
    )


def measure_start(cell: Cell, paths: ModelPaths, device: str) -> dict[str, Any]:
    """Measures one start and returns its row. Raises `Refused` and `Failed`."""
    folder = paths.memory if cell.storage == "tmpfs" else paths.disk
    if folder is None:
        raise Refused("the model has no copy on a tmpfs")
    # the number of cores alone sets the number of threads
    command = ["env", "-u", "OMP_NUM_THREADS", "-u", "MKL_NUM_THREADS", sys.executable, "-m"]
    if cell.by == FLOOR:
        command += ["loadtest.cache.storage", str(folder)]
    else:
        command += ["app.benchmarks.start", "--model", str(folder), "--quantize", cell.quantize, "--by", cell.by, "--device", device]
    with tempfile.TemporaryFile() as errors:
        begin_s = time.perf_counter()
        with on_cores(cell.cores):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        watchdog = threading.Timer(START_LIMIT_S, process.kill)
        watchdog.start()
        try:
            read_reply(process, errors)
            start_s = time.perf_counter() - begin_s
            state = prepare_files(cell, paths)
            measured = read_reply(process, errors, b"\n")
            cached = storage.count_pages(storage.files_of(paths.disk)).bytes
        finally:
            watchdog.cancel()
            process.kill()  # its results are read; only its clean-up is left
            process.communicate()
    return row_of(cell, paths, {"start_s": start_s, **state, **measured, "page_cache_bytes": cached})


def read_reply(process: subprocess.Popen[bytes], errors: IO[bytes], message: bytes = b"") -> dict[str, Any]:
    """Sends `message` to the process and returns its next line of JSON. Raises `Failed` if the process ended instead."""
    if process.stdin is None or process.stdout is None:
        raise Failed("the process was started without pipes")
    with suppress(BrokenPipeError):  # it has ended; the missing line below reports it
        process.stdin.write(message)
        process.stdin.flush()
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        raise Failed(f"the process ended with code {process.wait()}: {lines[-1] if lines else 'nothing on stderr'}")
    return json.loads(line)


def row_of(cell: Cell, paths: ModelPaths, measured: dict[str, Any]) -> dict[str, Any]:
    """Adds the cell and derived values to what was measured. Raises `Failed` if the process saw another number of cores.

    `ram_bytes` is the memory that serving the model takes of the machine, nothing counted twice: anonymous memory of the process,
    pages of the model's files in the page cache, and the copy on the tmpfs.
    """
    if measured.get("cores_seen", cell.cores) != cell.cores:
        raise Failed(f"the process was limited to {cell.cores} cores but saw {measured['cores_seen']}")
    size = sum(path.stat().st_size for path in storage.files_of(paths.disk))
    copies = storage.files_of(paths.memory) if cell.storage == "tmpfs" and paths.memory else []
    copy_bytes = sum(512 * path.stat().st_blocks for path in copies)
    derived: dict[str, Any] = {"bytes": size, "bytes_per_s": size / measured["load_s"], "tmpfs_bytes": copy_bytes}
    if cell.by != FLOOR:
        derived["ram_bytes"] = measured["anon_bytes"] + measured["page_cache_bytes"] + copy_bytes
        derived["total_s"] = measured["start_s"] + measured["load_s"] + measured["first_token_s"]
    return {**asdict(cell), **derived, **measured, "machine_load": os.getloadavg()[0]}


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the 95% confidence interval of the median, by percentile bootstrap (2,000 resamples); NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    from scipy.stats import bootstrap  # here, as it takes a second to import

    ends = bootstrap((values,), np.median, n_resamples=2000, method="percentile", rng=0).confidence_interval
    return float(ends.low), float(ends.high)


def table(rows: Sequence[dict[str, Any]], cells: Sequence[Cell]) -> str:
    """Formats medians over the repeats of each cell, and the interval of the load time, as Markdown."""
    groups = {cell: [row for row in rows if row["kind"] == "start" and all(row[k] == v for k, v in asdict(cell).items())] for cell in cells}
    floors = {(cell.model, cell.storage): _median(group, "bytes_per_s") for cell, group in groups.items() if cell.by == FLOOR}
    lines = [[*COLUMNS, *STAGE_COLUMNS], ["---"] * 5 + ["---:"] * (len(COLUMNS) + len(STAGE_COLUMNS) - 5)]
    for cell, group in groups.items():
        loads = [row["load_s"] for row in group]
        low, high = median_interval(loads)
        numbers = [f"{_median(group, 'bytes_per_s') / 1e6:.0f}", f"{floors.get((cell.model, cell.storage), math.nan) / 1e6:.0f}"]
        numbers += [f"{_median(group, key) / 1e6:.0f}" for key in ("anon_bytes", "page_cache_bytes", "tmpfs_bytes", "rss_peak_bytes")]
        seconds = [f"{_median(group, key):.2f}" for key in ("total_s", "first_token_s")]
        values = [f"{_median(group, 'load_s'):.2f} [{low:.2f}, {high:.2f}]", *seconds, *numbers]
        stages = [_stage(group, names) for names in STAGE_COLUMNS.values()]
        lines.append([*map(str, asdict(cell).values()), str(len(group)), *values, *stages])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("nan", "-")


def _median(group: Sequence[dict[str, Any]], key: str) -> float:
    values = [row[key] for row in group if key in row]
    return float(np.median(values)) if values else math.nan


def _stage(group: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Formats the median seconds of the stages, and the megabytes read from a disk meanwhile, if any; a dash if no start had them."""
    starts = [[row["stages"][name] for name in names if name in row.get("stages", {})] for row in group]
    if not any(starts):
        return "-"
    from_disk = float(np.median([sum(stage["disk_bytes"] for stage in stages) for stages in starts])) / 1e6
    seconds = float(np.median([sum(stage["s"] for stage in stages) for stages in starts]))
    return f"{seconds:.2f}" + (f" ({from_disk:.0f} MB)" if from_disk >= 1 else "")
