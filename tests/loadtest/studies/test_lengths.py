"""Lengths that fit, rates from two runs, the order, the table, and the options of each program."""

import json

import pytest

from loadtest.process import ProgramFailed
from loadtest.studies import lengths
from loadtest.studies.lengths import context_of, fit_prompt_lengths, shuffle_cells, split_rates, table


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"), [([64, 256, 4096], 1024, [64, 256, 960]), ([2000, 4096], 1024, [960]), ([64, 4096], None, [64, 4096])]
)
def test_prompts_leave_room_for_the_answer(lengths, limit, expected):
    assert fit_prompt_lengths(lengths, limit, 64) == expected


def test_the_context_is_the_configs(tiny_folder):
    assert context_of(str(tiny_folder)) == 128
    assert context_of("owner/name") is None


def line(new_tokens, seconds, at_once=4):
    return {"at_once": at_once, "prompt_tokens": 100, "new_tokens": new_tokens, "tokens_per_s": at_once * new_tokens / seconds}


def test_decode_time_is_what_whole_answers_take_longer():
    found = split_rates(line(1, 2.0), line(11, 7.0))
    assert found["prefill_per_s"] == pytest.approx(400 / 2.0)
    assert found["decode_per_s"] == pytest.approx(40 / 5.0)
    assert (found["read_s"], found["whole_s"]) == (pytest.approx(2.0), pytest.approx(7.0))
    assert split_rates(line(1, 2.0), line(11, 2.0))["decode_per_s"] is None, "noise is not a speed"


def test_the_order_is_drawn_for_each_repeat():
    cells = [(64, 1), (64, 8), (256, 1), (256, 8)]
    found = shuffle_cells(cells, 6, 0)
    parts = [tuple(cell for cell, repeat in found if repeat == number) for number in range(1, 7)]
    assert all(sorted(part) == cells for part in parts) and len(set(parts)) > 1


def test_the_table():
    speeds = [
        {"kind": "speed", "prompt_tokens": 64, "at_once": 8, "prefill_per_s": rate, "decode_per_s": other}
        for rate, other in ((100.0, None), (300.0, 30.0))
    ]
    prints = [{"kind": "footprint", "prompt_tokens": 64, "at_once": count, "peak_bytes": 5e8 + count} for count in (1, 8)]
    scored = [{"kind": "scoring", "what": what, "tokens": 50, "seconds": 0.02} for what in ("engine", "published")]
    shown = table([*prints, *speeds, *scored]).splitlines()
    assert shown[2:4] == ["| 64 | 1 | - | - | 500 |", "| 64 | 8 | 200 | 30 | 500 |"], "the first was measured with --repeats 0"
    assert shown[-1] == "| 50 | 20.0 | 20.0 |"


def test_a_run_records_rows_and_failures(monkeypatch, tmp_path, tiny_folder, capsys):
    commands = []

    def fake_run_module(*words):
        commands.append(words)
        given = dict(zip(words[1::2], words[2::2], strict=False))
        if words[0] == "app.benchmarks.scoring":
            if given["--what"] == "published":
                raise ProgramFailed("it ended with code 2: no memory")
            return [{"by_length": [{"tokens": 50, "seconds": 0.1, "peak_bytes": 7}]}]
        if words[0] == "app.benchmarks.memory":
            return [{"kind": "footprint", "context": int(given["--context"]), "slot_bytes": 1, "peak_bytes": 5e8}]
        tokens = int(given["--new-tokens"])
        return [{**line(tokens, 1.0 + tokens, int(given["--at-once"])), "threads": 1, "runs": []}]

    monkeypatch.setattr(lengths, "run_module", fake_run_module)
    code = lengths.main(["--quick", "--model", str(tiny_folder), "--lengths", "32", "900", "--at-once", "2", "--out", str(tmp_path)])
    assert code == 1, "one way of scoring failed"
    (path,) = tmp_path.glob("lengths-*.jsonl")
    manifest, *rows = map(json.loads, path.read_text().splitlines())
    assert manifest["quick"] and manifest["model"]["id"] == str(tiny_folder)
    assert [row["prompt_tokens"] for row in rows if row["kind"] == "footprint"] == [32, 120], "cut to the context of 128"
    speeds = [row for row in rows if row["kind"] == "speed"]
    assert {(row["prompt_tokens"], row["context"]) for row in speeds} == {(32, 40), (120, 128)}
    assert [row["what"] for row in rows if row["kind"] == "scoring"] == ["engine"]
    assert [row["why"] for row in rows if row["kind"] == "failed"] == ["it ended with code 2: no memory"]
    assert "| 120 | 2 |" in capsys.readouterr().out
