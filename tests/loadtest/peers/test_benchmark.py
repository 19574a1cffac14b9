"""The whole comparison against servers that have no model, and what it reports of peers that are not installed."""

import json
import sys
from pathlib import Path

import pytest

from loadtest.peers import benchmark, servers
from loadtest.peers.servers import PORT_PLACEHOLDER, Peer, PeerAbsent, PeerFailed
from loadtest.run import create_run
from tests.loadtest.undisturbed import first_good

FAKE_SERVER = Path(__file__).parents[2] / "fake_server.py"


@pytest.fixture
def fake_servers(monkeypatch, tmp_path):
    """Makes Litmus and transformers fake servers. Yields the faults of the latter, to be changed by a test."""
    faults = {"sends_done": False}

    def transformers(*_):
        return Peer("theirs", (sys.executable, str(FAKE_SERVER), PORT_PLACEHOLDER, json.dumps(faults)), "/ready", {}, sends_done=False)

    monkeypatch.setattr(servers, "litmus_peer", lambda *_: Peer("ours", (sys.executable, str(FAKE_SERVER), PORT_PLACEHOLDER), "/ready"))
    monkeypatch.setattr(servers, "transformers_peer", transformers)
    monkeypatch.setenv("PATH", str(tmp_path))
    return faults


def compare(tmp_path, capsys, *words):
    code = benchmark.main(["--quick", "--model", "folder", "--out", str(tmp_path), *words])
    shown = capsys.readouterr().out
    (path,) = tmp_path.glob("engine-*.jsonl")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines()[2:] if line.startswith("|")]
    return code, rows, [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_over_http(fake_servers, tmp_path_factory, capsys):
    def measure():
        return compare(tmp_path_factory.mktemp("rows"), capsys, "--rows", "3", "4", "7", "8", "9")

    check_rows(first_good(measure, check_rows))


def check_rows(found):
    code, rows, lines = found
    assert code == 0
    assert [row[0] for row in rows] == ["3", "4", "4", "7", "8", "9"]
    assert 0.5 < float(rows[0][4]) < 2 and rows[0][6] == "**no**"
    assert {row[6] for row in rows[1:3]} == {"not run: no llama-server on PATH"} and {row[4] for row in rows[1:3]} == {"-"}
    assert float(rows[4][4]) > 3 and rows[4][6] == "**no**", "the fake server stalls its streams during a prefill"
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
    ("fault", "why"),
    [
        ({"missing_tokens": 1}, "failed: theirs: returned 7 tokens instead of 8"),
        ({"extra_prompt_tokens": 9}, "failed: its prompts had 31.0 tokens, those of Litmus 22.0"),
    ],
)
def test_a_peer_with_other_lengths_is_a_failure(fake_servers, tmp_path, capsys, fault, why):
    fake_servers.update(fault)
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


def test_the_bare_engine_takes_turns_with_the_server(fake_servers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark.Bench, "engine_command", lambda *_: [sys.executable, "-c", SLOW])
    code, (row,), lines = compare(tmp_path, capsys, "--rows", "6")
    assert code == 0 and float(row[4]) > 1 and row[6] == "yes"
    ours, theirs = ([one["prompt_tokens"] for one in line["rounds"]] for line in lines if line["kind"] == "measurement")
    assert ours == theirs == [4 * 22]


def test_json_lines_of_a_program_are_recorded(tmp_path):
    run = create_run(tmp_path, "engine", {})
    code = 'print(\'chatter\'); print(\'{"kind": "bare", "tokens_per_s": 2.0}\')'
    assert list(benchmark.run_program([sys.executable, "-c", code], run)) == [{"kind": "bare", "tokens_per_s": 2.0}]
    with pytest.raises(PeerFailed, match="ended with code 1: no model"):
        list(benchmark.run_program([sys.executable, "-c", "import sys; sys.exit('no model')"], run))
    run.close()
    assert len(run.path.read_text().splitlines()) == 2


def test_the_scoring_rows_are_measured_in_processes_of_their_own(tmp_path, monkeypatch):
    asked = []

    def run_program(command, run):
        asked.append(command)
        return iter([{"texts_per_s": 2.0, "peak_bytes": 5e6}])

    monkeypatch.setattr(benchmark, "run_program", run_program)
    bench = benchmark.Bench(benchmark._parse_args(["--model", "m"]), benchmark.QUICK, create_run(tmp_path, "engine", {}))
    bench.measure_subject("scorer/nf4", {"rate", "peak"})
    bench.measure_subject("published/none", {"rate", "peak"})
    bench.run.close()
    assert bench.values == {"scorer/nf4/rate": 2.0, "scorer/nf4/peak": 5.0, "published/none/rate": 2.0, "published/none/peak": 5.0}
    assert [command[command.index("--what") + 1] for command in asked] == ["engine", "published"]
    assert all(command[2] == "app.benchmarks.scoring" for command in asked)


def test_find_gguf(tmp_path, monkeypatch):
    made: list[tuple[str, ...]] = []
    monkeypatch.setattr(benchmark, "MODEL", tmp_path / "made")
    monkeypatch.setattr(benchmark, "make_model", lambda *options: made.append(options))
    binary = tmp_path / "llama-server"
    given = benchmark._parse_args(["--model", "other"])
    with pytest.raises(PeerAbsent, match="no GGUF of this model"):
        benchmark.find_gguf(given, "f16", binary)
    assert benchmark.find_gguf(benchmark._parse_args(["--model", str(tmp_path / "made")]), "f16", binary) == tmp_path / "made-f16.gguf"
    assert made == [("--gguf",)]
    whole = tmp_path / "m-f16.gguf"
    given = benchmark._parse_args(["--gguf", str(whole)])
    with pytest.raises(PeerAbsent, match="is no file"):
        benchmark.find_gguf(given, "f16", binary)
    whole.touch()
    assert benchmark.find_gguf(given, "f16", binary) == whole
    with pytest.raises(PeerAbsent, match="m-q4_0.gguf is no file"):
        benchmark.find_gguf(given, "4bit", binary)
    (tmp_path / "m-q4_0.gguf").touch()
    assert benchmark.find_gguf(given, "4bit", binary) == tmp_path / "m-q4_0.gguf"


def test_arguments():
    given = benchmark._parse_args(["--rows", "1", "4"])
    assert given.rows == [1, 4] and given.four_bit in ("int4", "nf4") and given.model == benchmark.MODEL
    assert benchmark._parse_args([]).rows == list(range(1, 12))
    with pytest.raises(SystemExit):
        benchmark._parse_args(["--rows", "12"])
