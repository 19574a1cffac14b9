"""The load that every layer gets, the rows that are recorded, and the table."""

import json
import subprocess
import sys

import psutil
import pytest

from loadtest.peers.servers import PeerFailed
from loadtest.studies import gap
from loadtest.studies.gap import Options, shuffle_programs, table
from tests.loadtest.fake_litmus import PROMPT_TOKENS, replace_servers

HOLD_MEMORY = "held = bytearray({size}); print(len(held), flush=True); input()"


@pytest.fixture
def litmus(monkeypatch):
    return replace_servers(monkeypatch)


@pytest.fixture
def memory_processes():
    """Two processes, the first of which holds more memory."""
    commands = [[sys.executable, "-c", HOLD_MEMORY.format(size=size)] for size in (40_000_000, 10)]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for command in commands]
    for process in started:
        process.stdout.readline()
    yield started
    for process in started:
        process.communicate(b"\n")


@pytest.fixture
def engine_commands(monkeypatch):
    """Replaces `app.benchmarks.engine`: 100 tokens/s, and 10 more in each further wave. Yields the commands it was called with."""
    asked = []

    def run_program(command, run):
        asked.append(command)
        waves = int(command[command.index("--repeats") + 1])
        for at_once in command[command.index("--at-once") + 1 :]:
            yield {"at_once": int(at_once), "runs": [{"tokens_per_s": 100.0 + 10 * wave} for wave in range(waves)]}

    monkeypatch.setattr(gap, "run_program", run_program)
    return asked


def measure(tmp_path, *words):
    code = gap.main(["--quick", "--out", str(tmp_path), *words])
    (path,) = tmp_path.glob("gap-*.jsonl")
    manifest, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    return code, manifest, rows


def test_every_layer_gets_the_same_load(litmus, memory_processes, engine_commands, tmp_path, capsys):
    code, manifest, rows = measure(tmp_path, "--rounds", "2", "--waves", "3", "--at-once", "4", "1")
    assert code == 0 and manifest["quick"] and manifest["model"]["slots"] == 4 and manifest["options"]["at_once"] == [1, 4]
    waves = [(row["round"], row["layer"], row["at_once"], row["wave"]) for row in rows if row["kind"] == "wave"]
    assert len(waves) == len(set(waves)) == 2 * 4 * 2 * 3
    assert {command[command.index("--what") + 1] for command in engine_commands} == {"generate", "engine"} and len(engine_commands) == 4
    for command in engine_commands:
        options = {name: command[command.index(name) + 1] for name in ("--prompt-tokens", "--new-tokens", "--repeats", "--dtype")}
        assert options == {"--prompt-tokens": str(PROMPT_TOKENS), "--new-tokens": "8", "--repeats": "3", "--dtype": "float32"}
    streams = [body for body in litmus.bodies if body.get("stream")]
    assert len(streams) == len(litmus.bodies) / 2 == 2 * (3 + 1) * (1 + 4), "one wave of each is not counted"
    assert {(body["max_tokens"], body["ignore_eos"], body["temperature"]) for body in litmus.bodies} == {(8, True, 0.0)}
    assert len({json.dumps(body["messages"]) for body in litmus.bodies}) == len(litmus.bodies), "no cache has seen a prompt"
    spent = [row for row in rows if row["kind"] == "cpu"]
    assert len(spent) == 2 * 2 * 2 and all(row["tokens"] == 3 * 8 * row["at_once"] and row["client_s"] > 0 for row in spent)
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:10]]
    assert [line[:2] for line in shown] == [[str(count), layer] for count in (1, 4) for layer in gap.LAYERS]
    assert shown[4][2:4] == ["110", "36.36"], "the median wave; four readers"


def test_an_answer_of_another_length_ends_the_study(litmus, memory_processes, engine_commands, tmp_path, capsys):
    litmus.lost = 1
    code, _, rows = measure(tmp_path)
    assert code == 1 and rows[-1] == {"kind": "failed", "why": "litmus-none-4-slots: returned 7 tokens instead of 8"}
    assert rows[-1]["why"] in capsys.readouterr().err


def test_a_failed_program_ends_the_study(litmus, memory_processes, tmp_path, monkeypatch):
    def run_program(*_):
        raise PeerFailed("app.benchmarks.engine ended with code 2")

    monkeypatch.setattr(gap, "run_program", run_program)
    code, _, rows = measure(tmp_path)
    assert code == 1 and rows[-1]["why"] == "app.benchmarks.engine ended with code 2" and rows[0]["layer"] in ("whole", "stream")


def test_cpu_time_is_told_apart_by_process(memory_processes, monkeypatch):
    large, small = memory_processes
    children = [child for child in psutil.Process().children(recursive=True) if child.pid in (large.pid, small.pid)]
    assert len(children) == 2
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: children)  # other tests' servers may still be there
    found = gap.find_processes()
    assert found.worker.pid == large.pid and small.pid in [process.pid for process in found.others]
    used = found.cpu_seconds()
    assert used["worker_s"] >= 0 and used["api_s"] >= 0 and used["client_s"] > 0


def test_the_server_comes_first_in_the_first_round_only():
    found = shuffle_programs(20, seed=0)
    assert found == shuffle_programs(20, seed=0) and all(sorted(one) == ["engine", "generate", "server"] for one in found)
    assert found[0][0] == "server" and len({one[0] for one in found}) == 3


def test_table():
    rates = {"generate": (100, 120), "engine": (200, 200), "whole": (100, 100), "stream": (80, 80)}
    rows = [
        {"kind": "wave", "round": turn, "layer": layer, "at_once": 2, "tokens_per_s": rate}
        for layer, pair in rates.items()
        for turn, rate in enumerate(pair)
    ]
    rows.append({"kind": "cpu", "layer": "stream", "at_once": 2, "seconds": 2.0, "api_s": 0.5, "client_s": 0.25})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(rows, (2,)).splitlines()[2:]]
    assert lines == [
        ["2", "generate", "109", "18.33", "", "", ""],
        ["2", "engine", "200", "10.00", "-8.33", "", ""],
        ["2", "whole", "100", "20.00", "+10.00", "", ""],
        ["2", "stream", "80.0", "25.00", "+5.00", "0.25", "0.12"],
    ]


def test_options_of_the_command_line_override_the_defaults():
    assert gap.options_of(gap._parse_args([])) == Options()
    assert gap.options_of(gap._parse_args(["--quick", "--waves", "2", "--at-once", "8", "1", "8"])).at_once == (1, 8)
