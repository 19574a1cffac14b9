"""The comparison of starts: which are planned, in which order, that it resumes, and one real run of it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from loadtest.cache import benchmark, storage, trial
from loadtest.cache.benchmark import main, shape_of
from loadtest.cache.trial import (
    FLOOR,
    Cell,
    Factors,
    Failed,
    ModelPaths,
    Refused,
    median_interval,
    plan_cells,
    prepare_files,
    shuffle_starts,
    table,
)

ROOT = Path(__file__).parents[3]
FACTORS = Factors(("a", "b"), ("cold", "warm", "tmpfs"), ("mmap", "read"), ("none", "nf4"), (2, 1))
BASE = Cell("a", "cold", "mmap", "none", 2)
START = {"bytes": 10**6, "bytes_per_s": 10**6, "start_s": 1, "load_s": 1.0, "first_token_s": 0.5, "total_s": 2.5}
BYTES = {"anon_bytes": 3e6, "page_cache_bytes": 2e6, "tmpfs_bytes": 0, "rss_peak_bytes": 9e6}


@pytest.fixture
def out(tmp_path):
    if storage.file_system_of(tmp_path) in storage.MEMORY_FILE_SYSTEMS:
        pytest.skip("the temporary folder is in memory")
    return tmp_path / "runs"


@pytest.fixture
def arguments(tiny_folder, out):
    levels = "--storage cold warm --by mmap --quantize none int4 --cores 1 --repeats 3".split()
    return ["--model", str(tiny_folder), *levels, "--out", str(out)]


def lines(out):
    (path,) = out.glob("cache-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def starts(out):
    return [(*(line[name] for name in Cell.__slots__), line["repeat"]) for line in lines(out) if line["kind"] == "start"]


def fake_starts(monkeypatch, until=10**6):
    """Replaces starts by instant ones. An interrupt comes at number `until`. Returns the cells that were started."""
    started = []

    def measure_start(cell, paths, device):
        if len(started) == until:
            raise KeyboardInterrupt
        started.append(cell)
        return {**trial.asdict(cell), **START, **BYTES, "stages": {}}

    monkeypatch.setattr(benchmark, "measure_start", measure_start)
    return started


def test_cells_are_one_factor_at_a_time():
    found = plan_cells(FACTORS)
    assert len(found) == len(set(found)) == 3 * (1 + 1 + 1 + 1 + 1 + 2)
    loads = [cell for cell in found if cell.by != FLOOR]
    moved = [sum((cell.model != "a", cell.by != "mmap", cell.quantize != "none", cell.cores != 2)) for cell in loads]
    assert max(moved) == 1 and moved.count(1) == 3 * 4
    floors = {(cell.model, cell.storage) for cell in found if cell.by == FLOOR}
    assert floors == {(model, at) for model in "ab" for at in FACTORS.storages}, "each model has a floor in each state"


def test_cross_plans_all_combinations():
    assert len(plan_cells(FACTORS, cross=True)) == 3 * (2 * 2 * 2 * 2 + 2)


def test_order_interleaves_and_is_a_function_of_the_seed():
    found = plan_cells(FACTORS)
    planned = shuffle_starts(found, 10, 3)
    rounds = [planned[at : at + len(found)] for at in range(0, len(planned), len(found))]
    assert all({cell for cell, _ in part} == set(found) and {repeat for _, repeat in part} == {n} for n, part in enumerate(rounds))
    assert len({tuple(cell for cell, _ in part) for part in rounds}) == 10, "every round has an order of its own"
    assert planned == shuffle_starts(found, 10, 3) != shuffle_starts(found, 10, 4)
    assert shuffle_starts(found, 4, 3) == planned[: 4 * len(found)], "more repeats go on with the same order"


@pytest.mark.parametrize("size", ["20M", "60M", "135M", "360M", "1.7B", "7b"])
def test_a_size_gets_a_shape(size):
    wanted = float(size[:-1]) * (1e9 if size[-1] in "bB" else 1e6)
    shape = shape_of(size)
    assert shape.parameters == pytest.approx(wanted, rel=0.12) and shape.hidden % 192 == 0


def test_the_shape_of_135m_is_that_of_the_peers_benchmark():
    assert shape_of("135M").options() == "--hidden 576 --layers 30 --heads 9 --kv-heads 3 --ff 1536".split()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--size", "10"], "--size '10'"),
        (["--size", "1M"], "from 20M to 10B"),
        (["--size", "99B"], "from 20M to 10B"),
        (["--cores", "0"], "--cores"),
        (["--cores", "100000"], "this process may use 1 to"),
        (["--repeats", "0"], "--repeats"),
        (["--storage", "ice"], "--storage"),
        (["--by", "floor"], "--by"),
        (["--quantize", "int3"], "--quantize"),
        (["--model", "nowhere"], "nowhere: not a folder"),
    ],
)
def test_refused_arguments(argv, message, capsys, out):
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--out", str(out)])
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not out.exists()


def test_unusable_folders_are_refused(tiny_folder, other_folder, out, tmp_path, monkeypatch, capsys):
    fake_starts(monkeypatch)
    twin = tmp_path / tiny_folder.name
    twin.mkdir()
    (twin / "config.json").write_text("{}")
    assert main(["--model", str(tiny_folder), str(twin), "--out", str(out)]) == 2
    assert "same name" in capsys.readouterr().err
    assert main(["--model", str(tiny_folder), "--tmpfs", str(tmp_path), "--out", str(out)]) == 2
    assert "no tmpfs" in capsys.readouterr().err
    monkeypatch.setattr(storage, "file_system_of", lambda folder: "tmpfs")
    assert main(["--model", str(tiny_folder), "--out", str(out)]) == 2
    assert "always in memory" in capsys.readouterr().err


@pytest.mark.parametrize("until", [1, 7, 17])
def test_an_interrupted_run_is_resumed(arguments, out, monkeypatch, until):
    first = fake_starts(monkeypatch, until)
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    assert len(starts(out)) == until
    (path,) = out.glob("cache-*.jsonl")
    with path.open("a") as file:
        file.write('{"kind": "start", "repeat": 2, "mod')  # the power went
    second = fake_starts(monkeypatch)
    assert main(arguments) == 0
    assert len(first) + len(second) == len(starts(out)) == len(set(starts(out))) == 6 * 3
    assert [line["order"] for line in lines(out) if line["kind"] == "start"] == list(range(1, 19))
    third = fake_starts(monkeypatch)
    assert main(arguments) == 0 and third == [], "nothing is left to measure"
    assert sum(line["kind"] == "call" for line in lines(out)) == 3


def test_more_repeats_extend_a_run_and_other_options_start_a_new_one(arguments, out, monkeypatch):
    fake_starts(monkeypatch)
    assert main(arguments) == 0
    more = fake_starts(monkeypatch)
    assert main([*arguments, "--repeats", "4"]) == 0 and len(more) == 6 and len(starts(out)) == 24
    other = fake_starts(monkeypatch)
    assert main([*arguments, "--seed", "1"]) == 0 and len(other) == 18
    assert len([*out.glob("cache-*.jsonl")]) == 2


def test_another_model_of_the_same_name_starts_a_new_run(tiny_folder, out, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    for file in tiny_folder.iterdir():
        (mine / file.name).write_bytes(file.read_bytes())
    words = ["--model", str(mine), "--storage", "warm", "--by", "mmap", "--quantize", "none", "--cores", "1", "--out", str(out)]
    fake_starts(monkeypatch)
    assert main(words) == 0
    os.utime(mine / "config.json", (1, 1))
    made = fake_starts(monkeypatch)
    assert main(words) == 0 and len(made) == 20 and len([*out.glob("cache-*.jsonl")]) == 2


def test_only_one_process_writes(arguments, out, monkeypatch, capsys):
    fake_starts(monkeypatch)
    assert main(arguments) == 0
    (path,) = out.glob("cache-*.jsonl")
    with path.open("a") as file:
        benchmark.fcntl.flock(file, benchmark.fcntl.LOCK_SH)
        assert main(arguments) == 2
    assert "another process is writing" in capsys.readouterr().err


def test_a_damaged_line_is_reported(arguments, out, monkeypatch, capsys):
    fake_starts(monkeypatch)
    assert main(arguments) == 0
    (path,) = out.glob("cache-*.jsonl")
    whole = path.read_text().splitlines()
    path.write_text("\n".join([*whole[:4], "{", *whole[4:]]) + "\n")
    assert main(arguments) == 2 and "not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("error", [Refused("41 of 42 pages are in memory"), Failed("the process ended with code 1")])
def test_failed_starts_are_recorded_and_retried(arguments, out, monkeypatch, error, capsys):
    done = fake_starts(monkeypatch)
    measure_start = benchmark.measure_start

    def spoilt(cell, paths, device):
        if (cell.storage, cell.quantize) == ("cold", "int4"):
            raise error
        return measure_start(cell, paths, device)

    monkeypatch.setattr(benchmark, "measure_start", spoilt)
    assert main(arguments) == 1
    bad = [line for line in lines(out) if line["kind"] == type(error).__name__.lower()]
    assert [line["why"] for line in bad] == [str(error)] * 3 and not any("load_s" in line for line in bad)
    shown = next(line for line in capsys.readouterr().out.splitlines() if "| cold | mmap | int4 |" in line)
    assert shown.split(" | ")[5:7] == ["0", "- [-, -]"], "no start, no number"
    again = fake_starts(monkeypatch)
    assert main(arguments) == 0 and len(done) == 15 and len(again) == 3


def test_interval_on_known_data():
    assert median_interval([3.0] * 10) == (3.0, 3.0)
    assert all(map(np.isnan, median_interval([3.0])))
    values = [float(value) for value in range(1, 102)]
    low, high = median_interval(values)  # the median's standard error: 1 / (2 f sqrt(n)) = 101 / (2 sqrt(101)), about 5
    assert 38 <= low <= 44 and 58 <= high <= 64


def test_interval_covers_the_true_median_in_95_percent_of_samples():
    draw = random.Random(5)
    found = [median_interval([draw.gauss(7, 2) for _ in range(10)]) for _ in range(300)]
    assert 0.90 <= sum(low <= 7 <= high for low, high in found) / 300 <= 0.99


def test_table():
    stage = {"s": 1.0, "disk_bytes": 5e6, "major_faults": 1, "cpu_s": 1}
    rows = [
        {"kind": "start", **trial.asdict(BASE), **START, **BYTES, "load_s": load, "stages": {"prove": stage, "build": stage, "rest": stage}}
        for load in (1.0, 2.0, 6.0)
    ]
    floor = replace(BASE, by=FLOOR)
    rows += [{"kind": "start", **trial.asdict(floor), "load_s": 0.5, "bytes_per_s": 2e6, "page_cache_bytes": 1e6, "tmpfs_bytes": 0}]
    rows += [{"kind": "refused", **trial.asdict(BASE), "why": "warm"}]
    head, _, load, plain = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table(rows, [BASE, floor]).splitlines())
    shown = dict(zip(head, load, strict=True))
    assert shown["n"] == "3" and shown["load s [95%]"] == "2.00 [1.00, 6.00]"
    assert (shown["load MB/s"], shown["plain read MB/s"], shown["process MB"], shown["page cache MB"]) == ("1", "2", "3", "2")
    assert (shown["prove"], shown["other"], shown["quantize"]) == ("1.00 (5 MB)", "2.00 (10 MB)", "-")
    assert dict(zip(head, plain, strict=True))["load s [95%]"] == "0.50 [-, -]"


def test_a_file_that_stays_in_memory_is_refused(tiny_folder, monkeypatch):
    paths = ModelPaths(tiny_folder, None)
    monkeypatch.setattr(trial.time, "sleep", lambda s: None)
    monkeypatch.setattr(storage, "drop_from_cache", storage.read_all)
    with pytest.raises(Refused, match="after 3 attempts to make it cold"):
        prepare_files(BASE, paths)
    assert prepare_files(replace(BASE, storage="warm"), paths)["resident_share"] == 1.0


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(Failed, match=r"ended with code 2: usage: python -m loadtest.cache.storage"):
        trial.measure_start(replace(BASE, by=FLOOR, cores=1), ModelPaths(tmp_path, None), "cpu")
    with pytest.raises(Failed, match="was limited to 2 cores but saw 1"):
        trial.row_of(BASE, ModelPaths(tmp_path, None), {"cores_seen": 1, "load_s": 1})


def test_a_real_run_is_killed_and_resumed(tiny_folder, out, capsys):
    """A kill in mid-run, then the same command: every start once, cold ones proved cold, each counted in the right place."""
    own = shutil.copytree(tiny_folder, out.parent / "model")  # what another test has mapped cannot be cold
    words = ["--model", str(own), "--storage", "cold", "tmpfs", "--by", "mmap", "--quantize", "none", "--cores", "1"]
    words += ["--repeats", "1", "--out", str(out), "--seed", "4"]  # with it plain reads come first: the kill comes after them
    command = [sys.executable, "-m", "loadtest.cache.benchmark", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        next(None for _ in process.stderr if starts(out))  # one start is done
        process.send_signal(signal.SIGSTOP)
        measured = psutil.Process(process.pid).children(recursive=True)  # what it maps cannot be cold
        process.send_signal(signal.SIGKILL)
    done = starts(out)
    assert 1 <= len(done) < 4
    psutil.wait_procs(measured, timeout=60)
    assert main(words) == 0
    assert starts(out)[: len(done)] == done and len(set(starts(out))) == len(starts(out)) == 4
    rows = {(line["storage"], line["by"]): line for line in lines(out) if line["kind"] == "start"}
    cold, memory, floor = rows["cold", "mmap"], rows["tmpfs", "mmap"], rows["cold", FLOOR]
    assert cold["resident_share"] == cold["disk_resident_share"] == memory["disk_resident_share"] == 0.0
    assert memory["resident_share"] == 1.0 and memory["page_cache_bytes"] == 0 and memory["tmpfs_bytes"] >= memory["bytes"]
    assert cold["tmpfs_bytes"] == 0 and cold["page_cache_bytes"] > 0 and floor["read_bytes"] == cold["bytes"]
    assert sum(stage["disk_bytes"] for stage in cold["stages"].values()) > 0
    assert cold["cores_seen"] == cold["threads"] == 1 and cold["total_s"] > cold["load_s"] > 0
    assert lines(out)[0]["kind"] == "manifest" and lines(out)[0]["plan"]["versions"]["torch"]
    assert not [*Path("/dev/shm").glob(f"litmus-{next(out.glob('cache-*')).stem}")], "the copy is gone"
    assert "| tmpfs | mmap | none | 1 | 1 |" in capsys.readouterr().out
