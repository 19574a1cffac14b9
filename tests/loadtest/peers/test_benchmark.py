"""The whole comparison against servers that have no model, and what it says of those that are not there."""

import json
import sys
from pathlib import Path

import pytest

from loadtest.peers import benchmark, servers
from loadtest.peers.servers import PORT, Peer, PeerAbsent, PeerFailed
from loadtest.run import create_run

TALKER = Path(__file__).parents[2] / "talker.py"


@pytest.fixture
def talkers(monkeypatch, tmp_path):
    """Every server is a talker; what the peer's one does wrong."""
    flaws = {"done": False}

    def transformers(*_):
        return Peer("theirs", (sys.executable, str(TALKER), PORT, json.dumps(flaws)), "/ready", {}, done=False)

    monkeypatch.setattr(servers, "litmus", lambda *_: Peer("ours", (sys.executable, str(TALKER), PORT), "/ready"))
    monkeypatch.setattr(servers, "transformers", transformers)
    monkeypatch.setenv("PATH", str(tmp_path))
    return flaws


def compare(tmp_path, capsys, *words):
    code = benchmark.main(["--quick", "--model", "folder", "--out", str(tmp_path), *words])
    shown = capsys.readouterr().out
    (path,) = tmp_path.glob("engine-*.jsonl")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines()[2:] if line.startswith("|")]
    return code, rows, [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_over_http(talkers, tmp_path, capsys):
    code, rows, lines = compare(tmp_path, capsys, "--rows", "3", "4", "7", "8", "9")
    assert code == 0
    assert [row[0] for row in rows] == ["3", "4", "4", "7", "8", "9"]
    assert 0.5 < float(rows[0][4]) < 2 and rows[0][6] == "**no**"
    assert {row[6] for row in rows[1:3]} == {"not run: no llama-server on PATH"} and {row[4] for row in rows[1:3]} == {"-"}
    assert float(rows[4][4]) > 3 and rows[4][6] == "**no**", "a talker stands still while it reads"
    manifest, *measured = lines
    assert manifest["tool"] == "engine" and manifest["options"]["clients"] == 4
    assert {"command", "commit", "versions", "machine", "python", "model"} <= manifest.keys() and manifest["versions"]["torch"]
    values = {line["name"]: line["value"] for line in measured if line["kind"] == "measurement"}
    assert all(len(line["rounds"]) == 1 for line in measured if line.get("name", "").endswith("crowd")), "the first is not counted"
    assert set(values) == {f"litmus/none/{name}" for name in "crowd first continued calm pressed apart beside".split()} | {
        "litmus/4bit/crowd",
        "transformers/none/crowd",
    }
    assert measured[-1]["markdown"].count("\n") == 7


@pytest.mark.parametrize(
    ("flaw", "why"),
    [
        ({"lost": 1}, "failed: theirs: 7 tokens came, 8 were asked for"),
        ({"longer": 9}, "failed: prompts of 31.0 tokens beside Litmus's 22.0"),
    ],
)
def test_a_peer_that_did_something_else_is_a_failure(talkers, tmp_path, capsys, flaw, why):
    talkers.update(flaw)
    code, rows, _ = compare(tmp_path, capsys, "--rows", "3")
    assert code == 1
    assert rows[0][4] == "-" and rows[0][6] == why


SLOW = """
import json, sys
print("{}", flush=True)
for line in sys.stdin:
    json.loads(line)
    print(json.dumps({"tokens_per_s": 1e-9, "prompt_tokens": 22.0}), flush=True)
"""


def test_the_bare_engine_takes_its_turns(talkers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark.Bench, "program", lambda *_: [sys.executable, "-c", SLOW])
    code, (row,), lines = compare(tmp_path, capsys, "--rows", "6")
    assert code == 0 and float(row[4]) > 1 and row[6] == "yes"
    ours, theirs = ([one["prompt_tokens"] for one in line["rounds"]] for line in lines if line["kind"] == "measurement")
    assert ours == theirs == [4 * 22]


def test_bare_lines_are_kept(tmp_path):
    run = create_run(tmp_path, "engine", {})
    code = 'print(\'chatter\'); print(\'{"kind": "bare", "tokens_per_s": 2.0}\')'
    assert list(benchmark.answers([sys.executable, "-c", code], run)) == [{"kind": "bare", "tokens_per_s": 2.0}]
    with pytest.raises(PeerFailed, match="ended with code 1: no model"):
        list(benchmark.answers([sys.executable, "-c", "import sys; sys.exit('no model')"], run))
    run.close()
    assert len(run.path.read_text().splitlines()) == 2


def test_the_scoring_rows_are_measured_in_processes_of_their_own(tmp_path, monkeypatch):
    asked = []

    def answers(command, run):
        asked.append(command)
        return iter([{"texts_per_s": 2.0, "peak_bytes": 5e6}])

    monkeypatch.setattr(benchmark, "answers", answers)
    bench = benchmark.Bench(benchmark._arguments(["--model", "m"]), benchmark.QUICK, create_run(tmp_path, "engine", {}))
    bench.attempt("scorer/nf4", {"rate", "peak"})
    bench.attempt("published/none", {"rate", "peak"})
    bench.run.close()
    assert bench.values == {"scorer/nf4/rate": 2.0, "scorer/nf4/peak": 5.0, "published/none/rate": 2.0, "published/none/peak": 5.0}
    assert [command[command.index("--what") + 1] for command in asked] == ["engine", "published"]
    assert all(command[2] == "app.benchmarks.scoring" for command in asked)


def test_where_a_gguf_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "MODEL", tmp_path / "made")
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    binary = tmp_path / "llama-server"
    given = benchmark._arguments(["--model", "other"])
    with pytest.raises(PeerAbsent, match="no GGUF of this model"):
        benchmark.find_gguf(given, "f16", binary)
    with pytest.raises(PeerAbsent, match="pip install gguf"):
        benchmark.find_gguf(benchmark._arguments(["--model", str(tmp_path / "made")]), "f16", binary)
    whole = tmp_path / "m-f16.gguf"
    given = benchmark._arguments(["--gguf", str(whole)])
    with pytest.raises(PeerAbsent, match="is no file"):
        benchmark.find_gguf(given, "f16", binary)
    whole.touch()
    assert benchmark.find_gguf(given, "f16", binary) == whole
    with pytest.raises(PeerAbsent, match="m-q4_0.gguf is no file"):
        benchmark.find_gguf(given, "4bit", binary)
    (tmp_path / "m-q4_0.gguf").touch()
    assert benchmark.find_gguf(given, "4bit", binary) == tmp_path / "m-q4_0.gguf"


def test_arguments():
    given = benchmark._arguments(["--rows", "1", "4"])
    assert given.rows == [1, 4] and given.four_bit in ("int4", "nf4") and given.model == benchmark.MODEL
    assert benchmark._arguments([]).rows == list(range(1, 12))
    with pytest.raises(SystemExit):
        benchmark._arguments(["--rows", "12"])
