"""The load that every number of slots gets, the rows that are recorded, and the table."""

import json

import pytest

from app.settings import read
from loadtest.peers.servers import PORT_PLACEHOLDER
from loadtest.studies import slots
from loadtest.studies.slots import CHAT_FIELDS, Options, shuffle_servers, table
from tests.loadtest.fake_litmus import PROMPT_TOKENS, replace_servers


@pytest.fixture
def litmus(monkeypatch):
    return replace_servers(monkeypatch)


def push(tmp_path, capsys, *words):
    code = slots.main(["--quick", "--out", str(tmp_path), *words])
    (path,) = tmp_path.glob("slots-*.jsonl")
    manifest, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    return code, capsys.readouterr().out, manifest, rows


def test_every_number_of_slots_gets_the_same_load(litmus, tmp_path, capsys):
    code, shown, manifest, rows = push(tmp_path, capsys, "--slots", "2", "4", "--repeats", "2", "--requests-per-client", "3")
    assert code == 0 and manifest["quick"] and manifest["options"]["clients"] == 4
    rounds = [row for row in rows if row["kind"] == "round"]
    assert sorted((row["repeat"], row["slots"]) for row in rounds) == [(0, 2), (0, 4), (1, 2), (1, 4)]
    assert all(row["chats"] == 12 and row["tokens"] == 12 * 8 and row["dtype"] == "float32" for row in rounds)
    assert all(row["tokens_per_s"] == pytest.approx(row["tokens"] / row["seconds"]) for row in rounds)
    chats = [row for row in rows if row["kind"] == "chat"]
    assert len(chats) == 4 * 12 and set(chats[0]) == {"kind", "slots", "repeat", *CHAT_FIELDS}
    assert {(row["queue_ms"], row["prompt_tokens"], row["completion_tokens"]) for row in chats} == {(250.0, PROMPT_TOKENS, 8)}
    asked = [json.dumps(body["messages"]) for body in litmus.bodies]
    first, second, third, fourth = (set(asked[start : start + 16]) for start in (0, 16, 32, 48))
    assert first == second != third == fourth, "a repeat has its own prompts, the same for all; four of sixteen are uncounted"
    assert {(body["max_tokens"], body["stream"], body["ignore_eos"]) for body in litmus.bodies} == {(8, True, True)}
    assert [line.split("|")[1].strip() for line in shown.splitlines()[2:4]] == ["2", "4"]


def test_the_first_failure_ends_the_study(litmus, tmp_path, capsys):
    litmus.slots = 4
    assert slots.main(["--quick", "--out", str(tmp_path), "--slots", "2", "--repeats", "3"]) == 1
    shown = capsys.readouterr()
    assert not shown.out and "repeat 1 of 3, 2 slots failed" in shown.err and "the server has 4 slots instead of 2" in shown.err
    assert len(litmus.started) == 1


def test_what_was_measured_before_a_failure_is_shown(litmus, tmp_path, capsys):
    litmus.slots = 4
    first = next(seed for seed in range(20) if shuffle_servers((2, 4), 1, seed)[0] == (0, 4))
    code, shown, _, rows = push(tmp_path, capsys, "--slots", "2", "4", "--seed", str(first))
    assert code == 1 and rows[-1]["why"] == "the server has 4 slots instead of 2"
    assert shown.splitlines()[2].split("|")[3].strip() == "-" and shown.splitlines()[3].split("|")[2].strip() == "4"


def test_a_server_that_does_not_report_its_slots(litmus, tmp_path, capsys):
    litmus.slots_status = 404
    _, _, _, rows = push(tmp_path, capsys, "--slots", "2")
    assert "litmus-none-2-slots does not report its slots: 404" in rows[0]["why"]


def test_the_command_line_of_the_server(tmp_path):
    given = slots._parse_args(["--model", "folder", "--quantize", "nf4", "--dtype", "float32"])
    peer = slots.litmus_with_slots(given, 8)
    model = read(["8000" if word == PORT_PLACEHOLDER else word for word in peer.command[3:]]).model
    assert (model.path, model.quantize, model.dtype, model.slots) == ("folder", "nf4", "float32", 8)


def test_the_order_is_shuffled_in_every_repeat():
    found = shuffle_servers((1, 2, 4, 8), 3, seed=0)
    assert found == shuffle_servers((1, 2, 4, 8), 3, seed=0) != shuffle_servers((1, 2, 4, 8), 3, seed=1)
    repeats = [[count for at, count in found if at == repeat] for repeat in range(3)]
    assert [sorted(one) for one in repeats] == [[1, 2, 4, 8]] * 3 and len(set(map(tuple, repeats))) > 1


def test_options_of_the_command_line_override_the_defaults():
    def options(*words):
        return slots.options_of(slots._parse_args(words))

    assert options() == Options() and options("--quick") == slots.QUICK
    assert options("--slots", "2", "2", "3", "--seed", "0").slots == (2, 3)
    assert options("--quick", "--clients", "9", "--new-tokens", "5").clients == 9


def test_table():
    times = {"ttft_ms": 10.0, "tpot_ms": 4.0, "queue_ms": None}
    rows = [{"kind": "round", "slots": 2, "tokens_per_s": rate, "own_bytes": 5e8} for rate in (90, 100, 700)]
    rows += [{"kind": "chat", "slots": 2, **times}, {"kind": "chat", "slots": 2, **times, "tpot_ms": 8.0, "queue_ms": 3.0}]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(rows, (2, 4)).splitlines()]
    assert lines[2] == ["2", "2", "100", "6.0", "7.8", "10.0", "10.0", "3.0", "500"]
    assert lines[3] == ["4", "0", *["-"] * 7]
