"""One load through four layers: what each is asked, what is kept, and what the table makes of it."""

import json
import subprocess
import sys

import pytest

from loadtest.peers.servers import PeerFailed
from loadtest.studies import gap
from loadtest.studies.gap import Options, order, table
from tests.loadtest.litmuses import PROMPT_TOKENS, stand_in

HOLDS = "held = bytearray({size}); print(len(held), flush=True); input()"


@pytest.fixture
def litmus(monkeypatch):
    return stand_in(monkeypatch)


@pytest.fixture
def holders():
    """Two processes, the first of which holds more memory."""
    commands = [[sys.executable, "-c", HOLDS.format(size=size)] for size in (40_000_000, 10)]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for command in commands]
    for process in started:
        process.stdout.readline()
    yield started
    for process in started:
        process.communicate(b"\n")


@pytest.fixture
def benches(monkeypatch):
    """What `app.benchmarks.engine` is called with; it finds 100 tokens/s, and 10 more in each further wave."""
    asked = []

    def answers(command, run):
        asked.append(command)
        waves = int(command[command.index("--repeats") + 1])
        for at_once in command[command.index("--at-once") + 1 :]:
            yield {"at_once": int(at_once), "runs": [{"tokens_per_s": 100.0 + 10 * wave} for wave in range(waves)]}

    monkeypatch.setattr(gap, "answers", answers)
    return asked


def measure(tmp_path, *words):
    code = gap.main(["--quick", "--out", str(tmp_path), *words])
    (path,) = tmp_path.glob("gap-*.jsonl")
    manifest, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    return code, manifest, rows


def test_every_layer_gets_the_same_load(litmus, holders, benches, tmp_path, capsys):
    code, manifest, rows = measure(tmp_path, "--rounds", "2", "--waves", "3", "--at-once", "4", "1")
    assert code == 0 and manifest["quick"] and manifest["model"]["slots"] == 4 and manifest["options"]["at_once"] == [1, 4]
    waves = [(row["round"], row["layer"], row["at_once"], row["wave"]) for row in rows if row["kind"] == "wave"]
    assert len(waves) == len(set(waves)) == 2 * 4 * 2 * 3
    assert {command[command.index("--what") + 1] for command in benches} == {"generate", "engine"} and len(benches) == 4
    for command in benches:
        told = {name: command[command.index(name) + 1] for name in ("--prompt-tokens", "--new-tokens", "--repeats", "--dtype")}
        assert told == {"--prompt-tokens": str(PROMPT_TOKENS), "--new-tokens": "8", "--repeats": "3", "--dtype": "float32"}
    streams = [body for body in litmus.bodies if body.get("stream")]
    assert len(streams) == len(litmus.bodies) / 2 == 2 * (3 + 1) * (1 + 4), "one wave of each is not counted"
    assert {(body["max_tokens"], body["ignore_eos"], body["temperature"]) for body in litmus.bodies} == {(8, True, 0.0)}
    assert len({json.dumps(body["messages"]) for body in litmus.bodies}) == len(litmus.bodies), "no cache has seen a prompt"
    spent = [row for row in rows if row["kind"] == "cpu"]
    assert len(spent) == 2 * 2 * 2 and all(row["tokens"] == 3 * 8 * row["at_once"] and row["client_s"] > 0 for row in spent)
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:10]]
    assert [line[:2] for line in shown] == [[str(count), layer] for count in (1, 4) for layer in gap.LAYERS]
    assert shown[4][2:4] == ["110", "36.36"], "the median wave; four readers"


def test_an_answer_of_another_length_ends_it(litmus, holders, benches, tmp_path, capsys):
    litmus.lost = 1
    code, _, rows = measure(tmp_path)
    assert code == 1 and rows[-1] == {"kind": "failed", "why": "litmus-none-4-slots: 7 tokens came, 8 were asked for"}
    assert rows[-1]["why"] in capsys.readouterr().err


def test_a_bench_that_fails_ends_it(litmus, holders, tmp_path, monkeypatch):
    def answers(*_):
        raise PeerFailed("app.benchmarks.engine ended with code 2")

    monkeypatch.setattr(gap, "answers", answers)
    code, _, rows = measure(tmp_path)
    assert code == 1 and rows[-1]["why"] == "app.benchmarks.engine ended with code 2" and rows[0]["layer"] in ("whole", "stream")


def test_whose_cpu_it_is(holders):
    large, small = holders
    found = gap.processes()
    assert found.worker.pid == large.pid and small.pid in [process.pid for process in found.others]
    used = found.used()
    assert used["worker_s"] >= 0 and used["api_s"] >= 0 and used["client_s"] > 0


def test_the_server_comes_first_in_the_first_round_only():
    found = order(20, seed=0)
    assert found == order(20, seed=0) and all(sorted(one) == ["engine", "generate", "server"] for one in found)
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


def test_what_is_asked_for_goes_over_the_defaults():
    assert gap.options_of(gap._arguments([])) == Options()
    assert gap.options_of(gap._arguments(["--quick", "--waves", "2", "--at-once", "8", "1", "8"])).at_once == (1, 8)
